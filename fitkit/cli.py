"""The command line: every command is a file in `fitkit/commands`, whose docstring is its help.

Exit codes: 0 done; 2 a mistake found before training; 3 training failed; 4 weights could not be written or read; 130
and 143 stopped by a signal. Nothing here imports torch until a command needs it.
"""

from __future__ import annotations

import argparse
import signal
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from fitkit import __version__
from fitkit.commands import (
    cache,
    calibrate,
    check,
    compare,
    diagnose,
    evaluate,
    explain,
    fit,
    init,
    list,
    lr_find,
    plan,
    predict,
    report,
    schema,
    verify_resume,
    worst,
)
from fitkit.errors import FitkitError, printable

COMMANDS = (
    *(init, check, plan, lr_find, fit, verify_resume),
    *(evaluate, calibrate, worst, diagnose, compare, report, predict),
    *(list, explain, schema, cache),
)
EPILOG = "A spec is a YAML file: see `fitkit init DATA` for a first one, and `fitkit list` for what it may say."


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    top = argparse.ArgumentParser("fitkit", description="Train PyTorch models from one YAML file.", epilog=EPILOG)
    top.add_argument("--version", action="version", version=f"fitkit {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS:
        name, text = command.__name__.rpartition(".")[2].replace("_", "-"), command.__doc__ or ""
        made = commands.add_parser(name, help=text[0].lower() + text[1:].rstrip("."), description=text)
        command.add_arguments(made)
        made.set_defaults(run=command.run)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = _parse(argv)
    warnings.showwarning = lambda message, *_: print(f"warning: {printable(str(message))}", file=sys.stderr)
    warnings.filterwarnings("ignore", "Failed to initialize NumPy")  # torch works without it, and so does fitkit
    stopped = signal.SIGINT

    def stop(number: int, frame: Any) -> None:
        nonlocal stopped
        stopped = signal.Signals(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        return int(arguments.run(arguments) or 0)
    except FitkitError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt as error:
        hint = getattr(error, "hint", "")
        print(f"stopped.{hint}", file=sys.stderr)
        return 128 + int(getattr(error, "signal", stopped))
    except BrokenPipeError:  # the reader of our output went away, as `fitkit list | head` does
        sys.stderr.close()
        return 0
    finally:
        signal.signal(signal.SIGTERM, before)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; overrides may stand behind options too, which argparse does not see by itself."""
    top = parser()
    arguments, rest = top.parse_known_args(argv)
    if any(word.startswith("-") for word in rest) or (rest and not hasattr(arguments, "overrides")):
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        arguments.overrides += rest
    return arguments


if __name__ == "__main__":
    sys.exit(main())
