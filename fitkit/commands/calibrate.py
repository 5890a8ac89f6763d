"""Fit a temperature on a run's validation split, which makes its probabilities honest and changes no prediction."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from fitkit.commands.common import add_code, add_run, add_split, importing, run_codes, run_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    add_run(parser)
    help = "what before and after are measured on (default: val, cross-fitted)"
    add_split(parser, ("val", "test"), default="val", help=help)
    parser.add_argument("--bins", type=int, default=15, metavar="N", help="of confidences (default: 15)")
    parser.add_argument(
        "--equal-mass", action="store_true", help="bins of as many predictions each, not of equal width"
    )
    help = "save the temperature even if no held-out sample shows that it is better than none"
    parser.add_argument("--force", action="store_true", help=help)
    parser.add_argument("--root", metavar="DIR", help="where the paths of the run's data start (default: here)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_code(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run it and return the exit code."""
    folder = run_folder(arguments.run_folder)
    run_codes(arguments)
    with importing():
        from fitkit.after.calibrate import calibrate_run
        from fitkit.after.run_outcomes import say_looks

    root = Path(arguments.root) if arguments.root else None
    options = {"bins": arguments.bins, "equal_mass": arguments.equal_mass, "force": arguments.force}
    found = calibrate_run(folder, arguments.split, root, **options)
    print(json.dumps(found.to_json()) if arguments.json else found)
    if found.saved and found.kept is not None:
        print(f"wrote the temperature into {folder / 'model.safetensors'}; predictions stay the same", file=sys.stderr)
    if arguments.split == "test":
        print(say_looks(folder), file=sys.stderr)
    return 0
