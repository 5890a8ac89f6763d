"""What does fitkit's loop cost beside one written by hand?

Digits MLP 64-128-10, 1,437 training rows, batch 32, AdamW with a cosine schedule, cross-entropy and accuracy of every
epoch, no validation. Rows: the textbook loop (DataLoader, `.item()` a batch), the lean loop (tensors gathered by index,
fused optimizer, sums on the device), fitkit eager, fitkit with whole steps compiled, and where JAX is installed
(benchmarks/requirements.txt) its `jit(lax.scan)` over an epoch, the fastest peer that is known. Compilation is left out
of the steps' times and printed beside them. Each run is a fresh process; the programs take turns.

    python -m benchmarks.loop_overhead [--runs 5] [--epochs 60] [--threads 2] [--only textbook,compiled]
"""

from __future__ import annotations

import argparse
import importlib.util
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


def fitkit_eager(x, y, model, epochs, compile=False):
    import fitkit

    times = []
    watch = fitkit.LambdaCallback(on_epoch_begin=lambda trainer: times.append(time.perf_counter()))
    spec = {
        "splits": {"random": {"val": 0}},
        "optimizer": {"AdamW": {"lr": 1e-3}},
        "schedule": "cosine",
        "fit": {"epochs": epochs, "batch_size": BATCH, "device": "cpu", "compile": compile},
    }
    history = fitkit.fit(spec, model=model, data=(x, y), callbacks=[watch])
    return time.perf_counter() - times[EPOCHS_WARM], history["loss"][-1]


def fitkit_compiled(x, y, model, epochs):
    return fitkit_eager(x, y, model, epochs, compile=True)


def jax_scan(x, y, model, epochs):
    import jax
    import jax.numpy as jnp

    x, y = jnp.asarray(x.numpy()), jnp.asarray(y.numpy())
    weights = [jnp.asarray(p.detach().numpy()) for p in model.parameters()]
    state = weights, [jnp.zeros_like(w) for w in weights], [jnp.zeros_like(w) for w in weights], jnp.zeros(())
    full = len(x) // BATCH  # the ragged last batch is a step of its own
    total = epochs * -(-len(x) // BATCH)

    def loss_of(weights, inputs, target):
        output = jax.nn.relu(inputs @ weights[0].T + weights[1]) @ weights[2].T + weights[3]
        chosen = jnp.take_along_axis(jax.nn.log_softmax(output), target[:, None], 1)
        return -chosen.mean(), (output.argmax(1) == target).sum()

    def one(state, rows):
        weights, first, second, step = state
        (loss, right), grads = jax.value_and_grad(loss_of, has_aux=True)(weights, x[rows], y[rows])
        lr, step = 1e-3 * 0.5 * (1 + jnp.cos(jnp.pi * step / total)), step + 1
        first = [0.9 * m + 0.1 * g for m, g in zip(first, grads, strict=True)]
        second = [0.999 * v + 0.001 * g * g for v, g in zip(second, grads, strict=True)]
        weights = [
            w * (1 - lr * 0.01) - lr * (m / (1 - 0.9**step)) / (jnp.sqrt(v / (1 - 0.999**step)) + 1e-8)
            for w, m, v in zip(weights, first, second, strict=True)
        ]
        return (weights, first, second, step), (loss * len(rows), right)

    @jax.jit
    def epoch_of(state, key):
        rows = jax.random.permutation(key, len(x))
        state, (losses, _) = jax.lax.scan(one, state, rows[: full * BATCH].reshape(full, BATCH))
        state, (last, _) = one(state, rows[full * BATCH :])
        return state, losses.sum() + last

    for epoch in range(epochs):
        if epoch == EPOCHS_WARM:
            begun = time.perf_counter()
        state, loss = epoch_of(state, jax.random.key(epoch))
        loss = float(loss) / len(x)
    return time.perf_counter() - begun, loss


PROGRAMS = {
    "textbook": textbook,
    "lean": lean,
    "fitkit": fitkit_eager,
    "compiled": fitkit_compiled,
    "jax": jax_scan,
}


def run(name: str, epochs: int, threads: int) -> None:
    import torch

    from fitkit.parts.sources import digits

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    data = digits()
    x, y = data.x[:1437].float() / 16, data.y[:1437].long()
    model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
    begun = time.perf_counter()
    seconds, loss = PROGRAMS[name](x, y, model, epochs)
    whole = time.perf_counter() - begun
    steps = (epochs - EPOCHS_WARM) * -(-len(x) // BATCH)
    print(json.dumps({"us_per_step": seconds / steps * 1e6, "loss": loss, "torch": torch.__version__, "whole": whole}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--program", choices=PROGRAMS)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--threads", type=int, default=2)
    installed = [name for name in PROGRAMS if name != "jax" or importlib.util.find_spec("jax")]
    parser.add_argument("--only", default=",".join(installed), help="programs, with commas")
    arguments = parser.parse_args()
    if arguments.program:
        return run(arguments.program, arguments.epochs, arguments.threads)
    names = arguments.only.split(",")
    found: dict[str, list[dict]] = {name: [] for name in names}
    for _ in range(arguments.runs):
        for name in names:
            options = ["--program", name, "--epochs", str(arguments.epochs), "--threads", str(arguments.threads)]
            command = [sys.executable, "-m", "benchmarks.loop_overhead", *options]
            found[name].append(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    version = found[names[0]][0]["torch"]
    print(
        f"{platform.machine()}, {arguments.threads} threads, torch {version}, Python {platform.python_version()}; ",
        end="",
    )
    print(f"fp32, batch {BATCH}, {arguments.epochs} epochs, {arguments.runs} runs in turns, medians [min-max]\n")
    print(f"| program | µs a step | times the speed of {names[0]} | whole run, s | last loss |")
    print("| --- | --: | --: | --: | --: |")
    times = {name: [result["us_per_step"] for result in results] for name, results in found.items()}
    for name, values in times.items():
        versus = statistics.median(a / b for a, b in zip(times[names[0]], values, strict=True))
        spread = f"{statistics.median(values):.1f} [{min(values):.1f}-{max(values):.1f}]"
        whole = statistics.median(result["whole"] for result in found[name])
        print(f"| {name} | {spread} | {versus:.2f} | {whole:.1f} | {found[name][0]['loss']:.4f} |")


if __name__ == "__main__":
    main()
