"""Batches of a `Dataset` or `DataLoader` of the user, through torch's loader.

The order of an epoch is a function of (seed, epoch); what a sample's own code draws, of (seed, epoch, sample); what a
`collate_fn`, or a `__getitems__` that reads whole batches, draws, of (seed, epoch, batch). None of it depends on the
number of workers.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import warnings
from collections.abc import Callable, Iterator, Sized
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    StackDataset,
    Subset,
    default_collate,
)

from fitkit.engine.batches import Batch
from fitkit.engine.seeds import BATCH, SAMPLE, derive, derive_state, kept_random_state, order, seed_sample
from fitkit.engine.workers import StartWorker, fault_of_reading, fault_of_rows, start_workers
from fitkit.errors import DataError, FitkitError, listing

END = object()  # a collate_fn may return None
KEPT = ("pin_memory", "timeout", "worker_init_fn", "multiprocessing_context", "prefetch_factor")  # of the user's loader


class LoaderBatches:
    """One part of the data as batches that a loader reads.

    A loader that shuffles plainly, or goes in order, has its sampling replaced by ours; a sampler of another kind is
    kept, and seeded. A dataset with `__getitems__(rows)` reads a batch at once. The process's own random state is left
    as it was.
    """

    def __init__(
        self,
        source: Dataset[Any] | DataLoader[Any],
        *,
        batch_size: int,
        device: torch.device,
        dtype: torch.dtype | None = None,
        rows: Tensor | None = None,
        workers: int = 0,
        name: str = "data",
    ) -> None:
        loader = source if isinstance(source, DataLoader) else None
        dataset: Any = source if loader is None else loader.dataset
        self.dataset, self.device, self.name = dataset, device, name
        self.dtype = dtype  # of floats in x, as the model takes them; None leaves them as they are
        self.batch_size = batch_size if loader is None else loader.batch_size or batch_size
        self.iterable = isinstance(dataset, IterableDataset)
        own: dict[str, Any] = {"num_workers": workers, "persistent_workers": workers > 0 and not self.iterable}
        self.options = own if loader is None else _options(loader)
        if device.type == "cuda" and self.options["num_workers"]:  # by a thread; without workers, where it is sent
            self.options["pin_memory"] = True
        if self.iterable and loader is None and workers:
            warnings.warn(
                "each worker would read the whole of a dataset that is only iterated: using none", stacklevel=2
            )
            self.options["num_workers"] = 0
        if loader is not None and loader.batch_sampler is None:
            raise DataError(
                f"{name}: a loader with batch_size=None yields what its dataset batches. Give a batch_size."
            )
        if self.iterable:  # workers that live on would keep the state of their generators from epoch to epoch
            self.options["persistent_workers"] = False
        self.collate: Callable[..., Any] = default_collate if loader is None else loader.collate_fn
        self.samples: int | None = None
        self.per_epoch: int | None = None
        self.plan: _Plan | None = None
        if not self.iterable:
            all_rows = torch.arange(len(dataset)) if rows is None else rows.cpu()
            self.plan = _Plan(loader, all_rows, self.batch_size, reads_batches(dataset))
            self.samples, self.per_epoch = self.plan.samples, self.plan.per_epoch
            if rows is not None and self.plan.chooses_rows:
                raise DataError(
                    f"{name}: the loader's sampler chooses the rows itself, so they cannot be split. Give "
                    'data={"train": loader, "val": loader}.'
                )
        self.options["worker_init_fn"] = StartWorker(self.options.get("worker_init_fn"))
        self._loader: DataLoader[Any] | None = None

    def shuffled(self, seed: int, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of a training epoch from number `start` on; the last may be smaller, or is left out.

        Data that can only be iterated is read from its beginning again, and the first `start` batches are dropped.
        """
        batches = self._batches(seed, epoch, True, start)
        return itertools.islice(batches, start, None) if self.iterable else batches

    def in_order(self) -> Iterator[Batch]:
        """Yield every sample of this part once, in its own order: nothing is dropped."""
        return self._batches(0, 0, False, 0)

    def _batches(self, seed: int, epoch: int, training: bool, start: int) -> Iterator[Batch]:
        if self._loader is None:
            self._loader = self._make_loader()
        if self.plan is not None:
            self.plan.set(seed, epoch, training, start)
        loader = self._loader
        if loader.generator is not None:
            loader.generator.manual_seed(derive(seed, SAMPLE, epoch))
        if self.iterable:
            self._loader = None
        for batch in self._read(loader):
            yield self._pair(batch)

    def _read(self, loader: DataLoader[Any]) -> Iterator[Any]:
        """Yield what the loader does; raises DataError when the user's code fails or a worker dies."""
        drawn = self.plan is not None and not loader.num_workers  # here, by generators that are seeded for each sample
        try:
            batches = start_workers(loader)
            while True:
                with kept_random_state() if drawn else contextlib.nullcontext():
                    batch = next(batches, END)
                if batch is END:
                    return
                yield batch
        except Exception as error:
            self._loader = None  # its workers are gone, or stand in the middle of an epoch
            if isinstance(error, FitkitError) and not loader.num_workers:
                raise
            raise fault_of_reading(error, self.name, loader) from error

    def _make_loader(self) -> DataLoader[Any]:
        # A loader draws a base seed from the global generator at every iter() unless it has its own.
        options: dict[str, Any] = {**self.options, "generator": torch.Generator()}
        if self.plan is None:
            return DataLoader(self.dataset, batch_size=self.batch_size, collate_fn=self.collate, **options)
        assembled = self.collate is default_collate
        seeded = _Batched(self.dataset, self.name, assembled) if self.plan.whole else _Seeded(self.dataset, self.name)
        collate: Any = _SeededCollate(self.collate)
        return DataLoader(seeded, batch_sampler=self.plan, collate_fn=collate, **options)

    def _pair(self, batch: Any) -> Batch:
        if not isinstance(batch, tuple | list) or len(batch) != 2 or not all(isinstance(b, Tensor) for b in batch):
            kind = f"a {type(batch).__name__}" + (f" of {len(batch)}" if isinstance(batch, tuple | list) else "")
            raise DataError(
                f"{self.name}: a sample must be a pair (x, y) of tensors or numbers, but a batch is {kind}."
            )
        x, y = batch
        if self.device.type == "cuda":  # first, since what is converted would not be pinned
            x, y = self._sent(x), self._sent(y)
        x = x.to(self.dtype) if self.dtype is not None and x.is_floating_point() else x
        return x.to(self.device), y.to(self.device)

    def _sent(self, tensor: Tensor) -> Tensor:
        """Return a tensor on the GPU, to which it is copied while the host goes on."""
        if tensor.device.type == "cpu" and tensor.layout is torch.strided and not tensor.is_pinned():
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)


def _options(loader: DataLoader[Any]) -> dict[str, Any]:
    options = {name: getattr(loader, name) for name in KEPT}
    return {**options, "num_workers": loader.num_workers, "persistent_workers": loader.persistent_workers}


class _Plan:
    """A batch sampler that yields (row, seed) pairs, so that a worker knows what to seed a sample with.

    Where batches are read as a `whole`, all rows of one have its seed.
    """

    def __init__(self, loader: DataLoader[Any] | None, rows: Tensor, batch_size: int, whole: bool) -> None:
        self.rows, self.batch_size, self.whole = rows, batch_size, whole
        self.shuffle, self.drop_last = True, False
        self.sampler: Any = None  # of rows, where the user's is not plain
        self.batch_sampler: Any = None  # of whole batches, where the user's is not plain
        if loader is not None:
            self._take(loader)
        self.samples, self.per_epoch = self._count()
        self.set(0, 0, False, 0)

    def _count(self) -> tuple[int | None, int | None]:
        """Return the samples and the batches of a training epoch, None where only drawing tells."""
        if self.batch_sampler is not None:
            return None, _length(self.batch_sampler)
        samples = len(self.rows) if self.sampler is None else _length(self.sampler)
        if samples is None:
            return None, None
        whole, rest = divmod(samples, self.batch_size)
        return samples, whole + (rest > 0 and not self.drop_last)

    def _take(self, loader: DataLoader[Any]) -> None:
        batches: Any = loader.batch_sampler
        if type(batches) is not BatchSampler:
            self.batch_sampler = batches
            return
        self.batch_size, self.drop_last, sampler = batches.batch_size, batches.drop_last, batches.sampler
        dataset: Any = loader.dataset
        plain = type(sampler) in (RandomSampler, SequentialSampler) and _length(sampler) == len(dataset)
        self.shuffle = type(sampler) is RandomSampler
        if not plain or getattr(sampler, "replacement", False):
            self.sampler = sampler

    @property
    def chooses_rows(self) -> bool:
        """Whether the user's sampler says which rows there are."""
        return self.sampler is not None or self.batch_sampler is not None

    def set(self, seed: int, epoch: int, training: bool, start: int) -> None:
        self.seed, self.epoch, self.training, self.start = seed, epoch, training, start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return copy.copy(self)._keys()  # of its own: an evaluation may begin while this iteration is under way

    def _keys(self) -> Iterator[list[tuple[int, int]]]:
        batches = self._drawn(self.batch_sampler) if self.batch_sampler is not None else self._cut()
        state = derive_state(self.seed, SAMPLE, self.epoch)
        for number, batch in itertools.islice(enumerate(batches), self.start, None):
            if self.whole:
                seed = derive(self.seed, BATCH, self.epoch, number)
                yield [(row, seed) for row in batch]
            else:
                yield [(row, derive(state, row)) for row in batch]

    def _cut(self) -> Iterator[list[int]]:
        if self.sampler is not None:
            rows = torch.tensor(list(self._drawn(self.sampler)), dtype=torch.int64)
        else:
            rows = order(self.rows, self.seed, self.epoch) if self.training and self.shuffle else self.rows
        for start in range(0, len(rows), self.batch_size):
            part = rows[start : start + self.batch_size]
            if len(part) == self.batch_size or not (self.training and self.drop_last):
                yield part.tolist()

    def _drawn(self, own: Any) -> Iterator[Any]:
        """Yield what the user's sampler draws, seeded by (seed, epoch)."""
        inner: Any = getattr(own, "sampler", None)
        for sampler in (own, inner):
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(self.epoch)
            generator = getattr(sampler, "generator", None)
            if isinstance(generator, torch.Generator):
                generator.manual_seed(derive(self.seed, SAMPLE, self.epoch))
        with kept_random_state():  # a sampler without a generator draws from the global ones
            seed_sample(derive(self.seed, SAMPLE, self.epoch))
            drawn = list(own)
        yield from drawn


def _length(sampler: Any) -> int | None:
    return len(sampler) if isinstance(sampler, Sized) else None


class _Seeded(Dataset[Any]):
    """A dataset whose samples are read with `random`, NumPy and torch seeded for each of them."""

    def __init__(self, dataset: Dataset[Any], name: str) -> None:
        self.dataset, self.name = dataset, name

    def __getitems__(self, keys: list[tuple[int, int]]) -> tuple[int, list[Any]]:
        return keys[0][1], [self._read(row, seed) for row, seed in keys]

    def _read(self, row: int, seed: int) -> Any:
        seed_sample(seed)
        try:
            return self.dataset[row]
        except FitkitError:
            raise
        except Exception as error:
            raise fault_of_rows(error, self.name, f"row {row}") from error


class _Batched(Dataset[Any]):
    """A dataset that reads whole batches by its own `__getitems__`, with `random`, NumPy and torch seeded for each."""

    def __init__(self, dataset: Dataset[Any], name: str, assembled: bool) -> None:
        self.dataset, self.name = dataset, name
        self.assembled = assembled  # torch puts the samples together; a collate_fn of the user's takes what it is given

    def __getitems__(self, keys: list[tuple[int, int]]) -> tuple[int, Any]:
        rows, seed = [row for row, _ in keys], keys[0][1]
        seed_sample(seed)
        samples = self._read(rows)
        found = len(samples) if isinstance(samples, Sized) else None
        if self.assembled and found != len(rows):
            returned = f"a {type(samples).__name__}" if found is None else f"{found} samples"
            raise DataError(
                f"{self.name}: __getitems__ returned {returned} for {len(rows)} rows: it must return a list with one "
                "sample (x, y) a row, in their order."
            )
        return seed, samples

    def _read(self, rows: list[int]) -> Any:
        dataset: Any = self.dataset
        try:
            return dataset.__getitems__(rows)
        except FitkitError:
            raise
        except Exception as error:
            raise fault_of_rows(error, self.name, f"rows {listing(map(str, rows), 4)}") from error


def reads_batches(dataset: Any) -> bool:
    """Tell whether a dataset's own code reads whole batches, by `__getitems__`.

    torch's wrappers have that method always, and hand on to their datasets', if these have one. A class that overrides
    `__getitem__` of one with both, and not `__getitems__`, is read by what it overrides.
    """
    kind = type(dataset)
    batch: Any = getattr(kind, "__getitems__", None)
    if batch is not None and batch is getattr(Subset, "__getitems__", None):
        return reads_batches(dataset.dataset)
    if batch is not None and batch is getattr(StackDataset, "__getitems__", None):
        within = dataset.datasets
        return all(map(reads_batches, within.values() if isinstance(within, dict) else within))
    others = {getattr(cls, "__getitem__", None) for cls in kind.__mro__ if getattr(cls, "__getitems__", None) is batch}
    return callable(batch) and others <= {kind.__getitem__, Dataset.__getitem__, None}


class _SeededCollate:
    """The user's `collate_fn`, called with `random`, NumPy and torch seeded by the batch's first sample."""

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self.collate = collate

    def __call__(self, read: tuple[int, list[Any]]) -> Any:
        seed, samples = read
        seed_sample(derive(seed, SAMPLE))
        return self.collate(samples)
