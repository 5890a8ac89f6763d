"""List the names that a spec may use."""

from __future__ import annotations

import argparse

from fitkit.commands.common import add_code, run_codes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    parser.add_argument("table", metavar="TABLE", nargs="?", help="optimizers, losses, layers, …")
    add_code(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run it and return the exit code."""
    run_codes(arguments)
    from fitkit.after.describe import list_table, list_tables

    print(list_table(arguments.table) if arguments.table else list_tables())
    return 0
