"""How long does a whole command take, from the start of the interpreter to the last line?

`fitkit fit specs/NAME.yaml` beside a script that does the same work as a good tutorial would write it
([scripts/](scripts/)): the same data, split, network, optimizer, schedule, batches and epochs, validation after each,
early stopping or averaged weights where the spec has them, the best epoch's weights saved, a line an epoch, a CSV of
the history. Programs by their defaults; what dropout and shuffling draw differs, so early stopping may end a run of
digits sooner, and 10 epochs of it are the fairer pair. Per epoch: the same time by the epochs that were run. fitkit
also hashes its data, writes checkpoints and can resume.
"""

from __future__ import annotations

import csv
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.measure import Benchmark, Target, Value

if TYPE_CHECKING:
    from benchmarks.measure import Numbers

CASES: dict[str, dict[str, Any]] = {
    "digits, 10 epochs": {"spec": "digits", "epochs": 10},
    "digits": {"spec": "digits"},
    "digits_resnet": {"spec": "digits_resnet"},
    "char_gpt": {"spec": "char_gpt"},
}
BENCHMARK = Benchmark(
    cases=CASES,
    quick={case: {**asked, "epochs": 1} for case, asked in CASES.items()},
    values=[
        Value("seconds", "whole command, s", ".2f"),
        Value("per_epoch", "s an epoch", ".2f"),
        Value("epochs", "epochs", ".0f"),
        Value("val_loss", "best val_loss", ".3f"),
    ],
    runs=3,
    ratio="times the speed of",
    targets=[
        Target("S2", "fitkit fit", "textbook script", case="digits, 10 epochs"),
        Target("Done when", "fitkit fit", "textbook script", case="digits"),
        Target("Done when", "fitkit fit", "textbook script", case="char_gpt"),
        Target("Done when", "fitkit fit", "textbook script", case="digits_resnet"),
    ],
)


def timed(command: list[str], out: Path) -> Numbers:
    """Run a command that leaves history.csv in a folder."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - begun
    rows = list(csv.DictReader((out / "history.csv").open()))
    best = min(float(row["val_loss"]) for row in rows)
    return {"seconds": seconds, "per_epoch": seconds / len(rows), "epochs": len(rows), "val_loss": best}


@BENCHMARK.program("textbook script")
def textbook(case: dict[str, Any]) -> Numbers:
    with tempfile.TemporaryDirectory() as folder:
        epochs = [str(case["epochs"])] if "epochs" in case else []
        return timed([f"benchmarks/scripts/{case['spec']}.py", folder, *epochs], Path(folder))


@BENCHMARK.program("fitkit fit")
def fitkit(case: dict[str, Any]) -> Numbers:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        epochs = [f"fit.epochs={case['epochs']}"] if "epochs" in case else []
        return timed(["-m", "fitkit", "fit", f"specs/{case['spec']}.yaml", "--out", str(out), *epochs], out)
