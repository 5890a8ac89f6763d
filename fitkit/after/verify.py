"""Proof of a resume: a run that goes through, and one that is killed at random moments, compared bit for bit."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from fitkit import run_folder
from fitkit.engine import weights
from fitkit.errors import FitkitError, TrainingError
from fitkit.history import History

POLL_SECONDS = 0.005


def verify_resume(
    spec: Path, overrides: Sequence[str], kills: int, seed: int, say: Callable[[str], None], every: str
) -> str:
    """Return the verdict in words after `kills` kills (SIGKILL) while the run trains, over as many runs as it takes.

    Raises TrainingError with the first difference between a killed and resumed run and the one that went through.
    """
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        begun = time.perf_counter()
        whole = _Run(spec, overrides, place / "whole", every)
        seconds = whole.go_through()
        say(f"one run through: {time.perf_counter() - begun:.1f} s, {seconds:.2f} s of them training")
        killed, runs = 0, 0
        while killed < kills:
            runs += 1
            run = _Run(spec, overrides, place / f"run-{runs}", every)
            in_this = 0
            while killed < kills and run.kill_after(draw.uniform(0, seconds)):
                killed, in_this = killed + 1, in_this + 1
            run.go_through()
            _compare(whole.folder, run.folder)
            say(f"run {runs}: killed {in_this} times, resumed, and equal to the bit ({killed} of {kills} kills)")
    return f"{killed} kills in {runs} runs, 0 differences: weights, best epoch and history are the same to the bit."


class _Run:
    """A run of the spec in a folder, started in a process of its own as often as it takes."""

    def __init__(self, spec: Path, overrides: Sequence[str], folder: Path, every: str) -> None:
        self.folder = folder
        options = ["--out", str(folder), "--resume", "--quiet", "--checkpoint-every", every]
        self.command = [sys.executable, "-P", "-m", "fitkit", "fit", str(spec), *overrides, *options]

    def start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(self.command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def go_through(self) -> float:
        """Run to the end; return the seconds of training."""
        process = self.start()
        _, errors = process.communicate()
        if process.returncode != 0:
            raise FitkitError(f"the run ended with exit code {process.returncode}: {errors.strip()}")
        return float(json.loads((self.folder / run_folder.SUMMARY).read_text("utf-8"))["seconds"])

    def kill_after(self, seconds: float) -> bool:
        """Kill the run that many seconds after it began to train; False if it had ended by then."""
        summary = self.folder / run_folder.SUMMARY
        before = summary.stat().st_mtime_ns if summary.is_file() else None
        process = self.start()
        while process.poll() is None and (not summary.is_file() or summary.stat().st_mtime_ns == before):
            time.sleep(POLL_SECONDS)
        deadline = time.perf_counter() + seconds
        while process.poll() is None and time.perf_counter() < deadline:
            time.sleep(POLL_SECONDS)
        alive = process.poll() is None
        if alive:
            process.send_signal(signal.SIGKILL)
        _, errors = process.communicate()
        if not alive and process.returncode != 0:
            raise FitkitError(f"a resumed run ended with exit code {process.returncode}: {errors.strip()}")
        return alive


def _compare(whole: Path, cut: Path) -> None:
    states = [weights.load(folder / run_folder.WEIGHTS)[0] for folder in (whole, cut)]
    for name, tensor in states[0].items():
        if not torch.equal(tensor, states[1][name]):
            raise TrainingError(f"the weights differ: {name} of the resumed run is not that of the whole one.")
    one, other = (History.from_json((f / run_folder.HISTORY_JSON).read_text("utf-8")) for f in (whole, cut))
    for column in one.columns:
        if column == "epoch_seconds":
            continue
        left, right = ([value.hex() for value in history[column]] for history in (one, other))
        if left != right:
            raise TrainingError(f"the histories differ in {column}: {one[column]} and {other[column]}.")
    if one.best_epoch != other.best_epoch:
        raise TrainingError(f"the best epochs differ: {one.best_epoch} and {other.best_epoch}.")
