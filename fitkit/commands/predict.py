"""Predict with a finished run."""

from __future__ import annotations

import argparse
from pathlib import Path

from fitkit.commands.common import add_code, add_run, importing, run_codes, run_folder
from fitkit.errors import Fault, Place, SpecError, show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    add_run(parser)
    parser.add_argument("data", metavar="DATA", help="a .csv, .npy, .npz or .safetensors file")
    parser.add_argument("--out", metavar="FILE", required=True, help="the CSV file to write")
    add_code(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run it and return the exit code."""
    folder, out = run_folder(arguments.run_folder), Path(arguments.out)
    if not out.parent.is_dir():
        message = f"there is no folder {show(str(out.parent))}. Make it first."
        raise SpecError(Fault(message, place=Place(f"--out {out}")))
    run_codes(arguments)
    with importing():
        from fitkit.after.predict import predict_file

    count = predict_file(folder, Path(arguments.data), out)
    print(f"wrote {count:,} predictions to {arguments.out}")
    return 0
