"""The words with which a signature says what a spec may put there: ranges, paths, nested components."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True)
class Range:
    """The numbers from `low` to `high`; an end is left out where `open_low` or `open_high` says so."""

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def holds(self, value: float) -> bool:
        """Tell whether `value` lies in the range."""
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below

    def __str__(self) -> str:
        parts = []
        if self.low > -math.inf:
            parts.append(f"{'more than' if self.open_low else 'at least'} {self.low:g}")
        if self.high < math.inf:
            parts.append(f"{'less than' if self.open_high else 'at most'} {self.high:g}")
        return " and ".join(parts)


@dataclass(frozen=True)
class Pattern:
    """The strings that match a regular expression as a whole; `words` says so in a message."""

    regex: str
    words: str


# What fitkit itself writes into a run folder: no callback may write there too.
RUN_FILES = frozenset(
    ["spec.yaml", "resolved.yaml", "env.json", "history.csv", "history.json", "summary.json", "model.safetensors"]
    + ["checkpoints", "test_looks.json", "data_check.json", "folds.csv", "cross_validation.json", "predictions.csv"]
)


@dataclass(frozen=True)
class InputPath:
    """A file to be read: relative to the spec's folder, which it may not leave."""


@dataclass(frozen=True)
class OutputPath:
    """A file to be written: relative to the run folder, which it may not leave."""


@dataclass(frozen=True)
class Part:
    """A component from another table, named as the tables are: "transforms"."""

    table: str


Positive = Annotated[float, Range(low=0, open_low=True)]
NonNegative = Annotated[float, Range(low=0)]
Probability = Annotated[float, Range(low=0, high=1)]  # both ends allowed
Fraction = Annotated[float, Range(low=0, high=1, open_high=True)]  # [0, 1)
PositiveInt = Annotated[int, Range(low=1)]
Depth = Annotated[int, Range(low=1, high=1000)]  # of layers that are built one by one
NonNegativeInt = Annotated[int, Range(low=0)]
ReadPath = Annotated[str, InputPath()]
WritePath = Annotated[str, OutputPath()]
