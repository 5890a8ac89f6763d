"""How long does a step of a small model take?

W0: MLP 20-64-2, 20,000 synthetic rows. digits: MLP 64-128-10, 1,437 rows, so a ragged last batch. Batch 32, shuffled,
Adam with lr 1e-3, cross-entropy, fp32; loss and accuracy of every epoch, no evaluation. The time of a step is that of
whole epochs, data and sums included, after the first ones, in which compilers work; the whole process holds imports
and compilation too, from nothing in the first run and with what that one kept in the later ones. Last loss: of the
trained weights over all rows. Textbook: `DataLoader`, and `.item()` of every batch. One graph by hand: gather,
forward, gradients and Adam, 8 steps a call. Lean by hand: gather by index, fused Adam, sums on the device. Peers by
their defaults (W0), and by their best documented settings: bars, logs and checkpoints off, and fused Adam; Keras on
JAX with `steps_per_execution=64`, which it refuses on torch. fitkit, compiled: `compile: true` in a run of so many
epochs. fitkit, long run: its defaults in a run of a million steps, which is ended after as many epochs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.measure import Benchmark, Target, Value

if TYPE_CHECKING:
    from benchmarks.measure import Numbers
    from benchmarks.training import Training


LONG = 1_000_000  # steps


@dataclass(frozen=True)
class Small:
    data: str
    rows: int
    epochs: int
    warm: int


BENCHMARK = Benchmark(
    cases={"W0": Small("synthetic", 20_000, 4, 2), "digits": Small("digits", 1437, 25, 5)},
    quick={"W0": Small("synthetic", 2000, 3, 1), "digits": Small("digits", 1437, 3, 1)},
    values=[
        Value("us", "µs a step"),
        Value("process_s", "whole process, s"),
        Value("loss", "last loss", ".4f"),
    ],
    threads=1,
    ratio="times the speed of",
    targets=[
        Target("S1", "fitkit, long run", "JAX, scan", 1.0),
        Target("S1", "fitkit, long run", "textbook loop", 12),
        Target("S1", "fitkit, long run", "Lightning, best settings", 30),
        Target("S1", "fitkit, long run", "Keras on torch, defaults", 30),
        Target("S1", "fitkit, long run", "Keras on JAX, defaults", 4),
        Target("S3", "fitkit, eager", "textbook loop", 1.6),
        Target("S3", "fitkit, eager", "lean by hand", 1 / 1.05),
    ],
)
program = BENCHMARK.program


def training(case: Small) -> Training:
    import torch
    from torch import nn

    from benchmarks.training import Training
    from fitkit.parts.sources import digits

    torch.manual_seed(0)
    if case.data == "digits":
        data = digits()
        x, y, hidden, outputs = data.x[: case.rows].float() / 16, data.y[: case.rows].long(), 128, 10
    else:  # a direction and a curve, and labels of which one in ten is wrong
        x, hidden, outputs = torch.randn(case.rows, 20), 64, 2
        y = (x @ torch.randn(20) / 4 + (2 * x[:, 0]).sin() > 0) ^ (torch.rand(case.rows) < 0.1)
        y = y.long()
    model = nn.Sequential(nn.Linear(x.shape[1], hidden), nn.ReLU(), nn.Linear(hidden, outputs))
    spec = {"model": [{"Linear": hidden}, "ReLU", {"Linear": "outputs"}]}
    return Training(x, y, model, spec, 32, case.epochs, "Adam", {"lr": 1e-3}, case.warm)


@program("textbook loop")
def textbook(case: Small) -> Numbers:
    from benchmarks import training as loops

    return loops.textbook(training(case))


@program("one graph by hand")
def whole_steps(case: Small) -> Numbers:
    from benchmarks import training as loops

    return loops.whole_steps(training(case), 8)


@program("lean by hand")
def lean(case: Small) -> Numbers:
    from benchmarks import training as loops

    return loops.lean(training(case))


@program("fitkit, eager")
def fitkit_eager(case: Small) -> Numbers:
    from benchmarks import training as loops

    return loops.fitkit(training(case), compile=False)


@program("fitkit, compiled")
def fitkit_compiled(case: Small) -> Numbers:
    from benchmarks import training as loops

    return loops.fitkit(training(case), compile=True)


@program("fitkit, long run")
def fitkit_long(case: Small) -> Numbers:
    from benchmarks import training as loops

    return loops.fitkit(training(case), epochs=LONG * 32 // case.rows)


@program("JAX, scan", "jax")
def jax_scan(case: Small) -> Numbers:
    from benchmarks import peers

    return peers.jax_scan(training(case))


def peer(row: str, name: str, *needs: str, **environment: str) -> None:
    """Register a peer by its defaults and by its best settings."""

    def run(case: Small, best: bool) -> Numbers:
        from benchmarks import peers

        return getattr(peers, name)(training(case), best)

    program(f"{row}, defaults", *needs, cases=["W0"], **environment)(lambda case: run(case, False))
    program(f"{row}, best settings", *needs, **environment)(lambda case: run(case, True))


peer("Keras on JAX", "keras", "keras", "jax", KERAS_BACKEND="jax")
peer("Keras on torch", "keras", "keras", KERAS_BACKEND="torch")
peer("Lightning", "lightning", "pytorch_lightning")
peer("HF Trainer", "transformers", "transformers", "accelerate")
peer("skorch", "skorch", "skorch")
peer("Poutyne", "poutyne", "poutyne")
