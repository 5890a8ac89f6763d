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
    from fitkit.builder.folds import fold_specs
    from fitkit.folds import check_folds

    out, specs = run_folder.fresh(spec.name), fold_specs(spec)
    trainer, _ = assemble(specs[0] if specs else spec, None, None, out)
    counts = (
        f"\n{len(specs)} folds, of which this is the first:\n{check_folds(specs, None, None, out)}" if specs else ""
    )
    if not arguments.quiet:
        print(printable(f"{arguments.spec}: no mistakes found.\n{trainer}{counts}"))
    return 0
