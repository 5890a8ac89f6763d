"""How much memory does a run take beside its data?

160,000 uint8 images of 3 x 32 x 32, 469 MiB, in memory as a tensor or in a .npy file; pixels scaled to [0, 1], a linear
classifier, batch 256, SGD, one epoch, the last tenth of the rows for one validation. Peak: the largest resident set of
the process, which holds some 300 MiB of Python and torch. One copy by hand: batches gathered by index and scaled as
they are needed. Textbook: a `Dataset` that scales each sample; and one that scales everything first.
"""

from __future__ import annotations

import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from benchmarks.measure import Benchmark, Target, Value

if TYPE_CHECKING:
    from torch import Tensor, nn

    from benchmarks.measure import Numbers

TENSOR, FILE = "tensor", ".npy file"
BENCHMARK = Benchmark(
    cases={TENSOR: (TENSOR, 160_000), FILE: (FILE, 160_000)},
    quick={TENSOR: (TENSOR, 4000), FILE: (FILE, 4000)},
    values=[Value("mib", "peak, MiB", ".0f"), Value("seconds", "s"), Value("loss", "val_loss", ".3f")],
    runs=1,
    ratio="times as little as",
    targets=[Target("S10", "fitkit", "one copy by hand", 1 / 1.1)],
)
BATCH, LR = 256, 1e-3


def make(count: int) -> tuple[Tensor, Tensor]:
    import torch

    torch.manual_seed(0)
    y = torch.randint(10, (count,))
    x = torch.empty(count, 3, 32, 32, dtype=torch.uint8)
    for rows in torch.arange(count).split(1024):
        x[rows] = (torch.rand(len(rows), 3, 32, 32) * 128 + 12.8 * y[rows, None, None, None]).to(torch.uint8)
    return x, y


def make_files(count: int, folder: str) -> None:
    import numpy as np

    for name, array in zip("xy", make(count), strict=True):
        np.save(f"{folder}/{name}.npy", array.numpy())


def measured(case: tuple[str, int], work: Callable[[str, Any], float]) -> Numbers:
    """Measure `work(folder of the files, None)` or `work("", tensors)`, which trains and returns a validation loss."""
    kind, count = case
    with tempfile.TemporaryDirectory() as folder:
        if kind == FILE:  # made in another process, so that this one's peak is not that of making it
            maker = multiprocessing.get_context("spawn").Process(target=make_files, args=(count, folder))
            maker.start()
            maker.join()
        data = make(count) if kind == TENSOR else None
        begun = time.perf_counter()
        loss = work(folder, data)
        seconds = time.perf_counter() - begun
    return {"mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "seconds": seconds, "loss": loss}


def read(folder: str) -> Any:
    import numpy as np
    import torch

    return [torch.from_numpy(np.load(f"{folder}/{name}.npy")) for name in "xy"]


def network() -> nn.Module:
    import torch

    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 10))


def by_loader(train: Any, val: Any) -> float:
    """Train as the textbooks do, on Datasets of scaled samples; return the validation loss."""
    import torch
    from torch.nn.functional import cross_entropy
    from torch.utils.data import DataLoader

    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    for x, y in DataLoader(train, BATCH, shuffle=True):
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()
    with torch.inference_mode():
        return sum(cross_entropy(model(x), y).item() * len(x) for x, y in DataLoader(val, BATCH)) / len(val)


@BENCHMARK.program("textbook loop")
def textbook(case: tuple[str, int]) -> Numbers:
    from torch.utils.data import Dataset, Subset

    class Images(Dataset):
        def __init__(self, x: Tensor, y: Tensor) -> None:
            self.x, self.y = x, y

        def __len__(self) -> int:
            return len(self.x)

        def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
            return self.x[i].float() / 255, self.y[i]

    def work(folder: str, data: Any) -> float:
        images = Images(*(data or read(folder)))
        border = len(images) * 9 // 10
        return by_loader(Subset(images, range(border)), Subset(images, range(border, len(images))))

    return measured(case, work)


@BENCHMARK.program("one copy by hand")
def one_copy(case: tuple[str, int]) -> Numbers:
    def work(folder: str, data: Any) -> float:
        import torch
        from torch.nn.functional import cross_entropy

        x, y = data or read(folder)
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=LR)
        border = len(x) * 9 // 10
        for rows in torch.randperm(border).split(BATCH):
            cross_entropy(model(x[rows].float() / 255), y[rows]).backward()
            optimizer.step()
            optimizer.zero_grad()
        with torch.inference_mode():
            batches = zip(x[border:].split(BATCH), y[border:].split(BATCH), strict=True)
            return sum(cross_entropy(model(x.float() / 255), y).item() * len(x) for x, y in batches) / (len(x) - border)

    return measured(case, work)


@BENCHMARK.program("textbook, all scaled first")
def scaled_first(case: tuple[str, int]) -> Numbers:
    def work(folder: str, data: Any) -> float:
        from torch.utils.data import TensorDataset

        x, y = data or read(folder)
        x, border = x.float() / 255, len(x) * 9 // 10
        return by_loader(TensorDataset(x[:border], y[:border]), TensorDataset(x[border:], y[border:]))

    return measured(case, work)


@BENCHMARK.program("fitkit")
def ours(case: tuple[str, int]) -> Numbers:
    def work(folder: str, data: Any) -> float:
        import torch

        import fitkit

        class Scale(torch.nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x.float() / 255

        spec: dict[str, Any] = {
            "splits": {"time": {"val": 0.1}},  # the last rows
            "optimizer": {"SGD": {"lr": LR}},
            "fit": {"epochs": 1, "batch_size": BATCH, "device": "cpu"},
        }
        if data is not None:
            return fitkit.fit(spec, model=torch.nn.Sequential(Scale(), *network()), data=data)["val_loss"][-1]
        spec |= {"data": {"npy": {"x": f"{folder}/x.npy", "y": f"{folder}/y.npy"}}}
        return fitkit.fit({**spec, "model": ["Flatten", {"Linear": "outputs"}]})["val_loss"][-1]

    return measured(case, work)
