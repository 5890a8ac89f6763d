"""One session of a run: start it, go on with it where it was killed, or say that it is finished."""

from __future__ import annotations

import contextlib
import difflib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fitkit import run_folder
from fitkit.builder import assemble
from fitkit.builder.data import Prepared
from fitkit.engine import checkpoint
from fitkit.engine.batches import ArrayBatches
from fitkit.engine.signals import on_signal
from fitkit.errors import CheckpointError, Fault, SpecError
from fitkit.history import History
from fitkit.parts.callback import Callback
from fitkit.progress import Bar
from fitkit.resume import FOLDER, Checkpoints, restore
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
    callbacks: Sequence[Callback] = (),
    command: str | None = None,
    every_steps: int | None = None,
    every_seconds: float | None = None,
) -> tuple[History, Trainer | None]:
    """Build and fit. With `out`, keep the run folder up to date, whatever way the fit ends.

    With `resume`, the same call starts the run, goes on from its newest whole checkpoint, or returns the history of a
    finished one (with no trainer). Raises SpecError when the folder holds a run that was asked something else.
    """
    callbacks = (Bar(), *callbacks)
    if out is None:
        if resume:
            raise SpecError("resume needs the run folder: give out=FOLDER.")
        trainer, _ = assemble(spec, model, data, None, callbacks)
        with on_signal(trainer.interrupt):
            return trainer.fit(), trainer
    folder = Path(out)
    if not resume or not run_folder.may_hold_run(folder):
        run_folder.refuse_used(folder)
    writer = run_folder.RunFolder(spec, command)
    trainer, prepared = assemble(spec, model, data, folder, (writer, *callbacks))
    writer.data = fingerprint(prepared)
    run_folder.refuse_links(folder)
    with _locked(folder):
        if resume and (folder / run_folder.RESOLVED).is_file():
            refuse_change(folder, trainer, writer.data)
            if run_folder.status(folder) == "finished":
                return run_folder.read_history(folder), None
            writer.resumed = True
            trainer.resume = _resume_from(folder)
        trainer.keeper = Checkpoints(folder, every_steps=every_steps, every_seconds=every_seconds)
        return _fit(trainer, writer), trainer


def _fit(trainer: Trainer, writer: run_folder.RunFolder) -> History:
    status = "failed"
    try:
        with on_signal(trainer.interrupt):
            history = trainer.fit()
        status = "finished"
        return history
    except KeyboardInterrupt:
        status = "interrupted"
        raise
    finally:
        writer.close(trainer, status)


def _resume_from(folder: Path) -> Any:
    checkpoint.clear_leftovers(folder / FOLDER)
    saved = checkpoint.newest(folder / FOLDER)
    if saved is None:  # it was killed before the first checkpoint: the beginning is where it stands
        return None
    return lambda trainer: restore(trainer, saved)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
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
        try:
            yield
        finally:
            (folder / LOCK).unlink(missing_ok=True)


def refuse_change(folder: Path, trainer: Trainer, data: Mapping[str, str]) -> None:
    """Raise SpecError with every difference between what the folder's run was asked and what is asked now."""
    before = (folder / run_folder.RESOLVED).read_text("utf-8").splitlines()
    now = trainer.spec.to_yaml().splitlines()
    changes = [line for line in difflib.unified_diff(before, now, "then", "now", lineterm="", n=0) if line[:1] in "-+"]
    changes = [line for line in changes if not line.startswith(("---", "+++"))]
    environment = json.loads((folder / run_folder.ENV).read_text("utf-8"))
    for what, value in {"torch": torch.__version__, "threads": torch.get_num_threads(), **data}.items():
        if environment.get(what) != value:
            changes += [f"-{what}: {environment.get(what)}", f"+{what}: {value}"]
    if changes:
        message = "this run was asked something else, so it cannot be gone on with:\n  " + "\n  ".join(changes)
        raise SpecError(Fault(f"{message}\nStart another run in another folder.", str(folder)))


def fingerprint(prepared: Prepared) -> dict[str, str]:
    """Return a SHA-256 of the arrays and the split of a run, by part; of a Dataset only its length is known."""
    found = {}
    for name, batches in prepared.parts.items():
        digest = hashlib.sha256()
        if isinstance(batches, ArrayBatches):
            for tensor in (batches.x, batches.y, batches.rows, batches.starts):
                if tensor is not None:
                    digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
                    digest.update(_bytes(tensor))
        else:
            digest.update(str(batches.samples).encode())
        found[f"data_{name}"] = digest.hexdigest()
    return found


def _bytes(tensor: Tensor) -> bytes:
    flat = tensor.detach().contiguous().view(-1).view(torch.uint8)[:HASHED_BYTES]
    return bytes(flat.cpu().clone().untyped_storage())
