"""Find every mistake in a spec, without training; with --data, look at the data more closely than a fit does."""

from __future__ import annotations

import argparse
import json

from fitkit.commands.common import add_code, add_spec, load_spec
from fitkit.errors import SpecError, printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    add_spec(parser, "optimizer.AdamW.lr=1e-2 fit.epochs=3")
    add_code(parser)
    parser.add_argument("--data", action="store_true", help="print all that is to be said about the data, and what not")
    parser.add_argument("--json", action="store_true", help="with --data: one JSON object on standard output")
    parser.add_argument("--quiet", action="store_true", help="print only warnings, errors and the run folder")


def run(arguments: argparse.Namespace) -> int:
    """Run it and return the exit code: 0 whatever is found in the data."""
    if arguments.json and not arguments.data:
        raise SpecError("--json prints what is found in the data: give --data too.")
    spec = load_spec(arguments)
    from fitkit import run_folder
    from fitkit.builder import assemble
    from fitkit.builder.folds import fold_specs
    from fitkit.builder.look import look, warn
    from fitkit.folds import check_folds

    out, specs = run_folder.fresh(spec.name), fold_specs(spec)
    trainer, prepared = assemble(specs[0] if specs else spec, None, None, out)
    if arguments.json:
        print(json.dumps(look(prepared, thorough=True).to_json(), allow_nan=False))
        return 0
    counts = (
        f"\n{len(specs)} folds, of which this is the first:\n{check_folds(specs, None, None, out)}" if specs else ""
    )
    if not arguments.quiet:
        print(printable(f"{arguments.spec}: no mistakes found.\n{trainer}{counts}"))
    if arguments.data:
        print(printable(str(look(prepared, thorough=True))))
    else:
        warn(prepared)
    return 0
