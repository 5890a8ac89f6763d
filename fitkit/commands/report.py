"""Write a run's report as one HTML file, or a page that compares several runs."""

from __future__ import annotations

import argparse
import sys

from fitkit.commands.common import add_code, add_split, importing, run_codes, run_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    parser.add_argument("run_folders", metavar="RUN", nargs="+", help="folder of a run; several are compared")
    add_split(parser, ("train", "val", "test"), help="what to evaluate on; default: val")
    parser.add_argument("--out", metavar="FILE", help="default: RUN/report.html, for several runs comparison.html")
    parser.add_argument("--root", metavar="DIR", help="where the paths of the run's data start (default: here)")
    add_code(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run it and return the exit code."""
    alone = len(arguments.run_folders) == 1
    folders = [run_folder(name, folds=alone) for name in arguments.run_folders]
    run_codes(arguments)
    with importing():
        from fitkit.after.report import report
        from fitkit.after.run_outcomes import say_looks

    path = report(folders, arguments.out, split=arguments.split, root=arguments.root)
    print(f"wrote {path} ({path.stat().st_size / 1000:,.0f} kB): open it in a browser")
    for folder in folders if arguments.split == "test" else ():
        print(say_looks(folder), file=sys.stderr)
    return 0
