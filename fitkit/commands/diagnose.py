"""Say in words what the numbers of a run mean, and what to change."""

from __future__ import annotations

import argparse
import json

from fitkit.commands.common import add_code, add_run, importing, run_codes, run_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    add_run(parser)
    parser.add_argument("--root", metavar="DIR", help="where the paths of the run's data start (default: here)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_code(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run it and return the exit code."""
    folder = run_folder(arguments.run_folder)
    run_codes(arguments)
    with importing():
        from fitkit.after.diagnose import diagnose

    found = diagnose(folder, root=arguments.root)
    print(json.dumps(found.to_json(), allow_nan=False) if arguments.json else found)
    return 0
