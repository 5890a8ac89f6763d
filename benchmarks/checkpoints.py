"""What do checkpoints at the default interval cost?

Gallery specs as they are, in a run folder, with checkpoints as `fitkit fit` writes them and with none at all. The whole
call of `fit` is measured, the checkpoint at its end included.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.measure import Benchmark, Target, Value

if TYPE_CHECKING:
    from benchmarks.measure import Numbers

SPECS = ("digits", "digits_cnn", "digits_resnet")
BENCHMARK = Benchmark(
    cases={spec: {"spec": spec} for spec in SPECS},
    quick={spec: {"spec": spec, "fit.epochs": 1} for spec in SPECS},
    values=[Value("seconds", "fit, s", ".2f"), Value("written", "checkpoints a run", ".0f")],
    ratio="times the speed of",
    targets=[Target("R9", "with checkpoints", "without", 1 / 1.02)],
)


def fit(case: dict[str, object], kept: bool) -> Numbers:
    import tempfile
    import time
    from pathlib import Path

    import fitkit
    from fitkit.engine import checkpoint
    from fitkit.resume import Checkpoints

    written = []
    write = checkpoint.write
    checkpoint.write = lambda *a: (written.append(1), write(*a))[1]
    if not kept:
        Checkpoints.due = lambda self, trainer, now: False
        Checkpoints.save = lambda self, trainer: self.folder
    overrides = {key: value for key, value in case.items() if key != "spec"}
    run = fitkit.fit  # imports what a fit needs
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        run(f"specs/{case['spec']}.yaml", out=Path(folder) / "run", overrides=overrides)
        seconds = time.perf_counter() - begun
    return {"seconds": seconds, "written": len(written)}


@BENCHMARK.program("without")
def without(case: dict[str, object]) -> Numbers:
    return fit(case, False)


@BENCHMARK.program("with checkpoints")
def with_checkpoints(case: dict[str, object]) -> Numbers:
    return fit(case, True)
