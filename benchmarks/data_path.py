"""How many samples a second come out of an array in memory, of one in its file, and of a user's Dataset?

Images of 3 x 32 x 32 bytes, 10 classes, in batches of 128 and an order of their own in each epoch; no model. memory: a
uint8 array. map: a .npy file in the page cache; rows of a memmap by hand, and the same some batches ahead in a thread.
disk: the same file, which the system was asked to forget before the one epoch that is measured. samples: a Dataset that
reads one row of the file and turns it by a coin. batches: the same with `__getitems__`, which reads the rows of a batch
at once. Elsewhere the first epoch is left out. What fitkit adds to a user's Dataset is a seed for each sample, and for
each batch of one that reads batches, so that what they draw depends on (seed, epoch, sample) alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.measure import Benchmark, Target, Value

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from benchmarks.measure import Numbers

BATCH, SHAPE = 128, (3, 32, 32)


class Case(NamedTuple):
    name: str
    rows: int = 40_000
    epochs: int = 3


NAMES = ("memory", "map", "disk", "samples", "batches")
MAPS, DATASETS = ("map", "disk"), ("samples", "batches")
BENCHMARK = Benchmark(
    cases={name: Case(name) for name in NAMES},
    quick={name: Case(name, 1_000, 1) for name in NAMES},
    values=[Value("rate", "samples a second", ",.0f", more=True)],
    runs=3,
    threads=1,
    ratio="times the speed of",
    targets=[
        Target("S6", "fitkit", "DataLoader", 10, case="memory"),
        Target("S6", "fitkit", "rows of a memmap", 0.95, case="map"),
        Target("S6", "fitkit", "rows, a thread ahead", 0.95, case="disk"),
        Target("S6", "fitkit", "DataLoader", 0.95, case="samples"),
        Target("S6", "fitkit", "DataLoader", 0.95, case="batches"),
    ],
)


def measure(case: Case, batches_of: Callable[[Path], Callable[[int], Any]]) -> Numbers:
    """Write the files, and return the rate of the batches that a program makes of them, epoch by epoch."""
    import statistics
    import tempfile
    import time
    from pathlib import Path

    import torch

    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        make_files(folder, case.rows)
        epoch_of = batches_of(folder)
        if case.name == "disk":  # later the pages of a map stay
            forget(folder)
        rates = []
        for epoch in range(1, case.epochs + 2 if case.name != "disk" else 2):
            begun, samples, check = time.perf_counter(), 0, 0
            for x, y in epoch_of(epoch):
                samples += len(x)
                check += int(y[0])
            rates.append(samples / (time.perf_counter() - begun))
    return {"rate": statistics.median(rates[1:] or rates)}


def make_files(folder: Path, rows: int) -> None:
    """Write x.npy and y.npy, a piece at a time."""
    import os

    import numpy as np

    random = np.random.default_rng(0)
    x = np.lib.format.open_memmap(folder / "x.npy", "w+", np.uint8, (rows, *SHAPE))
    for start in range(0, rows, 10_000):
        x[start : start + 10_000] = random.integers(0, 256, x[start : start + 10_000].shape, np.uint8)
    x.flush()
    np.save(folder / "y.npy", np.arange(rows) % 10)
    os.sync()


def forget(folder: Path) -> None:
    """Ask the system to drop the file from its page cache."""
    import os

    with (folder / "x.npy").open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def arrays(folder: Path, mode: Any = None) -> tuple[Any, Any]:
    import numpy as np
    import torch

    return np.load(folder / "x.npy", mmap_mode=mode), torch.from_numpy(np.load(folder / "y.npy"))


@BENCHMARK.program("DataLoader", cases=["memory", *DATASETS])
def loader(case: Case) -> Numbers:
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    def batches_of(folder: Path) -> Any:
        if case.name == "memory":
            x, y = arrays(folder)
            dataset: Any = TensorDataset(torch.from_numpy(x), y)
        else:
            dataset = dataset_of(folder, case)
        made = DataLoader(dataset, batch_size=BATCH, shuffle=True)
        return lambda epoch: made

    return measure(case, batches_of)


@BENCHMARK.program("gathered by index", cases=["memory"])
def gathered(case: Case) -> Numbers:
    import torch

    def batches_of(folder: Path) -> Any:
        x, y = arrays(folder)
        x = torch.from_numpy(x)
        return lambda epoch: ((x.index_select(0, r), y.index_select(0, r)) for r in torch.randperm(len(x)).split(BATCH))

    return measure(case, batches_of)


def rows_of_map(folder: Path) -> Any:
    import torch

    x, y = arrays(folder, "r")
    return lambda epoch: ((torch.from_numpy(x[r.numpy()]), y[r]) for r in torch.randperm(len(x)).split(BATCH))


@BENCHMARK.program("rows of a memmap", cases=MAPS)
def mapped(case: Case) -> Numbers:
    return measure(case, rows_of_map)


@BENCHMARK.program("rows, a thread ahead", cases=MAPS)
def ahead(case: Case) -> Numbers:
    import queue
    import threading

    def batches_of(folder: Path) -> Any:
        read = rows_of_map(folder)

        def epoch(number: int) -> Any:
            waiting: queue.Queue[Any] = queue.Queue(maxsize=8)
            end = object()

            def run() -> None:
                for batch in read(number):
                    waiting.put(batch)
                waiting.put(end)

            threading.Thread(target=run, daemon=True).start()
            while (batch := waiting.get()) is not end:
                yield batch

        return epoch

    return measure(case, batches_of)


def dataset_of(folder: Path, case: Case) -> Any:
    import torch
    from torch.utils.data import Dataset

    x, y = arrays(folder, "r")

    class Turned(Dataset):
        def __len__(self) -> int:
            return len(x)

        def __getitem__(self, row: int) -> Any:
            image = torch.from_numpy(x[row].copy()).float() / 255
            return (image.flip(2) if torch.rand(()) < 0.5 else image), y[row]

    class Batches(Turned):
        def __getitem__(self, row: int) -> Any:
            return self.__getitems__([row])[0]

        def __getitems__(self, rows: list[int]) -> Any:
            images = torch.from_numpy(x[rows]).float() / 255
            turned = (torch.rand(len(rows)) < 0.5)[:, None, None, None]
            return list(zip(torch.where(turned, images.flip(3), images), y[rows], strict=True))

    return Batches() if case.name == "batches" else Turned()


@BENCHMARK.program("fitkit")
def own(case: Case) -> Numbers:
    import torch

    import fitkit

    def batches_of(folder: Path) -> Any:
        data: Any = "arrays"
        given: Any = None
        if case.name == "memory":
            x, y = arrays(folder)
            data, given = {"arrays": {"transform": "scale"}}, (torch.from_numpy(x), y)
        elif case.name in MAPS:
            paths = {name: str(folder / f"{name}.npy") for name in ("x", "y")}
            data = {"npy": {**paths, "read": "map", "transform": {"scale": {"range": [0, 255]}}}}
        else:
            given = {"train": dataset_of(folder, case)}
        spec = {"data": data, "fit": {"batch_size": BATCH, "device": "cpu"}}
        if not isinstance(given, dict):
            spec["splits"] = {"random": {"val": 0}}
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 10))
        train = fitkit.build(spec, model=model, data=given).train
        return lambda epoch: train.shuffled(0, epoch)

    return measure(case, batches_of)
