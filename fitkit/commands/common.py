"""What several commands share: reading their spec, the user's own code, and the run folder that they name."""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fitkit.errors import Fault, Place, SpecError, listing, nearest, show
from fitkit.files import why_not
from fitkit.spec import compose


def add_spec(parser: argparse.ArgumentParser, example: str) -> None:
    """Have a command take a spec and what it is to say otherwise."""
    parser.add_argument("spec", metavar="SPEC", help="path of the YAML file")
    parser.add_argument("overrides", metavar="KEY=VALUE", nargs="*", help=f"e.g. {example}")


def add_run(parser: argparse.ArgumentParser) -> None:
    """Have a command take a run folder."""
    parser.add_argument("run_folder", metavar="RUN", help="folder of a run")


def add_code(parser: argparse.ArgumentParser) -> None:
    """Have a command take files of the user's own parts."""
    help = "Python file that registers parts"
    parser.add_argument("--code", metavar="FILE", action="append", default=[], help=help)


def add_split(
    parser: argparse.ArgumentParser, choices: tuple[str, ...], *, default: str | None = None, help: str
) -> None:
    """Have a command take one of a run's splits; SpecError for another word, with the one that is near."""

    def chosen(word: str) -> str:
        if word in choices:
            return word
        near = nearest(word, choices)
        hint = f"Did you mean {near}?" if near else f"Choose from {listing(choices)}."
        raise SpecError(f"--split {word}: there is no such split. {hint}")

    parser.add_argument("--split", choices=choices, type=chosen, default=default, help=help)


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Hold Python's collector while modules are imported: it would take a quarter of the time, and find nothing."""
    gc.disable()
    try:
        yield
    finally:
        _freeze()
        gc.enable()


@functools.cache  # once
def _freeze() -> None:
    """Have the collector leave out what torch made, which stays: else it looks through it again and again."""
    gc.freeze()


def load_spec(arguments: argparse.Namespace) -> Any:
    """Read the spec before torch is imported, so that mistakes of YAML itself are told at once; then check it."""
    tree = compose.read(Path(arguments.spec), arguments.overrides)
    run_codes(arguments)
    with importing():
        from fitkit.builder import check_tree
        from fitkit.engine.private import load_compiler

    spec = check_tree(tree, Path(arguments.spec), bool(arguments.overrides))
    with importing():
        load_compiler()
    return spec


def run_codes(arguments: argparse.Namespace) -> None:
    """Run the files that `--code` names, which register parts."""
    for file in arguments.code:
        _run_code(file)


def _run_code(file: str) -> None:
    import runpy

    if not Path(file).is_file():
        raise SpecError(Fault("there is no such file.", place=Place(f"--code {file}")))
    try:
        runpy.run_path(file)
    except Exception as error:  # whatever the user's own code raises is theirs to see, with its place
        frames = traceback.extract_tb(error.__traceback__)
        line = next((frame.lineno for frame in reversed(frames) if frame.filename == file), None)
        said = str(error)
        if isinstance(error, SyntaxError) and error.filename == file:
            line, said = error.lineno, error.msg
        place = Place(f"--code {file}" + (f":{line}" if line else ""))
        raise SpecError(Fault(f"{type(error).__name__}: {said}.", place=place)) from error


def run_folder(name: str, *, folds: bool = False) -> Path:
    """Return the folder that a command was given; SpecError when there is none, with the names that are near.

    The folder of a cross-validation is one for commands that take all its `folds` together.
    """
    folder = Path(name)
    if reason := why_not(name):
        raise SpecError(Fault(f"a run is a folder. {reason}", place=Place(name)))
    if not folder.is_dir():
        runs = [str(run) for run in sorted(Path("runs").glob("*")) if run.is_dir()]
        near = nearest(name, runs)
        hint = f" Did you mean {show(near)}?" if near else f" Here are {listing(runs)}." if runs else ""
        raise SpecError(Fault(f"there is no such run folder.{hint}", place=Place(name)))
    if not folds:
        with importing():
            from fitkit.run_folder import refuse_folds
        refuse_folds(folder)
    return folder
