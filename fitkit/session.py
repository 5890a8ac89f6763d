"""One session of a run: start it, go on with it where it was killed, or say that it is finished."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import torch
from torch import nn

from fitkit import run_folder
from fitkit.builder import assemble
from fitkit.builder.data import Prepared
from fitkit.builder.look import warn
from fitkit.changes import HARMLESS, Change, changes, check_allowed
from fitkit.engine import checkpoint
from fitkit.engine.batches import RowBatches
from fitkit.engine.signals import on_signal
from fitkit.engine.weights import first_bytes
from fitkit.errors import CheckpointError, Fault, SpecError
from fitkit.history import History
from fitkit.parts.callback import Callback
from fitkit.parts.tracker import Status, Tracker
from fitkit.progress import Bar
from fitkit.resume import FOLDER, Checkpoints, check_place, restore
from fitkit.spec import reader
from fitkit.spec.spec import Spec
from fitkit.trainer import Trainer

LOCK = ".lock"
HASHED_BYTES = 1 << 26  # of each array: enough to notice other data, and quick


def run(
    spec: Spec,
    *,
    model: nn.Module | None = None,
    data: Any = None,
    out: Path | str | None = None,
    resume: bool = False,
    allow_change: Sequence[str] = (),
    callbacks: Sequence[Callback] = (),
    command: str | None = None,
    every_steps: int | None = None,
    every_seconds: float | None = None,
) -> tuple[History, Trainer | None]:
    """Build and fit. With `out`, keep the run folder up to date, whatever way the fit ends.

    With `resume`, the same call starts the run, goes on from its newest whole checkpoint, or returns the history of a
    finished one (with no trainer). Raises SpecError when the folder holds a run that was asked something else, unless
    `allow_change` names the dotted keys that differ; then it goes on as it is asked now, and the folder says so.
    """
    check_call(out, resume, allow_change)
    callbacks = (Bar(), *callbacks)
    if out is None:
        trainer, prepared = assemble(spec, model, data, None, callbacks)
        warn(prepared, stacklevel=4)
        return _fit(trainer, None), trainer
    folder = Path(out)
    if not resume or not run_folder.may_hold_run(folder):
        run_folder.refuse_used(folder)
    writer = run_folder.RunFolder(spec, command)
    trainer, prepared = assemble(spec, model, data, folder, (writer, *callbacks))
    writer.data = fingerprint(prepared)
    run_folder.refuse_links(folder)
    with locked(folder):
        run_folder.clear_leftovers(folder)
        if resume and (folder / run_folder.RESOLVED).is_file():
            changed = find_changes(folder, trainer, writer.data, allow_change)
            finished = run_folder.status(folder) == "finished"
            if finished and not changed:
                return run_folder.read_history(folder), None
            writer.resumed = True
            trainer.resume = _resume_from(folder, trainer, finished, changed)
        writer.checked = warn(prepared, stacklevel=4)
        trainer.keeper = Checkpoints(folder, every_steps=every_steps, every_seconds=every_seconds)
        return _fit(trainer, writer), trainer


def check_call(out: Path | str | None, resume: bool, allow_change: Sequence[str]) -> None:
    """Raise SpecError for arguments of `run` that do not go together."""
    if isinstance(allow_change, str):
        raise SpecError(f"allow_change takes a list of keys: write [{allow_change!r}].")
    if allow_change and not resume:
        raise SpecError("only a run that is resumed can allow a change: give --resume, in Python resume=True, too.")
    if resume and out is None:
        raise SpecError("resume needs the run folder: give out=FOLDER.")


def _fit(trainer: Trainer, writer: run_folder.RunFolder | None) -> History:
    status: Status = "failed"
    try:
        with on_signal(trainer.interrupt):
            history = trainer.fit()
        status = "finished"
        return history
    except KeyboardInterrupt:
        status = "interrupted"
        raise
    finally:
        try:
            if writer is not None:
                writer.close(trainer, status)
        except CheckpointError:
            if status == "finished":  # else what ended the run is what to tell
                raise
        finally:
            for tracker in (callback for callback in trainer.callbacks if isinstance(callback, Tracker)):
                tracker.end(trainer, status)


def _resume_from(folder: Path, trainer: Trainer, finished: bool, changed: Sequence[Change]) -> Any:
    keys = [change.key for change in changed]
    checkpoint.clear_leftovers(folder / FOLDER)
    saved = checkpoint.newest(folder / FOLDER)
    if saved is None and finished:
        raise CheckpointError(f"{folder / FOLDER}: the run is finished and has no checkpoint to go on from.")

    if saved is not None:
        check_place(trainer, saved, keys)
        if checkpoint.step_of(saved.path) == checkpoint.steps(folder / FOLDER)[-1]:
            checkpoint.prune(folder / FOLDER)  # a save that was killed may not have come to it

    def resume(trainer: Trainer) -> None:
        if saved is not None:  # else it was killed before the first checkpoint: the beginning is where it stands
            restore(trainer, saved, keys)
        if changed:
            _record(folder, trainer, changed)

    return resume


def _record(folder: Path, trainer: Trainer, changed: Sequence[Change]) -> None:
    """Write into the run folder what it is asked from now on, and what it was asked before."""
    when = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    environment = run_folder.read_environment(folder)
    environment |= {change.key: change.now for change in changed if change.key in environment}
    environment["changes"] = [
        *environment.get("changes", []),
        *({"when": when, "step": trainer.step, **change.to_json()} for change in changed),
    ]
    run_folder.write_text(folder / run_folder.ENV, json.dumps(environment, indent=2, allow_nan=False) + "\n")
    run_folder.write_text(folder / run_folder.RESOLVED, trainer.spec.to_yaml())


_locks: list[IO[str]] = []  # the lock files that this process holds
# A process that is forked, as a loader's worker is, would else hold the lock on when this one is killed.
os.register_at_fork(after_in_child=lambda: [file.close() for file in _locks])


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which the system lets go of when the process ends, however it ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        file = os.fdopen(os.open(folder / LOCK, flags, 0o600), "w")
    except OSError as error:
        raise CheckpointError(f"{folder}: the run folder cannot be made: {error.strerror}.") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise SpecError(Fault("another process is running in this folder.", str(folder))) from None
        _locks.append(file)
        try:
            yield
        finally:
            _locks.remove(file)
            (folder / LOCK).unlink(missing_ok=True)


def find_changes(folder: Path, trainer: Trainer, data: Mapping[str, str], allowed: Sequence[str]) -> list[Change]:
    """Return every difference between what the run was asked and what is asked now, and of what it runs on.

    Raises SpecError unless all of them are allowed, and are such as a run can be gone on with.
    """
    now = {"torch": str(torch.__version__), "threads": trainer.tier.threads or torch.get_num_threads(), **data}
    if trainer.options.precision == "auto":  # another machine may choose another one
        now["precision"] = run_folder.precision_of(trainer)
    environment = run_folder.read_environment(folder)
    asked = [reader.read_text(text).plain() for text in (run_folder.read_resolved(folder), trainer.spec.to_yaml())]
    then = {**asked[0], **{name: environment[name] for name in environment if name in now or name.startswith("data_")}}
    found = [change for change in changes(then, {**asked[1], **now}) if change.key not in HARMLESS]
    check_allowed(found, allowed, [then, asked[1]], str(folder))
    return found


def fingerprint(prepared: Prepared) -> dict[str, str]:
    """Return a SHA-256 of the arrays and the split of a run, by part; of a Dataset only its length is known."""
    found = {}
    for name, batches in prepared.parts.items():
        digest = hashlib.sha256()
        if isinstance(batches, RowBatches):
            for tensor in (batches.x, batches.y, batches.rows, batches.starts):
                if tensor is not None:
                    digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
                    digest.update(first_bytes(tensor, HASHED_BYTES))
        else:
            digest.update(str(batches.samples).encode())
        found[f"data_{name}"] = digest.hexdigest()
    return found
