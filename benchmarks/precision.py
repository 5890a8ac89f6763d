"""Does bf16 cost accuracy?

specs/digits_resnet.yaml, five seeds, fp32 against bf16 autocast: validation accuracy of the best epoch, the mean and
the standard deviation over the seeds. The data's split changes with the seed, in the same way for both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.measure import Benchmark, Value

if TYPE_CHECKING:
    from benchmarks.measure import Numbers

BENCHMARK = Benchmark(
    cases={"": {"seeds": 5}},
    quick={"": {"seeds": 1, "fit.epochs": 1}},
    values=[
        Value("accuracy", "best val_accuracy, mean", ".4f", more=True),
        Value("sd", "sd over seeds", ".4f"),
        Value("process_s", "whole process, s"),
    ],
    runs=1,
    ratio="times that of",
)


def run(case: dict[str, int], precision: str) -> Numbers:
    import statistics

    import fitkit

    found = []
    for seed in range(case["seeds"]):
        overrides = {"seed": seed, "fit.precision": precision, "fit.device": "cpu"}
        overrides |= {key: value for key, value in case.items() if key != "seeds"}
        history = fitkit.fit("specs/digits_resnet.yaml", overrides=overrides)
        found.append(history.best("val_accuracy")["val_accuracy"])
    return {"accuracy": statistics.mean(found), "sd": statistics.stdev(found) if len(found) > 1 else 0.0}


@BENCHMARK.program("fp32")
def fp32(case: dict[str, int]) -> Numbers:
    return run(case, "fp32")


@BENCHMARK.program("bf16")
def bf16(case: dict[str, int]) -> Numbers:
    return run(case, "bf16")
