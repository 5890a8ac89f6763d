"""Find every mistake in a spec, without training."""

from __future__ import annotations

import argparse

from fitkit.commands.common import add_code, add_spec, load_spec
from fitkit.errors import printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    add_spec(parser, "optimizer.AdamW.lr=1e-2 fit.epochs=3")
    add_code(parser)
    parser.add_argument("--quiet", action="store_true", help="print only warnings, errors and the run folder")


def run(arguments: argparse.Namespace) -> int:
    """Run it and return the exit code."""
    spec = load_spec(arguments)
    from fitkit import run_folder
    from fitkit.builder import assemble

    trainer, _ = assemble(spec, None, None, run_folder.fresh(spec.name))
    if not arguments.quiet:
        print(printable(f"{arguments.spec}: no mistakes found.\n{trainer}"))
    return 0
