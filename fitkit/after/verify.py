"""Proof of a resume: a run that goes through, and one that is killed again and again, compared bit for bit.

A kill is SIGKILL for the whole process group of the run, so that its worker processes die with it.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from fitkit import run_folder
from fitkit.engine import checkpoint, weights
from fitkit.engine.checkpoint import Checkpoint
from fitkit.errors import FitkitError, TrainingError
from fitkit.history import History
from fitkit.resume import FOLDER

Phase = Literal["start", "training", "save"]
AIMS: tuple[Phase, ...] = ("training", "save", "start", "start", "save", "training", "save")  # in turn
POLL_SECONDS = 0.0005
LONGEST_SAVE_SECONDS = 0.01  # how far into a save a kill aims at first; half as far after each that came too late
TIMES = ("seconds", "epoch_seconds")  # what no resume can bring back


def verify_resume(
    spec: Path, overrides: Sequence[str], kills: int, seed: int, say: Callable[[str], None], every: str
) -> str:
    """Return the verdict in words after `kills` kills, over as many runs as it takes.

    Raises TrainingError with the first difference between a killed and resumed run and the one that went through.
    """
    draw, aims = random.Random(seed), itertools.cycle(AIMS)
    hit: Counter[Phase] = Counter()
    with tempfile.TemporaryDirectory() as folder:

        def run_in(name: str) -> Run:
            out = Path(folder, name)
            options = ["--out", str(out), "--resume", "--quiet", "--checkpoint-every", every]
            return Run([sys.executable, "-P", "-m", "fitkit", "fit", str(spec), *overrides, *options], out)

        whole = run_in("whole")
        start, training = whole.go_through()
        say(f"one run through: {start:.1f} s to start, {training:.2f} s of training")
        runs, reach = 0, LONGEST_SAVE_SECONDS
        while hit.total() < kills:
            runs += 1
            run, before = run_in(f"run-{runs}"), hit.total()
            while hit.total() < kills:
                aim = next(aims)
                wait = draw.uniform(start / 2, start) if aim == "start" else draw.uniform(0, training)
                found = run.kill(aim, wait, draw.uniform(0, reach))
                if found is None:
                    break
                if aim == "save" and found != "save":
                    reach /= 2
                hit[found] += 1
            _, training = run.go_through()
            compare(whole.folder, run.folder)
            count = hit.total() - before
            say(f"run {runs}: killed {count} times, resumed, and equal to the bit ({hit.total()} of {kills} kills)")
    return (
        f"{kills} kills in {runs} runs ({hit['save']} of them inside a save, {hit['start']} while it started or "
        f"resumed), 0 differences: weights, best epoch, history, and the state in the last checkpoint are the same to "
        "the bit."
    )


class Run:
    """A run in a folder, which one command starts and resumes, in a process group of its own, as often as it takes."""

    def __init__(self, command: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None) -> None:
        self.command, self.folder = command, folder
        self.environment = {**os.environ, **(environment or {})}

    @contextlib.contextmanager
    def started(self, **environment: str) -> Iterator[subprocess.Popen[str]]:
        """Start the command; whatever ends the `with` ends the process and all of its group."""
        with subprocess.Popen(
            self.command,
            env={**self.environment, **environment},
            start_new_session=True,
            text=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        ) as process:
            try:
                yield process
            finally:
                kill_group(process)

    def finish(self, process: subprocess.Popen[str]) -> bool:
        """Wait for the end: True if it came by itself, False by a kill. Raises FitkitError when the run failed."""
        _, errors = process.communicate()
        if process.returncode not in (0, -signal.SIGKILL):
            raise FitkitError(f"the run ended with exit code {process.returncode}: {errors.strip()}")
        return process.returncode == 0

    def go_through(self) -> tuple[float, float]:
        """Run to the end; return the seconds that it took to start, and those of training in all sessions."""
        begun = time.perf_counter()
        with self.started() as process:
            if not self.finish(process):
                raise FitkitError("somebody else killed the run.")
        seconds = run_folder.read_history(self.folder).seconds
        return max(0.0, time.perf_counter() - begun - seconds), seconds

    def kill(self, aim: Phase, wait: float, into_save: float = 0.0) -> Phase | None:
        """Start the run and kill it in about the phase that is aimed at; return what it was in, None if it had ended.

        The kill comes `wait` seconds after the start of the process, or of training, or `into_save` seconds into the
        first save after that. A kill is inside a save when it leaves an unfinished checkpoint behind.
        """
        before, started = self._unfinished(), self._training()

        def training() -> bool:
            return self._training() != started

        with self.started() as process:
            if aim == "start":
                _poll(process, training, wait)
            else:
                _poll(process, training)
                _poll(process, lambda: False, wait)
                if aim == "save":
                    _poll(process, lambda: bool(self._unfinished() - before))
                    time.sleep(into_save)
            kill_group(process)
            if self.finish(process):
                return None
        if self._unfinished() - before:
            return "save"
        return aim if aim == "start" else "training"

    def _training(self) -> int:
        """Return a number that changes when the process begins to restore a checkpoint, and to train."""
        with contextlib.suppress(OSError):
            return (self.folder / run_folder.SUMMARY).stat().st_mtime_ns
        return 0

    def _unfinished(self) -> set[str]:
        with contextlib.suppress(OSError):
            return {name for name in os.listdir(self.folder / FOLDER) if name.startswith(".tmp-")}
        return set()


def kill_group(process: subprocess.Popen[str]) -> None:
    """Send SIGKILL to a process that runs and to all of its group."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _poll(process: subprocess.Popen[str], happened: Callable[[], bool], seconds: float = float("inf")) -> None:
    """Wait until something happened, the process ended, or the time is over."""
    deadline = time.perf_counter() + seconds
    while process.poll() is None and time.perf_counter() < deadline and not happened():
        time.sleep(POLL_SECONDS)


def compare(whole: Path, cut: Path) -> None:
    """Raise TrainingError with what differs first between two finished runs, times aside.

    Compared are the weights, the best epoch, the history, and the newest checkpoint that both took at the same place.
    """
    saved = next(_common(whole / FOLDER, cut / FOLDER), (None, None))
    require_equal(outcome(whole, saved[0]), outcome(cut, saved[1]))


def _common(one: Path, other: Path) -> Iterator[tuple[Checkpoint, Checkpoint]]:
    """Yield the pairs of checkpoints taken at the same place, newest first: an evaluation may lie between two."""
    for step in sorted({*checkpoint.steps(one)} & {*checkpoint.steps(other)}, reverse=True):
        pair = checkpoint.read(one / f"step-{step}"), checkpoint.read(other / f"step-{step}")
        rows = [len(History.from_json(saved.state["history"])) for saved in pair]
        if rows[0] == rows[1]:
            yield pair


def require_equal(whole: Mapping[str, str], cut: Mapping[str, str]) -> None:
    """Raise TrainingError with the first difference between two outcomes."""
    for name in sorted(whole.keys() | cut.keys()):
        one, other = whole.get(name), cut.get(name)
        if one != other:
            raise TrainingError(f"the resumed run differs from the whole one in {name}: {other} is not {one}.")


def outcome(folder: Path, saved: Checkpoint | None = None) -> dict[str, str]:
    """Return what a finished run came to, under names: the SHA-256 of each tensor, and numbers to the last bit."""
    found = {f"weights: {n}": digest(tensor) for n, tensor in weights.load(folder / run_folder.WEIGHTS)[0].items()}
    history = run_folder.read_history(folder)
    return {**found, **_of_history(history), **(of_checkpoint(saved) if saved else {})}


def of_checkpoint(saved: Checkpoint) -> dict[str, str]:
    """Return what a checkpoint holds, under names, times aside."""
    found = {f"{group}: {n}": digest(tensor) for group, kept in saved.tensors.items() for n, tensor in kept.items()}
    for name, value in saved.state.items():
        if name == "history":
            found |= {f"state.{n}": text for n, text in _of_history(History.from_json(value)).items()}
        else:
            found |= dict(_leaves(f"state.{name}", value))
    return found


def digest(tensor: Tensor) -> str:
    """Return the SHA-256 of a tensor's dtype, shape and bytes."""
    about = f"{tensor.dtype} {tuple(tensor.shape)} ".encode()
    return hashlib.sha256(about + weights.first_bytes(tensor)).hexdigest()


def _of_history(history: History) -> dict[str, str]:
    found = {"history: best epoch": str(history.best_epoch), "history: monitor": str(history.monitor)}
    for column in history.columns:
        if column not in TIMES:
            found[f"history: {column}"] = " ".join(value.hex() for value in history[column])
    return found


def _leaves(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """Yield each number and text of a JSON value under a dotted name."""
    if isinstance(value, Mapping):
        value = [*value.items()]
    elif isinstance(value, Sequence) and not isinstance(value, str):
        value = [*enumerate(value)]
    else:
        yield name, value.hex() if isinstance(value, float) else repr(value)
        return
    for key, part in value:
        if key not in TIMES:
            yield from _leaves(f"{name}.{key}", part)
