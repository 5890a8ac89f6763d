"""Hostile run folders for the commands that look at finished runs, and folders of cross-validations.

Every case of `files.py` that changes a run folder is gone through by these ways too; what follows is theirs alone.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .case import SPEC, TABLE, Case
from .files import CARDS, FOLDERS, WEIGHTS, finished, hole, nested, outward, parts, pipe, says, tensors
from .specs import changed

READS_DATA = ("calibrate", "worst", "compare")  # the split of a run, as `evaluate` does
UNDERSTAND = ("diagnose", *READS_DATA, "worst-data")
CLEAR = "\x1b[2J\x1b]0;pwned\x07"


def understood(case: Case) -> Case:
    """Return a case by the ways that look at a finished run; where `evaluate` has to refuse, so have most of them."""
    must = READS_DATA if "evaluate" in case.must else ()
    must += ("worst-data",) if "evaluate-data" in case.must else ()

    def make(box: Path) -> None:
        case.make(box)
        shutil.copytree(box.parent / "benign-table" / "run", box / "twin")

    return dataclasses.replace(case, name=f"{case.name}, looked at", make=make, ways=UNDERSTAND, must=must)


def run(
    name: str, change: Callable[[Path], Any], must: tuple[str, ...] = (), ways: tuple[str, ...] = UNDERSTAND
) -> Case:
    """Return a case in which one thing of a run folder was changed, and a harmless run lies beside it."""

    def make(box: Path) -> None:
        shutil.copytree(finished(box), box / "twin")
        change(box / "run")

    return Case(name, make, ways, must)


def document(file: str, *keys: str, value: Any) -> Callable[[Path], None]:
    """Return what sets one value deep in a JSON file of a run folder."""

    def change(run: Path) -> None:
        said = json.loads((run / file).read_text())
        says(*keys, value=value)(said)
        (run / file).write_text(json.dumps(said))

    return change


def table(text: str, spec: str = SPEC) -> Callable[[Path], None]:
    """Return what puts another table and spec into a case's folder."""

    def make(box: Path) -> None:
        (box / "data.csv").write_text(text)
        (box / "spec.yaml").write_text(spec)

    return make


def card(*keys: str, value: Any) -> Callable[[Path], None]:
    """Return what sets one value in the card of a run's weights."""

    def change(run: Path) -> None:
        header, body = parts(run / "model.safetensors")
        said = json.loads(header["__metadata__"]["fitkit"])
        says(*keys, value=value)(said)
        header["__metadata__"]["fitkit"] = json.dumps(said)
        (run / "model.safetensors").write_bytes(tensors(header, body))

    return change


def cross(name: str, change: Callable[[Path], Any], must: tuple[str, ...] = (), resume: bool = False) -> Case:
    """Return a case in which something of a finished cross-validation of two folds was changed."""

    def make(box: Path) -> None:
        shutil.copytree(box.parent / "benign-folds", box, dirs_exist_ok=True)
        shutil.copytree(box / "run" / "fold-1", box / "twin")
        change(box / "run")

    ways = ("evaluate", "worst", "diagnose", "calibrate", "compare", "load", "resume")
    return Case(name, make, ways, must or ways)


def replaced(text: str) -> Callable[[Path], None]:
    """Return what writes another text into the place of one file of a run folder, by its name in the folder."""
    file, _, content = text.partition("|")
    return lambda run: (run / file).write_text(content)


def swap(run: Path) -> None:
    """Put the first fold into the place of the second, so that its rows would count twice."""
    shutil.rmtree(run / "fold-2")
    shutil.copytree(run / "fold-1", run / "fold-2")


def of_another_kind(run: Path) -> None:
    """Put a run of another kind into the place of the second fold."""
    shutil.rmtree(run / "fold-2")
    shutil.copytree(run.parent.parent / "benign-arrays" / "run", run / "fold-2")


def fold_link(run: Path) -> None:
    """Put a link to a folder outside into the place of the first fold; what lies there must not be printed."""
    shutil.rmtree(run / "fold-1")
    (run / "fold-1").symlink_to("../../outside")


def empty_history(run: Path) -> None:
    """Take all epochs out of a history."""
    said = json.loads((run / "history.json").read_text())
    said |= {"columns": {name: [] for name in said["columns"]}, "best_epoch": None}
    (run / "history.json").write_text(json.dumps(said))


def long_history(count: int) -> Callable[[Path], None]:
    """Return what makes a history of many epochs, none like the one before."""

    def change(run: Path) -> None:
        said = json.loads((run / "history.json").read_text())
        values = [float(i * 7919 % 1000) for i in range(count)]
        said |= {"columns": dict.fromkeys(said["columns"], values), "best_epoch": count}
        (run / "history.json").write_text(json.dumps(said))

    return change


SPECS_OF_HISTORY: dict[str, Any] = {
    "is a list": [1],
    "clears the screen": {"optimizer": {CLEAR: {"lr": 1e-9}}, "model": {CLEAR: {"hidden": [4]}}},
    "is of 10^300": {"optimizer": {"SGD": {"lr": 1e300, "momentum": 10**300, "weight_decay": -(10**300)}},
                     "fit": {"epochs": 10**300, "batch_size": 10**300, "accumulate": 10**300}},
    "is of nothing": {"optimizer": {"SGD": {"lr": 0, "momentum": 1}}, "fit": {"batch_size": 0.001, "accumulate": 0}},
    "is below zero": {"optimizer": {"SGD": {"lr": -1.0}}, "fit": {"batch_size": -1, "epochs": -5}},
    "is of other kinds": {"optimizer": [1], "model": [[1], {"Dropout": [1]}, {"Dropout": {"p": 0.9}}, None],
                          "callbacks": {"EarlyStopping": [1]}, "splits": 1, "fit": [], "loss": {"a": 1, "b": 2}},
    "has a layer of many levels": {"model": [{"Dropout": {"p": 0.9, "x": json.loads(nested(800))}}]},
}  # fmt: skip
OF_HISTORY = [
    *[run(f"a history whose spec {what}", document("history.json", "spec", value=value), ways=("diagnose", "resume"))
      for what, value in SPECS_OF_HISTORY.items()],
    run("a history that stopped with a clear screen", document("history.json", "stopped", value=CLEAR),
        ways=("diagnose", "resume")),
    run("a history that failed with a clear screen", document("history.json", "stopped", value=f"failed: {CLEAR}"),
        ways=("diagnose", "resume")),
    run("a history whose monitor clears the screen", document("history.json", "monitor", value=CLEAR),
        ways=("diagnose", "resume")),
    run("a history of 10^300 rows", document("history.json", "samples", value={"train": 10**300, "val": 10**300}),
        ways=("diagnose",)),
    run("a history of rows below zero", document("history.json", "samples", value={"train": -5, "val": -5}),
        ways=("diagnose",)),
    run("a history of 10^300 classes", document("history.json", "classes", value=10**300), ways=("diagnose",)),
    run("a history whose baseline is tiny", document("history.json", "baseline", value={"val_loss": 5e-324}),
        ways=("diagnose",)),
    run("a history whose baseline is a list", document("history.json", "baseline", value=[1]), ("diagnose",),
        ("diagnose",)),
    run("a history whose samples are a word", document("history.json", "samples", value="x"), ("diagnose",),
        ("diagnose",)),
    run("a history without epochs", empty_history, ways=("diagnose", "resume")),
    run("a history of 20,000 epochs", long_history(20_000), ways=("diagnose",)),
]  # fmt: skip
TEMPERATURES = {"zero": 0, "below zero": -1.0, "nothing": None, "a word": "1.5", "a list": [1.0], "truth": True,
                "beyond any float": 10**400}  # fmt: skip
OF_TEMPERATURE = [
    *[run(f"a temperature of {what}", card("temperature", value=value), ("calibrate", "worst", "compare", "worst-data"))
      for what, value in TEMPERATURES.items()],
    run("a temperature next to zero", card("temperature", value=5e-324)),
    run("a temperature of 10^308", card("temperature", value=1e308)),
]  # fmt: skip
OF_RUNS = [
    run("an environment of other kinds", replaced('env.json|{"torch": [[]], "threads": {"a": 1}, "data_val": 1}')),
    run("an environment that clears the screen for a comparison", document("env.json", "device_name", value=CLEAR)),
    run("a summary of other kinds", replaced(
        'summary.json|{"status": "finished", "epochs": "x", "best_epoch": [], "seconds": {}, "peak_memory_mb": "1"}')),
    run("a summary that clears the screen", replaced(
        f'summary.json|{{"status": "finished", "seconds": {json.dumps(CLEAR)}}}')),
    run("a run without a summary", lambda run: (run / "summary.json").unlink(), ("calibrate", "compare")),
    run("weights that are a link, to calibrate", outward("model.safetensors"), READS_DATA),
    run("a lock that is a link, to calibrate", outward(".lock"), (*READS_DATA, "diagnose")),
    run("a lock that is a pipe, to calibrate", lambda run: pipe(run / ".lock"), (*READS_DATA, "diagnose")),
    run("predictions that are there already", lambda run: (run.parent / "worst.csv").write_text("mine"),
        ("worst", "worst-data")),
    run("predictions that are a link to nowhere", lambda run: (run.parent / "worst.csv").symlink_to("../outside/new"),
        ("worst", "worst-data")),
]  # fmt: skip
OF_FOLDS = [
    cross("a fold that is a link", fold_link),
    cross("a second fold that is the first", swap, ("evaluate", "worst")),
    cross("a second fold of another kind", of_another_kind, ("evaluate", "worst", "resume")),
    cross("a fold too many", lambda run: shutil.copytree(run / "fold-1", run / "fold-3"), ("evaluate", "worst")),
    cross("a fold too few", lambda run: shutil.rmtree(run / "fold-2"), ("evaluate", "worst")),
    cross("folds within a fold", lambda run: (run / "fold-1").rename(run / "x") and (run / "fold-1").mkdir()
          or shutil.move(run / "x", run / "fold-1" / "fold-1"), ("evaluate", "worst", "resume")),
    cross("a fold that is a pipe", lambda run: (shutil.rmtree(run / "fold-2"), pipe(run / "fold-2"))),
    cross("a fold whose history is empty", lambda run: empty_history(run / "fold-2"), ("resume",)),
    cross("a fold whose history has other columns", lambda run: replaced(
        "fold-2/history.json|" + (run / "fold-2/history.json").read_text().replace("val_loss", "x"))(run), ("resume",)),
    cross("a fold whose losses overflow", lambda run: document(
        "fold-2/history.json", "columns", "val_loss", value=[1e308])(run), ("diagnose",)),
    cross("a cross-validation whose summary nests", replaced("summary.json|" + nested(100_000)),
          ("evaluate", "worst", "resume")),
    cross("a cross-validation whose summary is no UTF-8", lambda run: (run / "summary.json").write_bytes(b"\xff\xfe"),
          ("evaluate", "worst", "resume")),
    cross("a cross-validation whose summary has no end", lambda run: hole(1 << 40)(run / "summary.json"),
          ("evaluate", "worst", "resume")),
]  # fmt: skip


def named(name: str, text: str, spec: str = SPEC, must: tuple[str, ...] = ()) -> Case:
    """Return a case of a spec and a table for the commands that look before a fit, and for a cross-validation."""
    return Case(name, table(text, spec), ("check-data", "lr-find", "fit"), must)


HOSTILE_NAMES = f"size{CLEAR},<b>=1+1{CLEAR},kind{CLEAR}\n" + "".join(
    f"{i * 0.37:.2f},{'rgb'[i % 3]}{CLEAR},{'ab'[i % 2]}{CLEAR}<script>\n" for i in range(60)
)
FOLDS = [f"splits: {{{split}}}" for split in (
    "kfold: {k: 1000000000}", "kfold: {k: 2, repeats: 1000000000}", "kfold: {k: 2, repeats: 1000000000, fold: 7}",
    "time_series: {k: 1000000000}", "kfold: {k: 4611686018427387904, repeats: 4611686018427387904}")]  # fmt: skip
BEFORE = [
    *[named(f"a spec that asks for {split.partition('{')[2][:-1]}", TABLE, changed(split), ("check-data", "lr-find",
            "fit")) for split in FOLDS],
    named("names that clear the screen in all that is printed", HOSTILE_NAMES),
    named("names that clear the screen in a cross-validation", HOSTILE_NAMES, changed("splits: {kfold: 2}")),
    named("groups in a column that clears the screen", HOSTILE_NAMES,
          changed(f'splits: {{kfold: {{k: 2, groups: "size{CLEAR}"}}}}'.replace("\x1b", "\\e").replace("\x07", "\\a"))),
    named("a class in each row", "size,kind\n" + "".join(f"{i},c{i}\n" for i in range(3000))),
]  # fmt: skip

RUNS: list[Case] = [
    *map(understood, (case for case in [*WEIGHTS, *CARDS, *FOLDERS] if "evaluate" in case.ways)),
    *(OF_HISTORY + OF_TEMPERATURE + OF_RUNS + OF_FOLDS + BEFORE),
]
