"""Show the samples that a finished run does worst on, and labels that are suspected to be wrong."""

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
    parser.add_argument("--count", type=int, default=20, metavar="N", help="how many (default: 20)")
    parser.add_argument("--out", metavar="FILE", help="write them to this CSV file too")
    help = "write all samples whose label is suspected to be wrong to this CSV file"
    parser.add_argument("--label-errors", metavar="FILE", help=help)
    parser.add_argument("--root", metavar="DIR", help="where the paths of the run's data start (default: here)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_code(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run it and return the exit code."""
    folder = run_folder(arguments.run_folder, folds=not arguments.data)
    run_codes(arguments)
    with importing():
        from fitkit.after.run_outcomes import say_looks
        from fitkit.after.worst import refuse_taken, worst_of_file, worst_of_run, write_examples, write_label_errors

    out, errors = (Path(name) if name else None for name in (arguments.out, arguments.label_errors))
    refuse_taken(out, errors)
    if arguments.data and arguments.split:
        raise SpecError("give either DATA or --split, not both.")
    if arguments.data:
        found = worst_of_file(folder, Path(arguments.data), count=arguments.count)
    else:
        root = Path(arguments.root) if arguments.root else None
        found = worst_of_run(folder, arguments.split or "val", root, count=arguments.count)
    if errors:
        write_label_errors(found, errors)
        print(f"wrote {len(found.label_errors or ()):,} suspected label errors to {errors}", file=sys.stderr)
    if out:
        write_examples(found, out)
        print(f"wrote {len(found):,} examples to {out}", file=sys.stderr)
    print(json.dumps(found.to_json()) if arguments.json else found)
    if arguments.split == "test":
        print(say_looks(folder), file=sys.stderr)
    return 0
