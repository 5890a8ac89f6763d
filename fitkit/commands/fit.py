"""Train what a spec declares."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from fitkit.commands.common import add_code, add_spec, importing, load_spec
from fitkit.errors import Fault, Place, SpecError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    add_spec(parser, "optimizer.AdamW.lr=1e-2 fit.epochs=3")
    add_code(parser)
    parser.add_argument("--quiet", action="store_true", help="print only warnings, errors and the run folder")
    parser.add_argument("--out", metavar="DIR", help="run folder (default: runs/<name>, then -2, -3, …)")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out where it was killed")
    parser.add_argument(
        "--allow-change", metavar="KEY", action="append", default=[], help="resume although this key differs"
    )
    help = '"100 steps" or "30 s" (default: at most 3 %% of the time)'
    parser.add_argument("--checkpoint-every", metavar="N", help=help)
    parser.add_argument("--json", action="store_true", help="one JSON object an epoch on standard output")


def run(arguments: argparse.Namespace) -> int:
    """Run it and return the exit code."""
    spec = load_spec(arguments)
    with importing():
        from fitkit import folds, run_folder, session
        from fitkit.builder.folds import fold_specs
        from fitkit.engine.signals import Interrupted
        from fitkit.progress import Lines

    if arguments.resume and not arguments.out:
        raise SpecError("--resume needs the run folder: give --out DIR.")
    if arguments.out and Path(arguments.out).is_file():
        message = "this is a file. Name a folder that is not there yet, or is empty."
        raise SpecError(Fault(message, place=Place(f"--out {arguments.out}")))
    out = Path(arguments.out) if arguments.out else run_folder.fresh(spec.name)
    lines = Lines(as_json=arguments.json, quiet=arguments.quiet)
    every_steps, every_seconds = interval(arguments.checkpoint_every)
    more: dict[str, Any] = {
        "out": out,
        "resume": arguments.resume,
        "allow_change": arguments.allow_change,
        "callbacks": (lines,),
        "command": "fitkit " + " ".join(sys.argv[1:]),
        "every_steps": every_steps,
        "every_seconds": every_seconds,
    }
    try:
        if fold_specs(spec):
            found, worked = folds.run(spec, **more)
            lines.say_folds(found, out, worked)
        else:
            history, trainer = session.run(spec, **more)
            lines.say_end(history, out, trainer is not None)
    except Interrupted as error:
        error.hint = f" Go on with: fitkit fit {arguments.spec} --out {out} --resume, and the same KEY=VALUE."
        raise
    return 0


def interval(text: str | None) -> tuple[int | None, float | None]:
    """Return the steps or the seconds between two checkpoints: "100" or "100 steps", "30s" or "0.5 s"."""
    if text is None:
        return None, None
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(steps?|s|)\s*", text)
    number = float(match[1]) if match else 0.0
    if match is None or number <= 0 or (match[2] != "s" and number != int(number)):
        raise SpecError(Fault('expects "100 steps" or "30 s".', place=Place(f"--checkpoint-every {text}")))
    return (None, number) if match[2] == "s" else (int(number), None)
