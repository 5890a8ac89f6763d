"""What do callbacks, bar, logs and checkpoints cost?

MLP 20-64-2 on 20,000 rows, batch 32, Adam, eager, 15 epochs with a validation on 2,000 further rows after each. Off:
nothing but the History. On: the bar, drawn for a terminal that is not there, every callback of the table but EMA (which
is arithmetic that was asked for), CSV, TensorBoard, run folder, checkpoints at the default interval. The whole call of
`fit` is measured; fitkit, torch and TensorBoard are imported before.
"""

from __future__ import annotations

import contextlib
import io
from typing import TYPE_CHECKING

from benchmarks.measure import Benchmark, Target, Value

if TYPE_CHECKING:
    from benchmarks.measure import Numbers

BENCHMARK = Benchmark(
    cases={"": 15},
    quick={"": 2},
    values=[Value("seconds", "fit, s", ".2f"), Value("loss", "last val_loss", ".4f")],
    runs=3,
    threads=1,
    ratio="times the speed of",
    targets=[Target("S7", "all on", "all off", 1 / 1.02)],
)
NEVER = {"patience": 1000}
CALLBACKS: dict[str, dict[str, int]] = {
    "EarlyStopping": NEVER,
    "ReduceLROnPlateau": NEVER,
    "TerminateOnNaN": {},
    "ModelCheckpoint": {},
    "CSVLogger": {},
    "TensorBoard": {},
}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def fit(epochs: int, callbacks: dict[str, dict[str, int]], on: bool) -> Numbers:
    import tempfile
    import time
    from pathlib import Path

    import fitkit
    from benchmarks.small import Small, training

    t = training(Small("synthetic", 22_000, epochs, 1))
    spec = {
        **t.spec,
        "splits": {"random": {"val": 1 / 11}},
        "optimizer": {t.optimizer: t.arguments},
        "callbacks": callbacks,
        "fit": {"epochs": epochs, "batch_size": t.batch_size, "device": "cpu", "compile": False},
    }
    run = fitkit.fit  # imports what a fit needs
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(Terminal() if on else io.StringIO()):
        begun = time.perf_counter()
        history = run(spec, data=(t.x, t.y), out=Path(folder) / "run" if on else None)
        seconds = time.perf_counter() - begun
    return {"seconds": seconds, "loss": history["val_loss"][-1]}


@BENCHMARK.program("all off")
def off(epochs: int) -> Numbers:
    return fit(epochs, {}, False)


@BENCHMARK.program("bar, run folder and checkpoints")
def folder(epochs: int) -> Numbers:
    return fit(epochs, {}, True)


@BENCHMARK.program("all on", "tensorboard")
def on(epochs: int) -> Numbers:
    from torch.utils.tensorboard import SummaryWriter  # noqa: F401

    return fit(epochs, CALLBACKS, True)
