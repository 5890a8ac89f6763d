"""Measure a finished run on one of its splits, or on other data."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from fitkit.commands.common import add_code, add_run, importing, run_codes, run_folder
from fitkit.errors import SpecError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    add_run(parser)
    parser.add_argument("data", metavar="DATA", nargs="?", help="a file like the one that was trained on")
    parser.add_argument("--split", choices=("train", "val", "test"), default=None, help="default: val")
    parser.add_argument("--root", metavar="DIR", help="where the paths of the run's data start (default: here)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_code(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run it and return the exit code."""
    folder = run_folder(arguments.run_folder)
    run_codes(arguments)
    with importing():
        from fitkit.after.evaluate import evaluate_file, evaluate_split

    if arguments.data:
        if arguments.split:
            raise SpecError("give either DATA or --split, not both.")
        values, looks = evaluate_file(folder, Path(arguments.data)), 0
    else:
        root = Path(arguments.root) if arguments.root else None
        values, looks = evaluate_split(folder, arguments.split or "val", root)
    what = arguments.data or arguments.split or "val"
    if arguments.json:
        print(json.dumps({key: value if value == value else None for key, value in values.items()}))
    else:
        print(f"{what}: " + ", ".join(f"{name} {value:.6g}" for name, value in values.items()))
    if looks:
        times = "for the first time" if looks == 1 else f"{looks} times now; each look makes it less of a test"
        print(f"the test split of {folder} was looked at {times}.", file=sys.stderr)
    return 0
