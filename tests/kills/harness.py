"""Kill a workload's run again and again, resume it until it ends, and compare it with the run that was left alone."""

import hashlib
import json
import os
import random
import sys
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from fitkit.after import verify
from fitkit.engine import checkpoint
from fitkit.errors import TrainingError

from .workloads import SAMPLES

TESTS = Path(__file__).parent.parent
EVERY = "7 steps"
# How the kills of a workload are shared out: at any moment of the training, inside a save, while it resumes.
SHARES = {"training": 0.4, "save": 0.33, "resume": 0.27}


@dataclass
class Trial:
    """A workload's run in a folder, started by the harness's own command; beside it its log and its last state."""

    workload: object
    folder: Path
    overrides: list = field(default_factory=list)

    def __post_init__(self):
        self.log = self.folder.with_name(f"{self.folder.name}.log")
        self.state = self.folder.with_name(f"{self.folder.name}-state")
        spec = self.folder.with_name(f"{self.folder.name}.json")
        spec.write_text(json.dumps(self.workload.spec()))
        command = [sys.executable, "-m", "kills.child", "fit", str(spec), *self.overrides, "--out", str(self.folder)]
        environment = {
            "PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}",
            "OMP_NUM_THREADS": "1",
            "KILLS_WORKLOAD": str(self.workload),
            "KILLS_LOG": str(self.log),
            "KILLS_STATE": str(self.state),
        }
        self.run = verify.Run([*command, "--resume", "--quiet", "--checkpoint-every", EVERY], self.folder, environment)

    def go_through(self):
        return self.run.go_through()

    def kill_at(self, phase, number):
        """Let the run die at a file operation of a phase; False if it ended before that."""
        with self.run.started(KILLS_FAULT=f"{phase} {number}") as process:
            return not self.run.finish(process)

    def lines(self, word):
        """Return the words of the log's lines that begin with a word."""
        found = [line.split() for line in self.log.read_text().splitlines()] if self.log.exists() else []
        return [line[1:] for line in found if line[0] == word]

    def counts(self):
        """Return how many file operations the last process counted, by phase."""
        resume, save = map(int, self.lines("counts")[-1])
        return {"resume": resume, "save": save}

    def steps(self):
        """Return the ids of each window by (epoch, window); every replay of a window must have had the same."""
        seen = {}
        for _, _, epoch, window, *ids in self.lines("step"):
            ids = tuple(map(int, ids))
            if seen.setdefault((int(epoch), int(window)), ids) != ids:
                raise TrainingError(f"window {window} of epoch {epoch} was replayed with other samples.")
        return seen

    def outcome(self):
        """Return what the run came to; the samples that its steps saw must be each id once an epoch."""
        [step] = checkpoint.steps(self.state)
        seen = self.steps()
        for epoch in {epoch for epoch, _ in seen}:
            ids = sorted(i for (e, _), window in seen.items() if e == epoch for i in window)
            if ids != list(range(SAMPLES)):
                raise TrainingError(f"epoch {epoch} did not see each sample once.")
        found = verify.outcome(self.folder, checkpoint.read(self.state / f"step-{step}"))
        found["files"] = ", ".join(sorted(str(path.relative_to(self.folder)) for path in self.folder.rglob("*")))
        return found | {f"samples of epoch {e}, window {w}": str(ids) for (e, w), ids in seen.items()}

    def compare(self, other, stopped=False):
        """Raise TrainingError where another trial of the same workload came to something else.

        One that was stopped by a signal has a checkpoint there, so it may have kept others at the end.
        """
        verify.compare(self.folder, other.folder)
        mine, theirs = self.outcome(), other.outcome()
        if stopped:
            mine["files"] = theirs["files"] = ""
        verify.require_equal(mine, theirs)


def fingerprint(outcome):
    """Return one SHA-256 for all that a run came to."""
    return hashlib.sha256(json.dumps(sorted(outcome.items())).encode()).hexdigest()


def campaign(workload, kills, seed, place, slot=None):
    """Kill a workload so many times, over several runs; return the counts of kills, by what they hit, and of runs.

    Raises TrainingError at the first difference. `slot` is held while a process runs, so that not too many do.
    """
    draw, tally, slot = random.Random(seed), Counter(runs=0), slot or nullcontext()
    whole = Trial(workload, place / "whole")
    with slot:
        _, seconds = whole.go_through()
    most = whole.counts()
    most["resume"] += 20  # a resumed run reads a checkpoint too; set to what the first one counts
    while _done(tally) < kills:
        tally["runs"] += 1
        trial = Trial(workload, place / f"run-{tally['runs']}")
        in_a_row = 0
        while _done(tally) < kills:
            saved = bool(checkpoint.steps(trial.folder / "checkpoints"))
            aims = [aim for aim in SHARES if aim != "resume" or saved]
            aim = min(aims, key=lambda aim: tally[aim] / SHARES[aim])
            aim = "resume" if in_a_row == 1 else aim  # two in a row
            with slot:
                if aim == "training":
                    hit = trial.run.kill("training", draw.uniform(0, seconds))
                else:
                    furthest = most[aim] if aim == "resume" else most[aim] // 2
                    hit = aim if trial.kill_at(aim, draw.randint(1, furthest)) else None
            if hit is None:
                break
            tally[hit] += 1
            in_a_row = in_a_row + 1 if aim == "resume" else 0
        with slot:
            _, seconds = trial.go_through()
        most["resume"] = trial.counts()["resume"]
        whole.compare(trial)
    return tally, fingerprint(whole.outcome())


def deterministic(workload, place):
    """Raise TrainingError where two runs of a workload with `deterministic: true` differ."""
    first, second = (Trial(workload, place / name, overrides=["fit.deterministic=true"]) for name in ("one", "two"))
    for trial in (first, second):
        trial.go_through()
    first.compare(second)


def _done(tally):
    return sum(tally[aim] for aim in SHARES)
