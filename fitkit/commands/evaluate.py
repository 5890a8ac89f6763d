"""Measure a finished run on one of its splits, or on other data."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from fitkit.commands.common import add_code, add_run, add_split, importing, run_codes, run_folder
from fitkit.errors import SpecError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    add_run(parser)
    parser.add_argument("data", metavar="DATA", nargs="?", help="a file like the one that was trained on")
    add_split(parser, ("train", "val", "test"), help="default: val")
    parser.add_argument("--root", metavar="DIR", help="where the paths of the run's data start (default: here)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_code(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run it and return the exit code."""
    folder = run_folder(arguments.run_folder, folds=not arguments.data)
    run_codes(arguments)
    with importing():
        from fitkit.after.run_outcomes import file_outcomes, read_outcomes, say_looks, say_unfinished
        from fitkit.evaluation.evaluation import evaluate

    if arguments.data:
        if arguments.split:
            raise SpecError("give either DATA or --split, not both.")
        outcomes = file_outcomes(folder, Path(arguments.data))
    else:
        part, root = arguments.split or "val", Path(arguments.root) if arguments.root else None
        outcomes = read_outcomes(folder, part, root, command=f"evaluate --split {part}")
    if unfinished := say_unfinished(folder):
        print(unfinished, file=sys.stderr)
    found = evaluate(outcomes)
    print(json.dumps(found.to_json()) if arguments.json else found)
    if outcomes.part == "test":
        print(say_looks(folder), file=sys.stderr)
    return 0
