"""Batches of an array that stays in its file: where a read waits for the disk, a thread gathers some batches ahead.

From the page cache each batch is gathered when it is asked for: a thread would take longer to hand it over, and put it
where the processor has to fetch it again. What is gathered is a function of the rows alone, so the thread changes no
number. It is one thread for one read, which ends by itself: nothing is left over when an epoch is left early, by an
error or by a signal.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from fitkit.engine.batches import Batch, RowBatches
from fitkit.files import MappedFile, too_much

READ_BYTES, MOST_BATCHES = 8 << 20, 64  # that one read takes at most, if a batch is not larger
# Beyond these a read is not one of memory. Measured on a local disk, rows of 3 kB in random order: 0.7 to 1.4 million a
# second from the page cache, sorted no more; from the disk 7,000 page by page, and 50,000 where the system is told
# beforehand, which costs 2 us a row.
ROW_SECONDS, BYTES_A_SECOND = 5e-6, 1e9


class MappedBatches(RowBatches):
    """Batches of an x (N, ...) that lies in a file and of a y (N, ...) in memory, brought to the device.

    Args:
        file: the file of x; a DataError is raised when it was changed.
        rows: the rows of this part (n,), int64; None for all.
        dtype: what x becomes in a batch; None leaves it as it is.
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        *,
        file: MappedFile,
        batch_size: int,
        device: torch.device,
        dtype: torch.dtype | None = None,
        rows: Tensor | None = None,
    ) -> None:
        super().__init__(x, y, torch.arange(len(x)) if rows is None else rows.cpu(), batch_size)
        self.y: Tensor = y
        self.file, self.device, self.dtype = file, device, dtype
        self.row_bytes = x[0].numel() * x.element_size()
        # Where all fits into the page cache, the system's own reading ahead fills it sooner than single rows do.
        self.large = too_much(x.numel() * x.element_size()) is not None
        self.waits = False  # whether the last read was one of the disk

    def _slices(self, rows: Tensor, training: bool) -> Iterator[Batch]:
        placed = rows.to(self.device)
        for start, (x, y) in zip(itertools.count(0, self.batch_size), self._read_ahead(rows), strict=False):
            if training and self.augment is not None:
                x = self.augment(x, placed[start : start + self.batch_size])  # noqa: PLW2901
            yield x, y

    def _read_ahead(self, rows: Tensor) -> Iterator[Batch]:
        together = self.batch_size * max(1, READ_BYTES // max(1, self.batch_size * self.row_bytes))
        together = min(together, self.batch_size * MOST_BATCHES)
        pinned = self.device.type == "cuda"  # elsewhere an asynchronous copy may read memory that has changed
        ahead: _Ahead | None = None
        at = 0
        try:
            while at < len(rows):
                batches = self._read(rows[at : at + self.batch_size]) if ahead is None else ahead.result()
                at += sum(len(y) for _, y in batches)
                waits = (self.waits or pinned) and at < len(rows)
                ahead = _Ahead(self._read, rows[at : at + together]) if waits else None
                for x, y in batches:
                    yield x.to(self.device, non_blocking=pinned), y.to(self.device, non_blocking=pinned)
        finally:
            if ahead is not None:
                ahead.join()

    def _read(self, rows: Tensor) -> list[Batch]:  # (n,) -> (B, ...), (B, ...) a batch
        """Gather the samples with these row numbers."""
        self.file.refuse_change()
        begun = time.perf_counter()
        if self.waits and self.large:
            step = self.x.stride(0) * self.x.element_size()
            self.file.expect((row * step for row in rows.tolist()), self.row_bytes)
        batches = [self._gather(part) for part in torch.split(rows, self.batch_size)]
        seconds = time.perf_counter() - begun
        self.waits = seconds > len(rows) * (ROW_SECONDS + self.row_bytes / BYTES_A_SECOND)
        return batches

    def _gather(self, rows: Tensor) -> Batch:
        x, y = self.x.index_select(0, rows), self.y.index_select(0, rows)
        x = x if self.dtype is None else x.to(self.dtype)
        return (x.pin_memory(), y.pin_memory()) if self.device.type == "cuda" else (x, y)


class _Ahead(threading.Thread):
    """A read that goes on while the batches before are trained on."""

    def __init__(self, read: Callable[[Tensor], list[Batch]], rows: Tensor) -> None:
        super().__init__(name="fitkit-read")
        self.read, self.rows = read, rows
        self.batches: list[Batch] = []
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        """Read, and keep what came of it."""
        try:
            self.batches = self.read(self.rows)
        except Exception as error:  # raised where the batches are asked for
            self.error = error

    def result(self) -> list[Batch]:
        """Wait for the read and return its batches, or raise what it raised; a signal is heard meanwhile."""
        self.join()
        if self.error is not None:
            raise self.error
        return self.batches
