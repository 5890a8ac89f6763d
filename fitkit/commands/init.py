"""Write a commented starter spec for some data."""

from __future__ import annotations

import argparse
from pathlib import Path

from fitkit.errors import Fault, Place, SpecError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    parser.add_argument("data", metavar="DATA", help="a .csv, .npy, .npz, .safetensors or .txt file, or a bundled set")
    parser.add_argument("--target", metavar="COLUMN", help="the column to predict (default: the last)")
    parser.add_argument("--out", metavar="FILE", help="where to write (default: <name of the data>.yaml here)")


def run(arguments: argparse.Namespace) -> int:
    """Run it and return the exit code."""
    from fitkit.after.starter import starter

    out = Path(arguments.out or f"{Path(arguments.data).stem}.yaml")
    if out.exists():
        raise SpecError(Fault("is there already. Give another name with --out FILE.", place=Place(str(out))))
    text = starter(Path(arguments.data), arguments.target, out.absolute().parent)
    with out.open("x", encoding="utf-8") as file:  # "x": a link that leads nowhere yet is not followed
        file.write(text)
    print(f"wrote {out}. Next: fitkit fit {out}")
    return 0
