"""Runs the corpus: each case by every way in, with the guard armed, and says what came of it.

    python -m tests.hostile.runner                 the whole corpus, in two processes
    python -m tests.hostile.runner NAME …          the cases whose names hold one of these words
    python -m tests.hostile.runner --strace        the whole corpus once under strace

A process first does everything once with harmless files, so that all is imported that ever will be. A case has failed
when it raised a forbidden event, ended otherwise than in fitkit's own error, printed what a terminal would act on or
text from outside of its folder, changed a file outside, or took more than 2 s or 200 MB.
"""

from __future__ import annotations

import contextlib
import faulthandler
import io
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from . import controls
from .case import SPEC, TABLE, Case
from .files import FILES, finished
from .guard import Forbidden, Guard
from .runs import RUNS
from .specs import SPECS, changed

MOST_SECONDS, MOST_MIB = 2.0, 200
HANGS_AFTER = 20  # seconds, after which the process is given up and another goes on behind the case
ADDRESS_SPACE = 6 << 30  # on top of what a warm process has: a mistake of ours must not take the machine down
CASES_A_PROCESS = 220
CANARY = "canary-of-the-outside"
MARK = "/hostile-mark/"  # opened in vain at the beginning of a way: strace shows where it is
ROOT = Path(__file__).resolve().parents[2]
CORPUS = {case.name: case for case in [*SPECS, *FILES, *RUNS]}


@dataclass
class Outcome:
    """What came of one case by one way: `faults` is empty when all is well."""

    case: str
    way: str
    ended: str  # "SpecError", "exit 2", "done", or what leaked
    seconds: float = 0.0
    mib: float = 0.0
    faults: list[str] = field(default_factory=list)
    said: str = ""


def main(arguments: Sequence[str]) -> int:
    """Run what the command line asks for and return 1 if any case failed."""
    if arguments[:1] == ["--child"]:
        return _child(Path(arguments[1]), json.loads(sys.stdin.read()))
    if arguments[:1] == ["--strace"]:
        from . import strace

        return strace.main(arguments[1:])
    names = [name for name in CORPUS if not arguments or any(word in name for word in arguments)]
    outcomes = run(names)
    for outcome in outcomes:
        if outcome.faults or arguments:
            print(f"{outcome.case} [{outcome.way}] {outcome.ended}: {'; '.join(outcome.faults) or 'ok'}")
            print(f"    {outcome.seconds:.2f} s, {outcome.mib:.0f} MiB, said: {outcome.said.strip()[:300]}")
    print(summary(outcomes))
    return int(any(outcome.faults for outcome in outcomes))


def summary(outcomes: Sequence[Outcome]) -> str:
    """Return what was run and what came of it in a line or two."""
    cases = {outcome.case for outcome in outcomes}
    bad = {outcome.case for outcome in outcomes if outcome.faults}
    ends: dict[str, int] = {}
    for outcome in outcomes:
        ends[outcome.ended] = ends.get(outcome.ended, 0) + 1
    told = ", ".join(f"{end} {count}" for end, count in sorted(ends.items(), key=lambda item: -item[1]))
    events = sum(fault.startswith("forbidden") for outcome in outcomes for fault in outcome.faults)
    slow, large = (max((getattr(o, what) for o in outcomes), default=0) for what in ("seconds", "mib"))
    return (
        f"{len(cases)} cases, {len(outcomes)} ways: {told}.\n{events} forbidden events; the slowest took {slow:.2f} s, "
        f"the largest {large:.0f} MiB; {len(bad)} cases failed."
    )


def run(names: Sequence[str], parallel: int = 2, prefix: Sequence[str] = ()) -> list[Outcome]:
    """Run cases in processes of their own and return the outcomes; `prefix` stands before the command."""
    parts = [list(names[i : i + CASES_A_PROCESS]) for i in range(0, len(names), CASES_A_PROCESS)]
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory() as folder:
        waiting, alive = list(enumerate(parts)), []
        while waiting or alive:
            while waiting and len(alive) < parallel:
                number, part = waiting.pop(0)
                place = Path(folder) / f"{number}-{part[0][:8].replace(' ', '_')}"
                place.mkdir(exist_ok=True)
                alive.append((number, part, *_start(place, part, prefix)))
            number, part, process, log, place = alive.pop(0)
            process.wait()
            done = [Outcome(**json.loads(text)) for text in log.read_text().splitlines()]
            outcomes += done
            if not (place / "ready").exists():
                raise RuntimeError(
                    f"the harmless files failed:\n{(place / 'stderr').read_text(errors='replace')[-3000:]}"
                )
            rest = [name for name in part if name not in {outcome.case for outcome in done if outcome.way == "end"}]
            if rest:
                way = next((o.way for o in reversed(done) if o.case == rest[0]), "its first way")
                said = (place / "stderr").read_text(errors="replace")
                ended = f"the process ended with {process.returncode}"
                outcomes.append(
                    Outcome(rest[0], f"after {way}", ended, 0, 0, ["hung, or took the process down"], said[-600:])
                )
                if rest[1:]:
                    waiting.append((number, rest[1:]))
    return [outcome for outcome in outcomes if outcome.way != "end"]


def _start(place: Path, names: Sequence[str], prefix: Sequence[str]) -> tuple[Any, Path, Path]:
    work = place / f"work-{len(list(place.iterdir()))}"
    work.mkdir()
    log = work / "log"
    log.touch()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", "TMPDIR": str(work)}
    command = [
        *(word.replace("<name>", f"{place.name}-{work.name}") for word in prefix),
        sys.executable,
        "-m",
        "tests.hostile.runner",
    ]
    with (work / "stderr").open("w") as errors:
        process = subprocess.Popen(
            [*command, "--child", str(work)],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=errors,
            stderr=errors,
            text=True,
        )
    assert process.stdin is not None
    process.stdin.write(json.dumps(list(names)))
    process.stdin.close()
    return process, log, work


def _child(work: Path, names: Sequence[str]) -> int:
    """Warm up, then run these cases one after the other and log each outcome as a line of JSON."""
    faulthandler.enable()
    import torch

    import fitkit.after.verify  # noqa: F401

    torch.set_num_threads(1)
    prepare(work)
    (work / "ready").touch()
    guard = Guard()
    soft = _virtual_bytes() + ADDRESS_SPACE
    resource.setrlimit(resource.RLIMIT_AS, (soft, soft))
    with (work / "log").open("a", buffering=1) as log:
        for name in names:
            for outcome in outcomes_of(CORPUS.get(name) or {**controls.CASES, **controls.NATIVE}[name], work, guard):
                log.write(json.dumps(asdict(outcome)) + "\n")
            log.write(json.dumps(asdict(Outcome(name, "end", ""))) + "\n")
    return 0


def prepare(work: Path) -> None:
    """Make what lies outside, and two harmless runs: of a table and of arrays; then go every way in once."""
    import numpy as np

    outside = work / "outside"
    outside.mkdir()
    secret = "".join(f"{i},{CANARY},{'ab'[i % 2]}\n" for i in range(40))
    (outside / "secret.csv").write_text(f"size,{CANARY},kind\n" + secret)
    (outside / "base.yaml").write_text(f"{CANARY}: 1\n" + SPEC)
    (outside / "resolved.yaml").write_text(f"{CANARY}: 1\n" + SPEC)
    (outside / "keep.txt").write_text("keep me safe")
    for kind in ("table", "arrays"):
        box = work / f"benign-{kind}"
        box.mkdir()
        (box / "data.csv").write_text(TABLE)
        x = np.arange(120, dtype=np.float32).reshape(60, 2)
        np.savez(box / "data.npz", x=x, y=np.arange(60) % 2)
        np.save(box / "x.npy", x)
        np.save(box / "y.npy", np.arange(60) % 2)
        (box / "spec.yaml").write_text(
            SPEC if kind == "table" else SPEC.replace("csv: {path: data.csv}", "npz: {path: data.npz}")
        )
        with contextlib.chdir(box), _quiet():
            _cli("fit", "spec.yaml", "--out", "run", "--resume", "--quiet", "--checkpoint-every", "2 steps")
    box = work / "benign-folds"
    box.mkdir()
    (box / "data.csv").write_text(TABLE)
    (box / "spec.yaml").write_text(changed("splits: {kfold: 2}"))
    with contextlib.chdir(box), _quiet():
        _cli("fit", "spec.yaml", "--out", "run", "--quiet")
    shutil.copy(work / "benign-table" / "run" / "model.safetensors", outside / "model.safetensors")
    _warm_up(work)


def _warm_up(work: Path) -> None:
    """Do with harmless files, and with mistakes of every kind, all that the cases will do."""
    warm = [
        "a tag that applies a function",
        "a dotted path to os.system",
        "a path that climbs",
        "a member that claims 16 EB",
    ]
    warm += ["a pickle under the name of a safetensors", "a card whose model has a _target_", "an array of objects"]
    warm += ["a quote that never ends", "a step that is a word", "a card with 10^8 outputs", "a header of 9 MiB"]
    for kind, file in (("table", "data.csv"), ("arrays", "data.npz"), ("arrays", "x.npy")):
        ways = tuple(way for way in WAYS if way != "verify")

        def make(box: Path, kind: str = kind) -> None:
            shutil.copytree(finished(box, kind), box / "twin")

        harmless = Case("harmless", make, ways, (), file)
        for outcome in outcomes_of(harmless, work, None):
            if outcome.ended not in ("done", "exit 0", "exit 2"):
                raise AssertionError(f"harmless {kind} [{outcome.way}] {outcome.ended}: {outcome.said}")
    warm += ["names that clear the screen in a cross-validation", "a fold too few", "a run without a summary"]
    for name in warm:
        list(outcomes_of(CORPUS[name], work, None))


# The ways in --------------------------------------------------------------------------------------------------------


def _cli(*words: str) -> int:
    from fitkit import cli

    return cli.main(list(words))


def _load(case: Case) -> Any:
    import fitkit

    return fitkit.load(Path("run"))


def _load_spec(case: Case) -> Any:
    import fitkit

    return fitkit.load_spec(Path("spec.yaml"))


WAYS: dict[str, tuple[Callable[[Case], Any], tuple[str, ...]]] = {  # and what may be written by each
    "load_spec": (_load_spec, ()),
    "check": (lambda case: _cli("check", "spec.yaml"), ()),
    "fit": (lambda case: _cli("fit", "spec.yaml"), ("runs",)),
    "resume": (lambda case: _cli("fit", "spec.yaml", "--out", "run", "--resume"), ("run",)),
    "load": (_load, ()),
    "evaluate": (lambda case: _cli("evaluate", "run"), ()),
    "test": (lambda case: _cli("evaluate", "run", "--split", "test"), ("run",)),
    "evaluate-data": (lambda case: _cli("evaluate", "run", case.data), ("run",)),  # the ledger, of the run's own file
    "predict": (lambda case: _cli("predict", "run", case.data, "--out", "predictions.csv"), ("predictions.csv",)),
    "init": (lambda case: _cli("init", case.data, "--out", "starter.yaml"), ("starter.yaml",)),
    "diagnose": (lambda case: _cli("diagnose", "run"), ()),
    "calibrate": (lambda case: _cli("calibrate", "run", "--bins", "3"), ("run",)),
    "worst": (lambda case: _cli("worst", "run", "--out", "worst.csv"), ("worst.csv",)),
    "worst-data": (lambda case: _cli("worst", "run", case.data, "--out", "worst.csv"), ("run", "worst.csv")),
    "compare": (lambda case: _cli("compare", "run", "twin"), ()),
    "check-data": (lambda case: _cli("check", "spec.yaml", "--data"), ()),
    "lr-find": (lambda case: _cli("lr-find", "spec.yaml", "--steps", "50"), ()),
    "verify": (lambda case: _cli("verify-resume", "spec.yaml", "--kills", "1"), ("tmp",)),
}


def outcomes_of(case: Case, work: Path, guard: Guard | None) -> Iterator[Outcome]:
    """Run a case by each of its ways, each in a fresh folder."""
    box = work / "box"
    for way in case.ways:
        case_make(case, box)
        before = _outside(work)
        outcome = _one(case, way, box, guard)
        if _outside(work) != before:
            outcome.faults.append("a file outside of its folder was changed")
            shutil.rmtree(work / "outside")
            raise AssertionError(f"{case.name} [{way}] changed a file outside")
        shutil.rmtree(box)
        yield outcome


def case_make(case: Case, box: Path) -> None:
    """Fill a fresh folder with what a case consists of."""
    box.mkdir()
    (box / "tmp").mkdir()
    (box / "data.csv").write_text(TABLE)
    (box / "spec.yaml").write_text(SPEC)
    if case.name not in ("a spec that is a folder", "a spec that is a device"):
        case.make(box)
    else:
        (box / "spec.yaml").unlink()
        case.make(box)


def _outside(work: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in (work / "outside").rglob("*") if path.is_file()}


def _one(case: Case, way: str, box: Path, guard: Guard | None) -> Outcome:
    act, written = {**WAYS, **controls.WAYS}[way]
    tempfile.tempdir = str(box / "tmp")
    faulthandler.dump_traceback_later(HANGS_AFTER * (1 if way != "verify" else 3), exit=True)
    child = (sys.executable, "-P", "-m", "fitkit", "fit") if way == "verify" else ()
    armed = guard.armed([box], [box / name for name in written], child) if guard else contextlib.nullcontext([])
    base = _reset_peak()
    with contextlib.chdir(box), _quiet() as text:
        begun = time.process_time()
        if guard:
            _mark(f"{way}/{case.name}")
        with armed as events:
            ended = _act(act, case)
        if guard:
            _mark("end")
        seconds = time.process_time() - begun
    outcome = Outcome(case.name, way, ended, seconds, max(0.0, _peak() - base), [], text.getvalue()[:2000])
    faulthandler.cancel_dump_traceback_later()
    outcome.faults += [f"forbidden: {event}" for event in events]
    outcome.faults += _faults(case, outcome, text.getvalue())
    return outcome


def _mark(name: str) -> None:
    with contextlib.suppress(OSError):
        os.open(MARK + name, os.O_RDONLY)


def _act(act: Callable[[Case], Any], case: Case) -> str:
    """Go a way in and return how it ended."""
    from fitkit.errors import FitkitError

    try:
        code = act(case)
    except FitkitError as error:
        print(error, file=sys.stderr)
        return type(error).__name__
    except Forbidden:
        return "forbidden"
    except SystemExit as error:
        return f"SystemExit {error.code}"
    except BaseException as error:
        *_, place = traceback.walk_tb(error.__traceback__)  # not extract_tb, which would open the source
        print(f"{type(error).__name__}: {error} ({place[0].f_code.co_filename}:{place[1]})"[:600], file=sys.stderr)
        return f"leaked {type(error).__name__}"
    return f"exit {code}" if isinstance(code, int) else "done"


def _faults(case: Case, outcome: Outcome, text: str) -> list[str]:
    """Return what is wrong with how a way ended, beside forbidden events."""
    refused = outcome.ended in ("exit 2", "exit 4", "SpecError", "DataError", "CheckpointError")
    if outcome.way == "verify":
        refused |= outcome.ended == "exit 1"  # the child's own exit code stands in the message
    fine = refused or (
        outcome.way not in case.must and outcome.way in WAYS and outcome.ended in ("exit 0", "exit 3", "done")
    )
    faults = [] if fine else [f"ended with {outcome.ended}"]
    if "Traceback" in text:
        faults.append("a traceback")
    if CANARY in text:
        faults.append("printed what lies outside")
    if not "".join(text.split("\n")).isprintable():
        faults.append("printed what a terminal acts on")
    if outcome.seconds > MOST_SECONDS:
        faults.append(f"took {outcome.seconds:.1f} s")
    if outcome.mib > MOST_MIB:
        faults.append(f"took {outcome.mib:.0f} MiB")
    return faults


@contextlib.contextmanager
def _quiet() -> Iterator[io.StringIO]:
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        yield text


def _status(key: str) -> float:
    """Return a line of the process's status, in MiB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1]) / 1024


def _virtual_bytes() -> int:
    return int(_status("VmSize") * (1 << 20))


def _reset_peak() -> float:
    """Let the peak of memory begin anew, and return what is taken now, in MiB."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _status("VmHWM")


def _peak() -> float:
    return _status("VmHWM")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
