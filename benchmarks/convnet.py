"""How many images a second does a convnet train on?

ResNet-20 (He et al. 2016), 32 x 32 x 3, batch 128, SGD with Nesterov momentum and weight decay; 1,024 synthetic images
of ten classes, loss and accuracy of every epoch, no evaluation. The first epoch is left out, in which compilers work;
the whole process holds it. Last loss: of the trained weights over all rows, in fp32. Textbook: `DataLoader`, `.item()`
of every batch, fp32. By hand, best: the whole step as one graph, channels_last, bf16 autocast. What bf16 does to the
accuracy is the question of `precision`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.measure import Benchmark, Target, Value

if TYPE_CHECKING:
    from benchmarks.measure import Numbers
    from benchmarks.training import Training

BENCHMARK = Benchmark(
    cases={"": (1024, 3)},  # images, epochs
    quick={"": (256, 2)},
    values=[
        Value("samples_per_s", "images a second", ".0f", more=True),
        Value("process_s", "whole process, s"),
        Value("loss", "last loss", ".3f"),
    ],
    ratio="times the speed of",
    targets=[
        Target("S4", "fitkit, compiled, bf16", "textbook loop", 2.3),
        Target("S4", "fitkit, compiled, bf16", "one graph by hand, channels_last, bf16", 0.95),
    ],
)
program = BENCHMARK.program


def training(case: tuple[int, int]) -> Training:
    import torch

    from benchmarks.training import Training
    from fitkit.data import Inputs
    from fitkit.parts.models import resnet20

    torch.manual_seed(0)
    count, epochs = case
    y = torch.randint(10, (count,))
    x = torch.randn(10, 3, 32, 32)[y] / 2 + torch.randn(count, 3, 32, 32)
    arguments = {"lr": 0.02, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}
    return Training(x, y, resnet20(Inputs((3, 32, 32)), 10), {"model": "resnet20"}, 128, epochs, "SGD", arguments)


@program("textbook loop")
def textbook(case: tuple[int, int]) -> Numbers:
    from benchmarks import training as loops

    return loops.textbook(training(case))


@program("one graph by hand, channels_last, bf16")
def best(case: tuple[int, int]) -> Numbers:
    import torch

    from benchmarks import training as loops

    return loops.whole_steps(training(case), channels_last=True, precision=torch.bfloat16)


@program("textbook, channels_last")
def channels_last(case: tuple[int, int]) -> Numbers:
    from benchmarks import training as loops

    return loops.textbook(training(case), channels_last=True)


@program("textbook, channels_last, bf16")
def bf16(case: tuple[int, int]) -> Numbers:
    import torch

    from benchmarks import training as loops

    return loops.textbook(training(case), channels_last=True, precision=torch.bfloat16)


def fitkit(row: str, **options: object) -> None:
    def run(case: tuple[int, int]) -> Numbers:
        from benchmarks import training as loops

        return loops.fitkit(training(case), **options)

    program(row)(run)


fitkit("fitkit, eager, fp32", compile=False, precision="fp32")
fitkit("fitkit, compiled, fp32", compile=True, precision="fp32")
fitkit("fitkit, eager, bf16", compile=False, precision="bf16")
fitkit("fitkit, compiled, bf16", compile=True, precision="bf16")
fitkit("fitkit, auto, auto", compile="auto", precision="auto")
