"""How long does a step of a small transformer take?

GPT of 4 layers, width 128, 4 heads, without dropout, on the characters of specs/data/python_topics.txt in windows of
64, batch 12, AdamW, fp32; loss and accuracy of every epoch, no evaluation. The first epoch is left out, in which
compilers work; the whole process holds it. Last loss: of the trained weights over all rows. Textbook: `DataLoader`,
`.item()` of every batch. Lean by hand, the best program for this model that we know: gather by index, fused AdamW, sums
on the device. Peers by their defaults, and by their best documented settings: bars, logs, checkpoints off, fused AdamW.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.measure import Benchmark, Target, Value

if TYPE_CHECKING:
    from benchmarks.measure import Numbers
    from benchmarks.training import Training

BENCHMARK = Benchmark(
    cases={"": (360, 3)},  # windows, epochs
    quick={"": (60, 2)},
    values=[
        Value("us", "µs a step", ".0f"),
        Value("process_s", "whole process, s"),
        Value("loss", "last loss", ".3f"),
    ],
    ratio="times the speed of",
    targets=[
        Target("S5", "fitkit, auto", "lean by hand", 0.95),
        Target("S5", "fitkit, auto", "Lightning, best settings", 1.0),
        Target("S5", "fitkit, auto", "HF Trainer, best settings", 1.0),
    ],
)
program = BENCHMARK.program
TEXT, LENGTH = "specs/data/python_topics.txt", 64


def training(case: tuple[int, int]) -> Training:
    from pathlib import Path

    import torch

    from benchmarks.training import Training
    from fitkit.data import Inputs
    from fitkit.parts.models import gpt

    torch.manual_seed(0)
    count, epochs = case
    text = Path(TEXT).read_text()
    characters = sorted(set(text))
    number = {character: i for i, character in enumerate(characters)}
    ids = torch.tensor([number[character] for character in text])
    windows = ids[: count * LENGTH + 1].unfold(0, LENGTH + 1, LENGTH)
    model = gpt(Inputs((LENGTH,), len(characters)), len(characters), dropout=0.0)
    arguments = {"lr": 1e-3, "weight_decay": 0.01}
    return Training(windows[:, :-1], windows[:, 1:], model, {}, 12, epochs, "AdamW", arguments)


@program("textbook loop")
def textbook(case: tuple[int, int]) -> Numbers:
    from benchmarks import training as loops

    return loops.textbook(training(case))


@program("lean by hand")
def lean(case: tuple[int, int]) -> Numbers:
    from benchmarks import training as loops

    return loops.lean(training(case))


@program("lean by hand, model and loss compiled")
def compiled(case: tuple[int, int]) -> Numbers:
    from benchmarks import training as loops

    return loops.lean(training(case), compiled=True)


@program("one graph by hand")
def whole_steps(case: tuple[int, int]) -> Numbers:
    from benchmarks import training as loops

    return loops.whole_steps(training(case))


def fitkit(row: str, **options: object) -> None:
    def run(case: tuple[int, int]) -> Numbers:
        from benchmarks import training as loops

        return loops.fitkit(training(case), **options)

    program(row)(run)


fitkit("fitkit, eager", compile=False)
fitkit("fitkit, compiled", compile=True)
fitkit("fitkit, auto", compile="auto")


def peer(row: str, name: str, *needs: str) -> None:
    """Register a peer by its defaults and by its best settings."""

    def run(case: tuple[int, int], best: bool) -> Numbers:
        from benchmarks import peers

        return getattr(peers, name)(training(case), best)

    program(f"{row}, defaults", *needs)(lambda case: run(case, False))
    program(f"{row}, best settings", *needs)(lambda case: run(case, True))


peer("Lightning", "lightning", "pytorch_lightning")
peer("HF Trainer", "transformers", "transformers", "accelerate")
