"""What do callbacks, bar, logs and checkpoints cost?

The network of specs/digits.yaml for 60 epochs with a validation after each, in a process of its own: nothing but the
History, then every callback of the table but EMA (which is arithmetic that was asked for), CSV, TensorBoard, run folder
and checkpoints at the default interval. Bar: as where standard error is no terminal. The whole call of `fit` is
measured, without what it takes to import TensorBoard.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.measure import Benchmark, Target, Value

if TYPE_CHECKING:
    from benchmarks.measure import Numbers

BENCHMARK = Benchmark(
    cases={"": 60},
    quick={"": 2},
    values=[Value("seconds", "fit, s", ".2f"), Value("loss", "last val_loss", ".4f")],
    runs=5,
    ratio="times the speed of",
    targets=[Target("S7", "all on", "all off", 1 / 1.02)],
)
OFF = {"callbacks": {}}
ON = {
    "callbacks": {
        "EarlyStopping": {"patience": 1000},
        "ReduceLROnPlateau": {"patience": 1000},
        "TerminateOnNaN": {},
        "ModelCheckpoint": {},
        "CSVLogger": {},
    }
}
BOARD = {"TensorBoard": {}}


def fit(epochs: int, spec: dict[str, object], out: bool) -> Numbers:
    import tempfile
    import time
    from pathlib import Path

    import fitkit

    with tempfile.TemporaryDirectory() as folder:
        overrides = {"fit.epochs": epochs, "fit.device": "cpu", **spec}
        begun = time.perf_counter()
        history = fitkit.fit("specs/digits.yaml", out=Path(folder) / "run" if out else None, overrides=overrides)
        seconds = time.perf_counter() - begun
    return {"seconds": seconds, "loss": history["val_loss"][-1]}


@BENCHMARK.program("all off")
def off(epochs: int) -> Numbers:
    return fit(epochs, OFF, False)


@BENCHMARK.program("run folder and checkpoints")
def folder(epochs: int) -> Numbers:
    return fit(epochs, OFF, True)


@BENCHMARK.program("all on", "tensorboard")
def on(epochs: int) -> Numbers:
    from torch.utils.tensorboard import SummaryWriter  # noqa: F401  imported once a process, whatever it runs

    return fit(epochs, {"callbacks": {**ON["callbacks"], **BOARD}}, True)
