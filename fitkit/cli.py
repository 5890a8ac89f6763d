"""The command line: every command is a file in `fitkit/commands`, whose docstring is its help.

Exit codes: 0 done; 2 a mistake found before training; 3 training failed; 4 weights could not be written or read; 130
and 143 stopped by a signal. Nothing here imports torch until a command needs it.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import shlex
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
from fitkit.errors import FitkitError, SpecError, nearest, printable

COMMANDS = (
    *(init, check, plan, lr_find, fit, verify_resume),
    *(evaluate, calibrate, worst, diagnose, compare, report, predict),
    *(list, explain, schema, cache),
)
EPILOG = "A spec is a YAML file: see `fitkit init DATA` for a first one, and `fitkit list` for what it may say."


def _parsers() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """Return the parser of the command line, and that of each command."""
    top = argparse.ArgumentParser("fitkit", description="Train PyTorch models from one YAML file.", epilog=EPILOG)
    top.add_argument("--version", action="version", version=f"fitkit {__version__}")
    made: dict[str, argparse.ArgumentParser] = {}
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS:
        name, text = command.__name__.rpartition(".")[2].replace("_", "-"), command.__doc__ or ""
        made[name] = commands.add_parser(name, help=text[0].lower() + text[1:].rstrip("."), description=text)
        command.add_arguments(made[name])
        made[name].set_defaults(run=command.run)
    return top, made


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    try:
        arguments = _parse(argv)
    except FitkitError as error:
        print(error, file=sys.stderr)
        return error.exit_code
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
    top, commands = _parsers()
    words = sys.argv[1:] if argv is None else [*argv]
    if words and words[0] in commands:
        _refuse_unknown(words[0], commands[words[0]], words[1:])
    arguments, rest = top.parse_known_args(words)
    if any(word.startswith("-") for word in rest) or (rest and not hasattr(arguments, "overrides")):
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        arguments.overrides += rest
    return arguments


def _refuse_unknown(command: str, made: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """Raise SpecError for the first option that a command does not have, with what to write instead."""
    usage = made.format_usage()
    options = ["--help", *re.findall(r"--[a-z][a-z-]*", usage)]
    for place, word in enumerate(words):
        name, _, value = word.partition("=")
        if word == "--":
            return
        if not name.startswith("--") or any(option.startswith(name) for option in options):
            continue
        if not value and words[place + 1 : place + 2] and not words[place + 1].startswith("-"):
            value = words[place + 1]
        raise SpecError(
            f"fitkit {command}: there is no option {name}. {_instead(command, usage, name, value, options)}"
        )


def _instead(command: str, usage: str, name: str, value: str, options: Sequence[str]) -> str:
    positional = re.sub(r"--[a-z-]+ [A-Z][A-Z=-]*", "", usage)
    if re.search(rf"\b{re.escape(name[2:].upper())}\b", positional):
        return f"Write {value or name[2:].upper()} without it."
    if pair := _in_a_spec(name[2:].replace("-", "_"), value or "…"):
        pair = pair if re.fullmatch(r"[][\w.,=…-]+", pair) else shlex.quote(pair)
        return f"Write {pair}." if "KEY=VALUE" in usage else f"A spec says that: fitkit fit SPEC {pair}."
    near = nearest(name, options)
    return f"Did you mean {near}?" if near else f"fitkit {command} --help lists them."


def _in_a_spec(word: str, value: str) -> str | None:
    """Return the KEY=VALUE that says in a spec what an option of this name would; None where there is no such key."""
    from fitkit.spec.hints import KEYS as MEANT
    from fitkit.spec.options import FitOptions
    from fitkit.spec.spec import KEYS

    if word in ("folds", "kfold", "n_splits", "cv"):
        return f"splits={{kfold: {value}}}"
    fit_keys = [option.name for option in dataclasses.fields(FitOptions)]
    key = f"fit.{word}" if word in fit_keys else word if word in KEYS else MEANT.get(word, "")
    if key in ("", "fit", "extends"):
        return None
    return f"{key.replace('<name>', 'NAME')}=" + (f"[{value}]" if key in ("metrics", "callbacks") else value)


if __name__ == "__main__":
    sys.exit(main())
