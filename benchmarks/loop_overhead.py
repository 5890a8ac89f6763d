"""What does fitkit's loop cost beside one written by hand?

Digits MLP 64-128-10, 1,437 training rows, batch 32, AdamW with a cosine schedule, cross-entropy and accuracy of every
epoch, no validation. Rows: the textbook loop (DataLoader, `.item()` a batch), the lean loop (tensors gathered by index,
fused optimizer, sums on the device), fitkit eager. Each run is a fresh process; the programs take turns.

    python -m benchmarks.loop_overhead [--runs 5] [--epochs 60] [--threads 2]
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import subprocess
import sys
import time

EPOCHS_WARM, BATCH = 5, 32


def textbook(x, y, model, epochs):
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    loader = DataLoader(TensorDataset(x, y), batch_size=BATCH, shuffle=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(loader))
    for epoch in range(epochs):
        if epoch == EPOCHS_WARM:
            begun = time.perf_counter()
        loss_sum, right = 0.0, 0
        for inputs, target in loader:
            optimizer.zero_grad()
            output = model(inputs)
            loss = torch.nn.functional.cross_entropy(output, target)
            loss.backward()
            optimizer.step()
            schedule.step()
            loss_sum += loss.item() * len(inputs)
            right += (output.argmax(1) == target).sum().item()
    return time.perf_counter() - begun, loss_sum / len(x)


def lean(x, y, model, epochs):
    import torch
    from torch.nn.functional import cross_entropy

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    steps, step = epochs * -(-len(x) // BATCH), 0
    for epoch in range(epochs):
        if epoch == EPOCHS_WARM:
            begun = time.perf_counter()
        loss_sum, right = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        for rows in torch.randperm(len(x)).split(BATCH):
            optimizer.param_groups[0]["lr"] = 1e-3 * 0.5 * (1 + math.cos(math.pi * step / steps))
            inputs, target = x.index_select(0, rows), y.index_select(0, rows)
            output = model(inputs)
            loss = cross_entropy(output, target)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            loss_sum += loss.detach() * len(rows)
            right += (output.detach().argmax(1) == target).sum()
            step += 1
        result = loss_sum.item() / len(x), right.item()
    return time.perf_counter() - begun, result[0]


def fitkit_eager(x, y, model, epochs):
    import fitkit

    times = []
    watch = fitkit.LambdaCallback(on_epoch_begin=lambda trainer: times.append(time.perf_counter()))
    spec = {
        "splits": {"random": {"val": 0}},
        "optimizer": {"AdamW": {"lr": 1e-3}},
        "schedule": "cosine",
        "fit": {"epochs": epochs, "batch_size": BATCH, "device": "cpu", "compile": False},
    }
    history = fitkit.fit(spec, model=model, data=(x, y), callbacks=[watch])
    return time.perf_counter() - times[EPOCHS_WARM], history["loss"][-1]


PROGRAMS = {"textbook": textbook, "lean": lean, "fitkit": fitkit_eager}


def run(name: str, epochs: int, threads: int) -> None:
    import torch

    from fitkit.parts.sources import digits

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    data = digits()
    x, y = data.x[:1437].float() / 16, data.y[:1437].long()
    model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
    seconds, loss = PROGRAMS[name](x, y, model, epochs)
    steps = (epochs - EPOCHS_WARM) * -(-len(x) // BATCH)
    print(json.dumps({"us_per_step": seconds / steps * 1e6, "loss": loss, "torch": torch.__version__}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--program", choices=PROGRAMS)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.program:
        return run(arguments.program, arguments.epochs, arguments.threads)
    found: dict[str, list[dict]] = {name: [] for name in PROGRAMS}
    for _ in range(arguments.runs):
        for name in PROGRAMS:
            options = ["--program", name, "--epochs", str(arguments.epochs), "--threads", str(arguments.threads)]
            command = [sys.executable, "-m", "benchmarks.loop_overhead", *options]
            found[name].append(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    version = found["lean"][0]["torch"]
    print(
        f"{platform.machine()}, {arguments.threads} threads, torch {version}, Python {platform.python_version()}; ",
        end="",
    )
    print(f"fp32, batch {BATCH}, {arguments.epochs} epochs, {arguments.runs} runs in turns, medians [min-max]\n")
    print("| program | µs a step | times the textbook's speed | times the lean loop's | last loss |")
    print("| --- | --: | --: | --: | --: |")
    times = {name: [result["us_per_step"] for result in results] for name, results in found.items()}
    for name, values in times.items():
        versus = [
            statistics.median(a / b for a, b in zip(times[other], values, strict=True))
            for other in ("textbook", "lean")
        ]
        spread = f"{statistics.median(values):.0f} [{min(values):.0f}-{max(values):.0f}]"
        print(f"| {name} | {spread} | {versus[0]:.2f} | {versus[1]:.2f} | {found[name][0]['loss']:.4f} |")


if __name__ == "__main__":
    main()
