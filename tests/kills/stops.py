"""SIGTERM and Ctrl-C at any moment: the run leaves with its exit code and a checkpoint of its last step."""

import os
import random
import signal
import time
from contextlib import nullcontext

from fitkit import run_folder
from fitkit.engine import checkpoint
from fitkit.errors import TrainingError

from .harness import Trial

CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}
MOMENTS = ("training", "evaluate", "start", "first steps")
PATIENCE_SECONDS = 120  # nothing measures how fast a process leaves; this ends a trial that would never end


def stop(trial, number, moment, draw, group):
    """Start the run and send it a signal at a moment; return the steps lost, or None if the run was over before.

    Raises TrainingError for a wrong exit code, a traceback, or a checkpoint of another step than the last or the one
    before it.
    """
    before = {word: len(trial.lines(word)) for word in ("begun", "epoch", "step", "evaluate")}

    def since(word):
        return trial.lines(word)[before[word] :]

    with trial.run.started(KILLS_SLOW="0.03" if moment == "evaluate" else "0") as process:
        word = {"start": "begun", "first steps": "epoch", "training": "step", "evaluate": "evaluate"}[moment]
        wanted = draw.randint(1, 60) if moment == "training" else 1
        while process.poll() is None and len(since(word)) < wanted:
            time.sleep(0.001)
        compiling = 4 if trial.workload.compile else 0.5
        time.sleep(draw.uniform(0, {"start": 0.5, "first steps": compiling, "training": 0.05, "evaluate": 0.1}[moment]))
        if process.poll() is None:
            (os.killpg if group else os.kill)(process.pid, number)
        _, errors = process.communicate(timeout=PATIENCE_SECONDS)
    if run_folder.status(trial.folder) == "finished":  # too late
        return None
    if process.returncode != CODES[number] or "Traceback" in errors:
        raise TrainingError(f"{number.name} in {moment} ended with {process.returncode}: {errors}")
    taken = [int(step) for step, *_ in since("step")]
    if not taken:  # it had not come to a step of its own: what was saved before is what there is
        return 0
    lost = taken[-1] - max(checkpoint.steps(trial.folder / "checkpoints"), default=0)
    if not 0 <= lost <= 1:
        raise TrainingError(f"{number.name} in {moment}: {lost} steps were lost.")
    return lost


def stops(workload, count, seed, place, slot=None):
    """Stop a workload so many times, resume each run and compare it; return the count, and the most steps lost."""
    draw, slot = random.Random(seed), slot or nullcontext()
    whole = Trial(workload, place / "whole")
    with slot:
        whole.go_through()
    done, worst, runs = 0, 0, 0
    while done < count:
        runs += 1
        trial = Trial(workload, place / f"run-{runs}")
        while done < count:
            moment = MOMENTS[(done + seed) % len(MOMENTS)]
            number = draw.choice(sorted(CODES))
            with slot:
                lost = stop(trial, number, moment, draw, group=draw.random() < 0.5)
            if lost is None:
                break
            done, worst = done + 1, max(worst, lost)
        with slot:
            trial.go_through()
        whole.compare(trial, stopped=True)
    return done, worst


def second_interrupt(whole, place):
    """Interrupt a run twice in an evaluation that would take an hour: it leaves at once, and resumes all the same."""
    trial = Trial(whole.workload, place / "cut")
    with trial.run.started(KILLS_SLOW="3600") as process:
        while process.poll() is None and not trial.lines("evaluate"):
            time.sleep(0.001)
        for _ in range(2):
            time.sleep(0.5)
            os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=PATIENCE_SECONDS)
    if process.returncode != CODES[signal.SIGINT] or "Traceback" in errors:
        raise TrainingError(f"a second Ctrl-C ended with {process.returncode}: {errors}")
    trial.go_through()
    whole.compare(trial)
