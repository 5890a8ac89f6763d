"""What trackers have in common: what they do is tried and never stops a run, and names are what a service takes."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from fitkit.parts.callback import Callback, TrainerLike, run_folder

Status = Literal["finished", "failed", "interrupted"]

FILES = ("report.html", "resolved.yaml", "env.json", "history.csv")  # of the run folder, where they are
MOST_KEY = 240  # characters of a name, which every service takes


class Tracker(Callback):
    """Base of all trackers: what they do is tried, and the first failure is a warning and the end of the tracking."""

    def __init__(self) -> None:
        self.failed = False

    def on_train_begin(self, trainer: TrainerLike) -> None:
        """Forget the last fit and connect; `SpecError` when there is no run folder and it is needed."""
        self.failed = False
        if self.writes_files:
            run_folder(trainer, self)
        self.forget()
        self._try(self.connect, trainer)

    def on_epoch_begin(self, trainer: TrainerLike) -> None:
        """Begin the tracker's run, or go on with it: once it is known whether the fit is resumed."""
        self._try(self.begin, trainer)

    def on_epoch_end(self, trainer: TrainerLike) -> None:
        """Send the row's measured values."""
        row = {name: value for name, value in trainer.row.items() if value is not None and not math.isnan(value)}
        self._try(self.log, trainer, row)

    def on_train_end(self, trainer: TrainerLike) -> None:
        """End the tracker's run."""
        self.end(trainer, "finished")

    def end(self, trainer: TrainerLike, status: Status) -> None:
        """End the tracker's run, if one is open; whoever runs a fit calls this when it fails or is interrupted."""
        self._try(self.close, trainer, status)

    def forget(self) -> None:
        """Forget the last fit."""

    def connect(self, trainer: TrainerLike) -> None:
        """Make what takes long, before the first epoch is timed."""

    def begin(self, trainer: TrainerLike) -> None:
        """Begin or resume the tracker's run, unless it is open."""

    def log(self, trainer: TrainerLike, row: Mapping[str, float]) -> None:
        """Send the values of an epoch."""

    def close(self, trainer: TrainerLike, status: Status) -> None:
        """Send what is known at the end, and end the tracker's run, if one is open."""

    def _try(self, action: Callable[..., None], *arguments: Any) -> None:
        if self.failed:
            return
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what a tracker's own libraries have to say is not about the run
                action(*arguments)
        except Exception as error:  # whatever it is, the run is worth more than its log
            self.failed = True
            reason = str(error) or type(error).__name__
            warnings.warn(f"{type(self).__name__} stopped logging, the run goes on: {reason}", RuntimeWarning, 3)


def flat(spec: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the values of nested mappings under dotted keys; a list, or nothing, becomes JSON."""
    found: dict[str, Any] = {}
    for key, value in (spec or {}).items():
        if isinstance(value, Mapping) and value:
            found |= {f"{key}.{inner}": item for inner, item in flat(value).items()}
        else:
            plain = isinstance(value, str | int | float)
            found[str(key)] = value if plain else json.dumps(value, ensure_ascii=False)
    return found


def clean(names: Iterable[str], refused: str) -> dict[str, str]:
    """Return for each name one without the characters that a service refuses; all of them differ.

    `refused` is a regular expression. A name that begins with neither a letter nor an underscore gets "x_" in front.
    """
    found: dict[str, str] = {}
    for name in names:
        made = re.sub(refused, "_", name, flags=re.ASCII)[:MOST_KEY].strip()
        made = made if re.match("[A-Za-z_]", made) else f"x_{made}"
        number, one = 1, made
        while one in found.values():
            number += 1
            one = f"{made}_{number}"
        found[name] = one
    return found


def best_values(trainer: TrainerLike) -> dict[str, float]:
    """Return the number of the best epoch and its measured values, each under `best_` and its column."""
    history = trainer.history
    if history.best_epoch is None:
        return {}
    row = history.best(history.monitor) if history.monitor else {}
    values = {name: value for name, value in row.items() if name.startswith("val_") and math.isfinite(value)}
    return {"best_epoch": history.best_epoch} | {f"best_{name}": value for name, value in values.items()}


def files(trainer: TrainerLike) -> list[Path]:
    """Return those of `FILES` that are in the run folder."""
    paths = [] if trainer.out is None else [trainer.out / name for name in FILES]
    return [path for path in paths if path.is_file() and not path.is_symlink()]


def remove_links(folder: Path) -> None:
    """Remove symbolic links: a run folder that holds one is not resumed."""
    for path in folder.rglob("*"):
        if path.is_symlink():
            path.unlink()


@contextlib.contextmanager
def environment(**values: str) -> Iterator[None]:
    """Set environment variables for a while, where they are not set already."""
    added = [name for name in values if name not in os.environ]
    os.environ.update({name: values[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
