"""How many samples a second come out of an array in memory, of one in its file, and of a user's Dataset?

Images of 3 x 32 x 32 bytes, 10 classes, in batches of 128 and an order of their own in each epoch; no model. Five
tables, the first row of each a program written by hand:

    memory   a uint8 array in memory: DataLoader of a TensorDataset, tensors gathered by index, fitkit
    map      a .npy file in the page cache: the rows of a numpy.memmap, the same a few batches ahead in a thread, fitkit
    disk     the same file, which the system was asked to forget beforehand: the first epoch
    samples  a Dataset that reads one row of the file and turns it by a coin: DataLoader, fitkit
    batches  the same with __getitems__, which reads the rows of a batch at once: DataLoader, fitkit

Each run is a fresh process; the programs of a table take turns. The first epoch is left out elsewhere. `--step MS`
keeps the processor busy for so long after each batch, as a step would, so that reading ahead can show.

    python -m benchmarks.data_path [--runs 5] [--epochs 3] [--rows 60000] [--threads 2] [--step 0] [--only memory,map]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import queue
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

BATCH, SHAPE = 128, (3, 32, 32)


def make_file(folder: Path, rows: int) -> None:
    """Write x.npy and y.npy, a piece at a time."""
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
    with (folder / "x.npy").open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def arrays(folder, mode=None):
    import numpy as np
    import torch

    return np.load(folder / "x.npy", mmap_mode=mode), torch.from_numpy(np.load(folder / "y.npy"))


def built(data, given=None):
    """Return fitkit's training batches for all rows, epoch by epoch."""
    import torch

    import fitkit

    spec = {"data": data, "fit": {"batch_size": BATCH, "device": "cpu"}}
    if not isinstance(given, dict):
        spec["splits"] = {"random": {"val": 0}}
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 10))
    train = fitkit.build(spec, model=model, data=given).train
    return lambda epoch: train.shuffled(0, epoch)


def loader_of_tensors(folder):
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    x, y = arrays(folder)
    loader = DataLoader(TensorDataset(torch.from_numpy(x), y), batch_size=BATCH, shuffle=True)
    return lambda epoch: loader


def gathered(folder):
    import torch

    x, y = arrays(folder)
    x = torch.from_numpy(x)
    return lambda epoch: ((x.index_select(0, r), y.index_select(0, r)) for r in torch.randperm(len(x)).split(BATCH))


def fitkit_memory(folder):
    import torch

    x, y = arrays(folder)
    return built({"arrays": {"transform": "scale"}}, (torch.from_numpy(x), y))


def rows_of_map(folder):
    import torch

    x, y = arrays(folder, "r")
    return lambda epoch: ((torch.from_numpy(x[r.numpy()]), y[r]) for r in torch.randperm(len(x)).split(BATCH))


def rows_of_map_ahead(folder):
    read = rows_of_map(folder)

    def epoch(number):
        waiting, end = queue.Queue(maxsize=8), object()

        def run():
            for batch in read(number):
                waiting.put(batch)
            waiting.put(end)

        threading.Thread(target=run, daemon=True).start()
        while (batch := waiting.get()) is not end:
            yield batch

    return epoch


def fitkit_map(folder):
    paths = {name: str(folder / f"{name}.npy") for name in ("x", "y")}
    return built({"npy": {**paths, "read": "map", "transform": {"scale": {"range": [0, 255]}}}})


def dataset(folder, whole):
    import torch
    from torch.utils.data import Dataset

    x, y = arrays(folder, "r")

    class Turned(Dataset):
        def __len__(self):
            return len(x)

        def __getitem__(self, row):
            image = torch.from_numpy(x[row].copy()).float() / 255
            return (image.flip(2) if torch.rand(()) < 0.5 else image), y[row]

    class Batches(Turned):
        def __getitem__(self, row):
            return self.__getitems__([row])[0]

        def __getitems__(self, rows):
            images = torch.from_numpy(x[rows]).float() / 255
            turned = (torch.rand(len(rows)) < 0.5)[:, None, None, None]
            return list(zip(torch.where(turned, images.flip(3), images), y[rows], strict=True))

    return Batches() if whole else Turned()


def loader_of_dataset(folder, whole=False):
    from torch.utils.data import DataLoader

    loader = DataLoader(dataset(folder, whole), batch_size=BATCH, shuffle=True)
    return lambda epoch: loader


def loader_of_batches(folder):
    return loader_of_dataset(folder, True)


def fitkit_dataset(folder, whole=False):
    return built("arrays", {"train": dataset(folder, whole)})


def fitkit_batches(folder):
    return fitkit_dataset(folder, True)


MAPS = {"rows of a memmap": rows_of_map, "rows, a thread ahead": rows_of_map_ahead, "fitkit": fitkit_map}
TABLES = {
    "memory": {"DataLoader": loader_of_tensors, "gathered by index": gathered, "fitkit": fitkit_memory},
    "map": MAPS,
    "disk": MAPS,
    "samples": {"DataLoader": loader_of_dataset, "fitkit": fitkit_dataset},
    "batches": {"DataLoader": loader_of_batches, "fitkit": fitkit_batches},
}


def busy(seconds: float) -> None:
    """Compute for so long, as a step would, with the interpreter free for other threads most of the time."""
    import torch

    end, a = time.perf_counter() + seconds, torch.ones(128, 128)
    while time.perf_counter() < end:
        a @ a


def run(table: str, program: str, folder: Path, epochs: int, threads: int, step: float) -> None:
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    if table == "disk":  # later the pages of a map stay
        forget(folder)
        epochs = 0
    epoch_of = TABLES[table][program](folder)
    rates = []
    for epoch in range(1, epochs + 2):
        begun, samples, check = time.perf_counter(), 0, 0
        for x, y in epoch_of(epoch):
            samples += len(x)
            check += int(y[0])
            if step:
                busy(step)
        rates.append(samples / (time.perf_counter() - begun))
    print(json.dumps({"rate": statistics.median(rates[1:] or rates), "torch": torch.__version__, "samples": samples}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--step", type=float, default=0.0, help="milliseconds of computing after each batch")
    parser.add_argument("--only", default=",".join(TABLES), help="tables, with commas")
    parser.add_argument("--folder", type=Path, help="where the file lies; without it one is made, and removed")
    parser.add_argument("--program", nargs=2)
    arguments = parser.parse_args()
    if arguments.program:
        step = arguments.step / 1000
        return run(*arguments.program, arguments.folder, arguments.epochs, arguments.threads, step)
    with tempfile.TemporaryDirectory() as made:
        folder = arguments.folder or Path(made)
        if not (folder / "x.npy").exists():
            make_file(folder, arguments.rows)
        for table in arguments.only.split(","):
            measure(table, folder, arguments)


def measure(table: str, folder: Path, arguments: argparse.Namespace) -> None:
    """Print one table."""
    found: dict[str, list[dict]] = {name: [] for name in TABLES[table]}
    for _ in range(arguments.runs):
        for name in found:
            options = {"epochs": arguments.epochs, "threads": arguments.threads, "step": arguments.step}
            command = [sys.executable, "-m", "benchmarks.data_path", "--program", table, name, "--folder", str(folder)]
            command += [word for key, value in options.items() for word in (f"--{key}", str(value))]
            found[name].append(json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout))
    names = list(found)
    first = found[names[0]][0]
    print(f"\n{table}: {first['samples']:,} rows of {SHAPE} bytes, batch {BATCH}, step {arguments.step:g} ms; ", end="")
    print(f"{platform.machine()}, {arguments.threads} threads, torch {first['torch']}, ", end="")
    print(f"Python {platform.python_version()}; {arguments.runs} runs in turns, medians [min-max]\n")
    print("| program | samples a second | " + " | ".join(f"times {name}" for name in names[:-1]) + " |")
    print("| --- | --: | " + " | ".join("--:" for _ in names[:-1]) + " |")
    rates = {name: [result["rate"] for result in results] for name, results in found.items()}
    for name, values in rates.items():
        spread = f"{statistics.median(values):,.0f} [{min(values):,.0f}-{max(values):,.0f}]"
        versus = [statistics.median(a / b for a, b in zip(values, rates[n], strict=True)) for n in names[:-1]]
        print(f"| {name} | {spread} | " + " | ".join(f"{ratio:.2f}" for ratio in versus) + " |")


if __name__ == "__main__":
    main()
