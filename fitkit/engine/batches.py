"""Batches of data in memory: one copy on the device, gathered by index; an epoch's order is f(seed, epoch)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from fitkit.engine.augment import Augment
from fitkit.engine.seeds import order

Batch = tuple[Tensor, Tensor]


class Batches(Protocol):
    """What the loop iterates over: one part of the data, in batches, on the device."""

    samples: int | None  # None when only iterating tells
    batch_size: int
    per_epoch: int | None  # batches of a training epoch; None when only iterating tells

    def shuffled(self, seed: int, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of a training epoch from number `start` on; the last may be smaller."""

    def in_order(self) -> Iterator[Batch]:
        """Yield every sample once, in its own order."""


class RowBatches:
    """Some rows of arrays that are at hand, (N, ...) and (N, ...), in batches; subclasses say how they are gathered.

    `starts` is where each window begins, or None. `augment` is what the samples of a training epoch go through; those
    in order never do.
    """

    starts: Tensor | None = None
    augment: Augment | None = None

    def __init__(self, x: Tensor, y: Tensor | None, rows: Tensor, batch_size: int) -> None:
        self.x, self.y, self.rows, self.batch_size = x, y, rows, batch_size
        self.samples: int | None = len(rows)
        self.per_epoch: int | None = -(-len(rows) // batch_size)

    def _slices(self, rows: Tensor, training: bool) -> Iterator[Batch]:
        """Yield the samples with these row numbers in batches, augmented for training."""
        raise NotImplementedError

    def order(self, seed: int, epoch: int) -> Tensor:
        """Begin a training epoch: return its rows in their order (N,)."""
        if self.augment is not None:
            self.augment.begin(seed, epoch)
        return order(self.rows, seed, epoch)

    def shuffled(self, seed: int, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of a training epoch from number `start` on; the last may be smaller."""
        return self._slices(self.order(seed, epoch)[start * self.batch_size :], training=True)

    def in_order(self) -> Iterator[Batch]:
        """Yield every sample once, in its own order."""
        return self._slices(self.rows, training=False)

    def at(self, rows: Tensor) -> Iterator[Batch]:
        """Yield the samples with these row numbers (n,), in their order."""
        return self._slices(rows, training=False)


class ArrayBatches(RowBatches):
    """Batches of arrays in memory: one copy on the device in its own dtype, gathered by index.

    Args:
        x: samples (N, ...), or with `window` one sequence of token ids (L,).
        y: targets (N, ...); None with `window`.
        rows: the rows of this part (n,), int64; None for all.
        tokens: x holds token ids, which are gathered as int64.
        starts: where each window begins (N,); only with `window`.
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor | None,
        *,
        batch_size: int,
        rows: Tensor | None = None,
        tokens: bool = False,
        window: int | None = None,
        starts: Tensor | None = None,
    ) -> None:
        count = len(x) if starts is None else len(starts)
        rows = torch.arange(count, device=x.device) if rows is None else rows.to(x.device)
        super().__init__(x, y, rows, batch_size)
        self.tokens = tokens
        self.starts = None if starts is None else starts.to(x.device)
        self.span = torch.arange((window or 0) + 1, device=x.device)

    def gather(self, rows: Tensor) -> Batch:  # (B,) -> (B, ...), (B, ...)
        """Return the samples with these row numbers for training, as the epoch of the last `order` sees them."""
        x, y = self.plain(rows)
        return x if self.augment is None else self.augment(x, rows), y

    def plain(self, rows: Tensor) -> Batch:  # (B,) -> (B, ...), (B, ...)
        """Return the samples with these row numbers as they are."""
        if self.starts is not None:
            at = self.starts.index_select(0, rows)[:, None] + self.span
            tokens = self.x[at].long()
            return tokens[:, :-1], tokens[:, 1:]
        assert self.y is not None
        x = self.x.index_select(0, rows)
        return x.long() if self.tokens else x, self.y.index_select(0, rows)

    def _slices(self, rows: Tensor, training: bool) -> Iterator[Batch]:
        gather, size = self.gather if training else self.plain, self.batch_size
        for start in range(0, len(rows), size):
            yield gather(rows[start : start + size])
