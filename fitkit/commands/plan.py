"""Say what a run will need: parameters, memory, steps and time."""

from __future__ import annotations

import argparse
import dataclasses
import json

from fitkit.commands.common import add_code, add_spec, load_spec
from fitkit.errors import printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    add_spec(parser, "fit.batch_size=512")
    add_code(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object; bytes and seconds")


def run(arguments: argparse.Namespace) -> int:
    """Run it and return the exit code."""
    spec = load_spec(arguments)
    from fitkit.after.plan import plan

    found = plan(spec)
    print(json.dumps(dataclasses.asdict(found)) if arguments.json else printable(str(found)))
    return 0 if found.fits else 2
