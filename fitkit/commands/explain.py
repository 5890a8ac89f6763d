"""Explain a name or a key of a spec."""

from __future__ import annotations

import argparse

from fitkit.commands.common import add_code, run_codes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    parser.add_argument("name", metavar="NAME", help="AdamW, cross_entropy, fit, …")
    add_code(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run it and return the exit code."""
    run_codes(arguments)
    from fitkit.after.describe import explain

    print(explain(arguments.name))
    return 0
