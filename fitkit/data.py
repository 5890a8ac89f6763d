"""What a source returns: arrays and what is known about them. No torch here: only its tensors' own methods."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from fitkit.files import MappedFile

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Target = Literal["classes", "values"]

PIECE = 1 << 24  # numbers that a check takes at a time


@dataclass(frozen=True, kw_only=True)
class Data:
    """Samples in memory, or mapped from a file, one tensor each for inputs and targets, in their own dtype.

    Without `window`, row `i` of `x` (N, ...) belongs to row `i` of `y` (N, ...). With `window`, `x` is one long
    sequence of token ids (L,), and sample `i` is `x[starts[i] : starts[i] + window]` with the same window moved on
    by one as its target; `y` is None.
    """

    x: Tensor
    y: Tensor | None
    target: Target  # "classes": whole numbers from 0; "values": real numbers
    name: str = "data"  # for messages: the source's name or the file's
    classes: Sequence[str] | None = None  # the name of each class, in the order of its number
    features: Sequence[Feature] | None = None  # how table columns became the columns of x; None: not a table
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)  # columns beside x and y: groups, times, splits
    split: Mapping[str, Sequence[int]] | None = None  # row numbers of train, val, test when the source comes split
    vocabulary: int | None = None  # how many different token ids x may hold; None: x holds measurements
    given_in_python: bool = False  # whole numbers in x then stay whole: only the caller's module knows what they are
    window: int | None = None
    starts: Tensor | None = None
    image: tuple[int, int, int] | None = None  # channels, height and width of an image that each flat sample holds
    lines: Sequence[int] | None = None  # of the file `name`: the line that each row begins in, of which the first is 1
    file: MappedFile | None = None  # x lies in this file, and is read from there batch by batch

    def __len__(self) -> int:
        return len(self.x) if self.starts is None else len(self.starts)


@dataclass(frozen=True)
class Rows:
    """Some rows of an array, (N, ...) and (n,) -> (n, ...), gathered a piece at a time: all at once may be too much.

    It has what a transform asks of a tensor: `shape`, `dtype`, `dim`, and `split` into pieces along the rows.
    """

    x: Tensor
    rows: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of all the rows."""
        return (len(self.rows), *self.x.shape[1:])

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the array."""
        return self.x.dtype

    def dim(self) -> int:
        """Return the number of dimensions."""
        return self.x.dim()

    def split(self, size: int) -> Iterator[Tensor]:
        """Yield the rows in pieces of `size`; the last may be smaller."""
        rows = self.rows.to(self.x.device)
        for start in range(0, len(rows), size):
            yield self.x.index_select(0, rows[start : start + size])


def pieces(x: Tensor) -> Iterator[Tensor]:
    """Yield views of an array (N, ...) that hold so few of its rows each that a check of them takes little memory."""
    size = max(1, PIECE // max(1, x[0].numel()))
    for start in range(0, len(x), size):
        yield x[start : start + size]


@dataclass(frozen=True)
class Feature:
    """One column of a table: a number as it is, or a text column as one 0/1 column a category."""

    name: str
    categories: tuple[str, ...] | None = None  # None: a number


@dataclass(frozen=True)
class Inputs:
    """What a model is told about its input: the shape of one sample, and the number of token ids if it holds any."""

    shape: tuple[int, ...]
    vocabulary: int | None = None
