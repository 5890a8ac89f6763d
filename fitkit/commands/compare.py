"""Compare finished runs: what differed, how far each metric moved, and whether it is noise."""

from __future__ import annotations

import argparse
import json

from fitkit.commands.common import add_code, add_split, importing, run_codes, run_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    parser.add_argument("runs", metavar="RUN", nargs="+", help="folders of runs; each is compared with the first")
    help = "runs to compare with: other seeds of another spec, tested over the seeds"
    parser.add_argument("--against", metavar="RUN", nargs="+", default=[], help=help)
    add_split(parser, ("val", "test"), default="val", help="default: val")
    parser.add_argument("--metric", metavar="NAME", help="what the verdict is about (default: the first metric)")
    parser.add_argument("--root", metavar="DIR", help="where the paths of the runs' data start (default: here)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_code(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run it and return the exit code."""
    folders, against = ([run_folder(name) for name in names] for names in (arguments.runs, arguments.against))
    run_codes(arguments)
    with importing():
        from fitkit.after.compare import compare

    found = compare(*folders, against=against, split=arguments.split, metric=arguments.metric, root=arguments.root)
    print(json.dumps(found.to_json()) if arguments.json else found)
    return 0
