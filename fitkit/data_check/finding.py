"""What a check of the data works on, and what it finds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from fitkit.data import Feature, Target

MOST_NAMED = 3  # rows, pairs or columns that a sentence names
MOST_KEPT = 1000  # rows of a part that a finding keeps


@dataclass(frozen=True)
class Part:
    """One part of the data: the rows `rows` (n,) of x (N, ...) and y (N, ...); they may be on any device.

    Messages name a row by its line in `source` where `lines` (N,) tells it, else by its number there, counted from 0;
    in a part that was given by itself, whose `source` is None, that is its number in the part. `first` is the row of x
    that counts as 0.
    """

    name: str
    x: Tensor
    y: Tensor
    rows: Tensor
    source: str | None = "the data"
    lines: Sequence[int] | None = None
    first: int = 0

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, positions: Tensor | slice) -> Tensor:
        """Return a copy of the samples at these positions in the part, (n, ...), on their device."""
        return self.x.index_select(0, self.rows[positions].to(self.x.device))

    def numbers(self, positions: Tensor) -> Tensor:
        """Return the numbers by which the user knows the rows at these positions, from 0, on the CPU."""
        return self.rows[positions].cpu() - self.first

    def place(self, number: int, short: bool = False) -> str:
        """Name the row of a number: "line 243 of penguins.csv (train)"; `short` leaves the file out."""
        if self.source is None:
            return f"row {number} of {self.name}"
        place = f"row {number}" if self.lines is None else f"line {self.lines[number]}"
        return f"{place} ({self.name})" if short else f"{place} of {self.source} ({self.name})"

    def places(self, numbers: Tensor) -> str:
        """Name the first rows of some numbers of this part: "lines 3, 5 and 9 of penguins.csv"."""
        shown = numbers[:MOST_NAMED].tolist()
        word = "row" if self.lines is None else "line"
        named = several([str(n if self.lines is None else self.lines[n]) for n in shown], len(numbers))
        return f"{word}{'s' * (len(numbers) > 1)} {named} of {self.source or self.name}"

    @property
    def counted(self) -> str:
        """What follows rows in a sentence that are named by number."""
        return "; rows count from 0" if self.lines is None else ""

    def targets(self, positions: Tensor | slice = slice(None)) -> Tensor:
        """Return the targets at these positions in the part, (n, ...), on the CPU."""
        return self.y.index_select(0, self.rows[positions].to(self.y.device)).cpu()


@dataclass(frozen=True, kw_only=True)
class Samples:
    """What is to be checked: parts of in-memory arrays, and what is known about them.

    parts: by name, train first; all x have the same sample shape and dtype.
    target: whether y holds class numbers or values.
    features: how the columns of a table became those of x; None where x has no names.
    classes: the name of each class; None: their numbers.
    tokens: x holds token ids, which have no columns.
    in_time: later parts are later in time, so that row numbers and last values may well tell the target.
    scaled: something brings the columns to one scale before the model, or the model is code of the user's own.
    """

    parts: Mapping[str, Part]
    target: Target
    features: Sequence[Feature] | None = None
    classes: Sequence[str] | None = None
    tokens: bool = False
    in_time: bool = False
    scaled: bool = True

    def class_name(self, number: int) -> str:
        """Return what messages call a class."""
        return str(number) if self.classes is None else self.classes[number]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was found in the data.

    name: what kind of thing it is, such as "duplicates"; the same for the same kind in every run.
    level: a warning is told before the first epoch, a note only by `fitkit check SPEC --data`.
    sentence: what it is, with numbers and the first rows: by line in a CSV file, of which the header is line 1, else
        by number, counted from 0 in the data, or in a part given by itself.
    advice: what to do about it.
    rows: the rows concerned by part, of each the first thousand, counted from 0.
    columns: the columns concerned.
    """

    name: str
    level: Literal["warning", "note"]
    sentence: str
    advice: str
    rows: Mapping[str, Sequence[int]] = field(default_factory=dict)
    columns: Sequence[str] = ()

    def __str__(self) -> str:
        return f"{self.sentence}. {self.advice}"

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        rows = {part: list(numbers) for part, numbers in self.rows.items()}
        words = {"name": self.name, "level": self.level, "sentence": self.sentence, "advice": self.advice}
        return {**words, "rows": rows, "columns": list(self.columns)}


def several(names: Sequence[str], total: int | None = None) -> str:
    """Join the first few names of some `total` for a sentence: "a, b and c", or "a, b, c and 5 more"."""
    total = len(names) if total is None else total
    shown = list(names[:MOST_NAMED])
    if total > len(shown):
        return ", ".join(shown) + f" and {total - len(shown):,} more"
    return ", ".join(shown[:-1]) + " and " + shown[-1] if len(shown) > 1 else "".join(shown)


def pair(part: Part, row: int, sign: str, other: Part, twin: int) -> str:
    """Name two rows that are the same: "line 3 (val) = line 243 of penguins.csv (train)"."""
    return f"{part.place(row, short=True)} {sign} {other.place(twin)}"


def kept(rows: Tensor) -> list[int]:
    """Return the first rows of those that a finding concerns, in rising order."""
    return [int(row) for row in torch.unique(rows)[:MOST_KEPT]]


def spread_out(places: Tensor, most: int) -> Tensor:
    """Return at most so many of some places, at even distances."""
    return places[torch.linspace(0, len(places) - 1, min(most, len(places))).long()]
