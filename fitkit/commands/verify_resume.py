"""Kill a run at random moments and prove that its resume changes no bit."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fitkit.commands.common import add_spec
from fitkit.commands.fit import interval
from fitkit.errors import Fault, SpecError
from fitkit.spec import compose


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    add_spec(parser, "fit.epochs=3")
    parser.add_argument("--kills", type=int, default=5, metavar="N", help="how many kills (default: 5)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the random moments (default: 0)")
    parser.add_argument("--checkpoint-every", metavar="N", default="5 steps", help='default: "5 steps"')


def run(arguments: argparse.Namespace) -> int:
    """Run it and return the exit code."""
    compose.read(Path(arguments.spec), arguments.overrides)
    interval(arguments.checkpoint_every)
    from fitkit.after.verify import verify_resume
    from fitkit.builder import load_spec
    from fitkit.builder.folds import fold_specs

    if specs := fold_specs(load_spec(Path(arguments.spec), arguments.overrides)):
        [name] = specs[0].given["splits"]
        message = f"this asks for {len(specs)} folds, and one run is proved: add splits.{name}.fold=1."
        raise SpecError(Fault(message, "splits"))

    def say(line: str) -> None:
        print(line, file=sys.stderr)

    every = arguments.checkpoint_every
    print(verify_resume(Path(arguments.spec), arguments.overrides, arguments.kills, arguments.seed, say, every))
    return 0
