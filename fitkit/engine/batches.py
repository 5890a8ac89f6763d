"""Batches: from samples to (x, y) on the device. Arrays are gathered by index, all else goes through torch's loader.

The order of an epoch is a function of (seed, epoch); so is what a sample's own code draws, of (seed, epoch, sample).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sized
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, SequentialSampler

from fitkit.engine.seeds import SAMPLE, derive, kept_random_state, order, seed_sample
from fitkit.errors import DataError

Batch = tuple[Tensor, Tensor]


class Batches(Protocol):
    """What the loop iterates over: one part of the data, in batches, on the device."""

    samples: int | None  # None when only iterating tells
    batch_size: int
    per_epoch: int | None  # batches of a training epoch; None when only iterating tells

    def shuffled(self, seed: int, epoch: int) -> Iterator[Batch]:
        """Yield the batches of a training epoch; the last may be smaller."""

    def in_order(self) -> Iterator[Batch]:
        """Yield every sample once, in its own order."""


class ArrayBatches:
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
        self.x, self.y, self.tokens = x, y, tokens
        self.rows = torch.arange(count, device=x.device) if rows is None else rows.to(x.device)
        self.batch_size = batch_size
        self.samples: int | None = len(self.rows)
        self.per_epoch: int | None = -(-len(self.rows) // batch_size)
        self.starts = None if starts is None else starts.to(x.device)
        self.span = torch.arange((window or 0) + 1, device=x.device)

    def gather(self, rows: Tensor) -> Batch:  # (B,) -> (B, ...), (B, ...)
        """Return the samples with these row numbers."""
        if self.starts is not None:
            at = self.starts.index_select(0, rows)[:, None] + self.span
            tokens = self.x[at].long()
            return tokens[:, :-1], tokens[:, 1:]
        assert self.y is not None
        x = self.x.index_select(0, rows)
        return x.long() if self.tokens else x, self.y.index_select(0, rows)

    def _slices(self, rows: Tensor) -> Iterator[Batch]:
        gather, size = self.gather, self.batch_size
        for start in range(0, len(rows), size):
            yield gather(rows[start : start + size])

    def shuffled(self, seed: int, epoch: int) -> Iterator[Batch]:
        """Yield the batches of a training epoch; the last may be smaller."""
        return self._slices(order(self.rows, seed, epoch))

    def in_order(self) -> Iterator[Batch]:
        """Yield every sample once, in its own order."""
        return self._slices(self.rows)


class LoaderBatches:
    """Batches of a `Dataset` or `DataLoader` of the user, through torch's loader.

    A loader's sampling is replaced by ours where it shuffles or goes in order, so that an epoch's order is a function
    of (seed, epoch); a sampler of the user's own is kept. Every sample's code finds `random`, NumPy and torch seeded
    by (seed, epoch, sample), whatever the number of workers, and the process's own random state is left as it was.
    """

    def __init__(
        self,
        source: Dataset[Any] | DataLoader[Any],
        *,
        batch_size: int,
        device: torch.device,
        rows: Tensor | None = None,
        workers: int = 0,
        name: str = "data",
    ) -> None:
        loader = source if isinstance(source, DataLoader) else None
        dataset = loader.dataset if loader is not None else source
        assert not isinstance(dataset, DataLoader)
        self.device, self.name = device, name
        self.collate: Callable[..., Any] | None = loader.collate_fn if loader else None
        self.workers = loader.num_workers if loader else workers
        self.batch_size = (loader.batch_size or batch_size) if loader else batch_size
        self.iterable = isinstance(dataset, IterableDataset)
        self.shuffle, self.own_sampler, self.drop_last = True, None, False
        if loader is not None and not self.iterable:
            self.shuffle = isinstance(loader.sampler, RandomSampler)
            known = isinstance(loader.sampler, RandomSampler | SequentialSampler) and loader.batch_size is not None
            self.own_sampler = None if known else loader.batch_sampler
            self.drop_last = bool(loader.drop_last)
        self.dataset = dataset
        self.samples: int | None = None
        self.per_epoch: int | None = None
        if not self.iterable:
            self.rows = torch.arange(len(dataset)) if rows is None else rows.cpu()  # type: ignore[arg-type]
            self._count()
        self._loader: DataLoader[Any] | None = None

    def _count(self) -> None:
        if self.own_sampler is not None:
            self.per_epoch = len(self.own_sampler) if isinstance(self.own_sampler, Sized) else None
            return
        self.samples = len(self.rows)
        whole, rest = divmod(self.samples, self.batch_size)
        self.per_epoch = whole + (rest > 0 and not self.drop_last)

    def shuffled(self, seed: int, epoch: int) -> Iterator[Batch]:
        """Yield the batches of a training epoch; the last may be smaller, or is left out if the loader drops it."""
        return self._batches(seed, epoch, self.shuffle, self.drop_last, self.own_sampler)

    def in_order(self) -> Iterator[Batch]:
        """Yield every sample once, in its own order: nothing is dropped."""
        return self._batches(0, 0, False, False, None)

    def _batches(self, seed: int, epoch: int, shuffle: bool, drop_last: bool, own: Any) -> Iterator[Batch]:
        if self._loader is None:
            self._loader = self._make_loader()
        plan = self._loader.batch_sampler
        if isinstance(plan, _Plan):
            plan.set(seed, epoch, shuffle, drop_last, own)
        if self._loader.generator is not None:
            self._loader.generator.manual_seed(derive(seed, SAMPLE, epoch))
        for batch in self._loader:
            yield self._pair(batch)

    def _make_loader(self) -> DataLoader[Any]:
        # A loader draws a base seed from the global generator at every iter() unless it has its own.
        common: dict[str, Any] = {"num_workers": self.workers, "collate_fn": self.collate}
        common |= {"generator": torch.Generator(), "persistent_workers": self.workers > 0}
        if self.iterable:
            return DataLoader(self.dataset, batch_size=self.batch_size, **common)
        plan = _Plan(self.rows, self.batch_size)
        return DataLoader(_Seeded(self.dataset), batch_sampler=plan, **common)

    def _pair(self, batch: Any) -> Batch:
        if not isinstance(batch, tuple | list) or len(batch) != 2 or not all(isinstance(b, Tensor) for b in batch):
            kind = f"a {type(batch).__name__}" + (f" of {len(batch)}" if isinstance(batch, tuple | list) else "")
            raise DataError(
                f"{self.name}: a sample must be a pair (x, y) of tensors or numbers, but a batch is {kind}."
            )
        return batch[0].to(self.device, non_blocking=True), batch[1].to(self.device, non_blocking=True)


class _Plan:
    """A batch sampler that yields (row, seed) pairs, so that a worker knows what to seed a sample with."""

    def __init__(self, rows: Tensor, batch_size: int) -> None:
        self.rows, self.batch_size = rows, batch_size
        self.set(0, 0, False, False, None)

    def set(self, seed: int, epoch: int, shuffle: bool, drop_last: bool, own: Any) -> None:
        self.seed, self.epoch, self.shuffle, self.drop_last, self.own = seed, epoch, shuffle, drop_last, own

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for batch in self._own_order() if self.own is not None else self._order():
            yield [(row, derive(self.seed, SAMPLE, self.epoch, row)) for row in batch]

    def _order(self) -> Iterator[list[int]]:
        rows = order(self.rows, self.seed, self.epoch) if self.shuffle else self.rows
        for part in torch.split(rows, self.batch_size):
            if len(part) == self.batch_size or not self.drop_last:
                yield part.tolist()

    def _own_order(self) -> Iterator[list[int]]:
        for sampler in (self.own, getattr(self.own, "sampler", None)):
            if sampler is None:
                continue
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(self.epoch)
            if isinstance(getattr(sampler, "generator", None), torch.Generator):
                sampler.generator.manual_seed(derive(self.seed, SAMPLE, self.epoch))
        with torch.random.fork_rng(devices=[]):  # a sampler without a generator draws from the global one
            torch.manual_seed(derive(self.seed, SAMPLE, self.epoch))
            yield from [list(batch) for batch in self.own]


class _Seeded(Dataset[Any]):
    """A dataset whose samples are read with `random`, NumPy and torch seeded for each of them."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __getitems__(self, keys: list[tuple[int, int]]) -> list[Any]:
        with kept_random_state():
            return [self._read(row, seed) for row, seed in keys]

    def _read(self, row: int, seed: int) -> Any:
        seed_sample(seed)
        return self.dataset[row]
