"""The run folder: the only module that knows the names of its files. It fills up while the run goes on."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import sys
import time
from pathlib import Path
from typing import Any

import torch

from fitkit import files
from fitkit.data_check import DataCheck
from fitkit.engine.weights import room, save
from fitkit.errors import CheckpointError, Fault, SpecError, listing
from fitkit.history import History
from fitkit.parts.callback import Callback
from fitkit.spec.reader import MOST_BYTES
from fitkit.spec.spec import Spec, dump

SPEC, RESOLVED, ENV, DATA_CHECK = "spec.yaml", "resolved.yaml", "env.json", "data_check.json"
FOLDS_CSV, FOLDS_JSON, PREDICTIONS = "folds.csv", "cross_validation.json", "predictions.csv"  # of a cross-validation
HISTORY_CSV, HISTORY_JSON, SUMMARY, WEIGHTS = "history.csv", "history.json", "summary.json", "model.safetensors"
MOST_HISTORY_BYTES = 256 << 20  # a million epochs of ten columns
# What `write_text` and `save` write before they rename it, and what safetensors does in between.
LEFTOVER = re.compile(r"\..+\.[0-9a-f]{16}\.tmp|\.tmp[0-9A-Za-z]{6}")
STATUSES = ("running", "interrupted", "failed", "finished")


def fresh(name: str, parent: Path = Path("runs")) -> Path:
    """Return `runs/<name>`, or the first of `-2`, `-3`, … that is not there: a run never overwrites another."""
    folder, number = parent / name, 1
    while folder.exists():
        number += 1
        folder = parent / f"{name}-{number}"
    return folder


def refuse_used(folder: Path) -> Path:
    """Return the folder if a run may be written there, else raise SpecError."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SpecError(Fault("is not empty; a run never overwrites anything. Choose another folder.", str(folder)))
    return folder


def status(folder: Path) -> str:
    """Return how the run in a folder stands: "running" (or killed), "interrupted", "failed" or "finished"."""
    if not (folder / SUMMARY).exists():  # killed in its first moment
        return "running"
    summary = files.read_json(folder / SUMMARY)
    if not isinstance(summary, dict) or summary.get("status") not in STATUSES:
        raise CheckpointError(f"{folder / SUMMARY}: does not say how the run stands: {listing(STATUSES)}.")
    return str(summary["status"])


def read_history(folder: Path) -> History:
    """Return the history of a finished run; `CheckpointError` names the file that is missing or damaged."""
    try:
        return History.from_json(_text(folder / HISTORY_JSON, MOST_HISTORY_BYTES))
    except CheckpointError as error:
        place = "" if str(folder) in str(error) else f"{folder / HISTORY_JSON}: "
        raise CheckpointError(f"{place}{error}") from None


def read_resolved(folder: Path) -> str:
    """Return the text of the resolved spec of a run; `CheckpointError` when it cannot be read."""
    return _text(folder / RESOLVED, MOST_BYTES)


def read_given(folder: Path) -> str | None:
    """Return the spec of a run as it was written; None where the folder does not hold it."""
    return _text(folder / SPEC, MOST_BYTES) if (folder / SPEC).exists() else None


def read_rows(folder: Path) -> str:
    """Return the rows that a run wrote so far, as CSV; `CheckpointError` when they cannot be read."""
    return _text(folder / HISTORY_CSV, MOST_HISTORY_BYTES)


def read_environment(folder: Path) -> dict[str, Any]:
    """Return what a run ran on, as `environment` noted it; `CheckpointError` when the file is missing or damaged."""
    found = files.read_json(folder / ENV)
    if not isinstance(found, dict):
        raise CheckpointError(f"{folder / ENV}: is damaged: it is no JSON object.")
    return found


def read_data_check(folder: Path) -> dict[str, Any] | None:
    """Return what the check of a run's data found, as `DataCheck.to_json`; None where none was made."""
    if not (folder / DATA_CHECK).exists():
        return None
    found = files.read_json(folder / DATA_CHECK)
    if not isinstance(found, dict):
        raise CheckpointError(f"{folder / DATA_CHECK}: is damaged: it is no JSON object.")
    return found


def _text(path: Path, most: int) -> str:
    try:
        return files.read_bytes(path, most=most, links=False).decode("utf-8")
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: is damaged: {error}.") from None


def refuse_links(folder: Path) -> None:
    """Raise CheckpointError when a run folder holds links, pipes or devices: writing there would write elsewhere."""
    for path in [folder, *folder.rglob("*")] if folder.exists() else []:
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise CheckpointError(f"{path}: a run folder holds plain files and folders only. Remove it to go on.")


def may_hold_run(folder: Path) -> bool:
    """Tell whether a folder holds a run that was begun, even one that was killed in its first moment."""
    if not folder.is_dir():
        return False
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    return RESOLVED in names or names <= {SPEC, ENV, DATA_CHECK}


def fold_folder(folder: Path, fold: int) -> Path:
    """Return the run folder of a fold, from 1, of a cross-validation."""
    return folder / f"fold-{fold}"


def fold_folders(folder: Path) -> list[Path]:
    """Return the run folders of a cross-validation's folds as far as they are begun; none for a single run."""
    if (folder / RESOLVED).exists():
        return []
    numbers = range(1, 1 + sum(1 for _ in folder.glob("fold-*")))
    return [path for number in numbers if (path := fold_folder(folder, number)).is_dir()]


def refuse_folds(folder: Path) -> None:
    """Raise SpecError for the folder of a cross-validation, where one run is wanted."""
    if folds := fold_folders(folder):
        what = f"a cross-validation of {len(folds)} fold{'s'[: len(folds) != 1]}"
        raise SpecError(Fault(f"this is {what}, each a run of its own: name one, such as {folds[0]}.", str(folder)))


def may_hold_folds(folder: Path) -> bool:
    """Tell whether a folder holds a cross-validation that was begun, even one that was killed in its first moment."""
    if not folder.is_dir():
        return False
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    return RESOLVED not in names and (SUMMARY in names or names <= {SPEC})


def write_text(path: Path, text: str) -> None:
    """Replace a file's text as a whole: a kill leaves the old text or the new one.

    Raises CheckpointError when the disk refuses.
    """
    temporary = path.with_name(f".{path.name}.{os.urandom(8).hex()}.tmp")
    try:
        with temporary.open("x", encoding="utf-8") as file:  # "x" follows no link that waits there
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise CheckpointError(f"{path}: cannot be written: {error.strerror}. {room(path.parent, len(text))}") from None


def clear_leftovers(folder: Path) -> None:
    """Remove the unfinished files that a killed run left: of texts, and of weights, which may be large."""
    for path in [*folder.rglob(".*.tmp"), *folder.rglob(".tmp??????")]:
        if LEFTOVER.fullmatch(path.name) and path.is_file():
            path.unlink(missing_ok=True)


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


class RunFolder(Callback):
    """Writes the run folder as training goes on: what was asked first, each epoch's row, the best weights so far."""

    writes_files = True

    def __init__(self, spec: Spec, command: str | None = None) -> None:
        self.spec, self.command = spec, command
        self.data: dict[str, str] = {}  # what the data was, as checksums
        self.checked: DataCheck | None = None  # what was found in it
        self.resumed = False
        self.best_epoch: int | None = None
        self.begun = time.time()

    def on_train_begin(self, trainer: Any) -> None:
        """Make the folder and write what is asked and where it runs."""
        folder = trainer.out
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"{folder}: the run folder cannot be made: {error.strerror}.") from None
        self.begun = time.time()
        if not self.resumed:
            write_text(folder / SPEC, self.spec.text or dump(dict(self.spec.given)))
            write_text(folder / ENV, _json(environment(trainer, self.command) | self.data))
            if self.checked is not None:
                write_text(folder / DATA_CHECK, _json(self.checked.to_json()))
            write_text(folder / RESOLVED, trainer.spec.to_yaml())  # last: a run without it has not begun
        write_text(folder / SUMMARY, _json({"status": "running"}))
        trainer.history.run = str(folder)

    def on_epoch_end(self, trainer: Any) -> None:
        """Write the rows so far, and the weights when they are the best so far."""
        write_text(trainer.out / HISTORY_CSV, trainer.history.to_csv())
        if trainer.history.best_epoch != self.best_epoch:
            self.best_epoch = trainer.history.best_epoch
            save(trainer.out / WEIGHTS, trainer.best, trainer.objective.transform, trainer.card)

    def close(self, trainer: Any, status: str) -> None:
        """Write the history, the summary and, where no epoch was best, the last weights."""
        folder, history = trainer.out, trainer.history
        if trainer.best is None and status == "finished":
            trainer.save(folder / WEIGHTS)
        write_text(folder / HISTORY_JSON, history.to_json())
        best = history.best(history.monitor) if history.best_epoch and history.monitor else None
        if status == "finished" and trainer.compiled != trainer.tier.compiles:
            actual = {"compiled": trainer.compiled, "compiled_or_not_because": trainer._train_step.refused}
            write_text(folder / ENV, _json(read_environment(folder) | actual))
        summary = {
            "status": status,
            "stopped": history.stopped,
            "epochs": len(history),
            "steps": trainer.step,
            "skipped_steps": trainer.skipped_steps,
            "compiled": trainer.compiled,
            "monitor": history.monitor,
            "best_epoch": history.best_epoch,
            "best": None if best is None else {k: v if v == v else None for k, v in best.items()},
            "peak_memory_mb": history.peak_memory_mb and round(history.peak_memory_mb, 1),
            "seconds": round(time.time() - self.begun, 3),
        }
        write_text(folder / SUMMARY, _json(summary))


def precision_of(trainer: Any) -> str:
    """Return the number format in which a trainer computes, by torch's name."""
    return str(trainer.objective.precision or next(trainer.model.parameters()).dtype).removeprefix("torch.")


def environment(trainer: Any, command: str | None) -> dict[str, Any]:
    """Return what the run runs on: versions, device, threads, and the precision and compilation actually used."""
    import fitkit

    device = trainer.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "fitkit": fitkit.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.release()}",  # platform.platform() starts a process, uname
        "device": str(device),
        "device_name": name,
        "threads": trainer.tier.threads or torch.get_num_threads(),
        "precision": precision_of(trainer),
        "compiled": trainer.tier.compiles,
        "compiled_from_epoch": trainer.tier.first or None,
        "compiled_or_not_because": trainer.tier.why,
        "command": command or " ".join(sys.argv),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
