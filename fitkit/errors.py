"""What can go wrong, and how it is said.

    FitkitError          anything that fitkit says about a run
    ├── SpecError        a mistake in the spec or the command; carries every fault found    (exit 2)
    ├── DataError        a mistake in the data: file, row, column                           (exit 2)
    ├── TrainingError    training itself failed: non-finite loss, out of memory             (exit 3)
    └── CheckpointError  weights or a checkpoint could not be read or written               (exit 4)

A message is place, fault, what to do. Whoever raises one of these names what the user can change.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

MOST_FAULTS = 20  # more than a screenful helps nobody
FAILED = "failed: "  # how a History says why a fit stopped that ended with an error, whose message follows


class FitkitError(Exception):
    """Base of all errors that fitkit raises on purpose; `exit_code` is what the command line returns."""

    exit_code = 1

    def __str__(self) -> str:
        return printable(super().__str__())


class DataError(FitkitError):
    """The data cannot be used: the message names the file, row and column, or the tensor."""

    exit_code = 2


class TrainingError(FitkitError):
    """Training failed after it began; `history` holds the epochs that were finished, if any."""

    exit_code = 3
    history: Any = None


class CheckpointError(FitkitError):
    """Weights or a checkpoint could not be read or written."""

    exit_code = 4


class DataWarning(UserWarning):
    """Something in the data that would make a result wrong, or better than it is; said before the first epoch."""


@dataclass(frozen=True, order=True)
class Place:
    """Where a spec says something: lines and columns count from 1; line 0 means the whole file or an override."""

    file: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}" if self.line else self.file


@dataclass(frozen=True)
class Fault:
    """One mistake: where it stands, the path of the key from the root of the spec, and what to do about it."""

    message: str
    path: str = ""
    place: Place | None = None

    def __str__(self) -> str:
        return ": ".join(str(part) for part in (self.place, self.path, self.message) if part)


class SpecError(FitkitError):
    """One or more mistakes in a spec or a command; `faults` holds them in file order."""

    exit_code = 2

    def __init__(self, faults: str | Fault | Iterable[Fault]) -> None:
        if isinstance(faults, str):
            faults = Fault(faults)
        listed = [faults] if isinstance(faults, Fault) else list(faults)
        listed.sort(key=lambda fault: (fault.place is None, fault.place or Place("")))
        self.faults: tuple[Fault, ...] = tuple(dict.fromkeys(listed))
        lines = [str(fault) for fault in self.faults[:MOST_FAULTS]]
        if len(self.faults) > MOST_FAULTS:
            lines.append(f"… and {len(self.faults) - MOST_FAULTS} more mistakes.")
        super().__init__("\n".join(lines))


def printable(text: str) -> str:
    """Escape what a terminal would act on: files, columns and classes are named by whoever wrote them."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def nearest(word: str, choices: Iterable[str]) -> str | None:
    """Return the choice that `word` was most likely meant to be, or None when nothing is near."""
    by_fold = {choice.lower().replace("_", "").replace("-", ""): choice for choice in choices}
    folded = word.lower().replace("_", "").replace("-", "")
    if folded in by_fold:
        return by_fold[folded]
    found = difflib.get_close_matches(folded, by_fold, n=1, cutoff=0.6)
    return by_fold[found[0]] if found else None


def listing(names: Iterable[str], most: int = 12) -> str:
    """Join names for a message; a long list is cut and says how many are left out."""
    names = list(names)
    cut = f", … ({len(names) - most} more)" if len(names) > most else ""
    return ", ".join(names[:most]) + cut


def show(value: Any, most: int = 60) -> str:
    """Quote a value for a message: strings in double quotes, control characters escaped, cut when long."""
    if isinstance(value, str):
        text = '"' + value.encode("unicode_escape").decode("ascii").replace('"', '\\"') + '"'
        if value.isprintable():
            text = f'"{value}"'
    elif isinstance(value, bool) or value is None:
        text = {True: "true", False: "false", None: "null"}[value]
    else:
        text = repr(value)
    return text if len(text) <= most else text[: most - 1] + "…"
