"""Checkpoints on disk: a folder each, that is whole or not there, and is checked before anything in it is opened.

checkpoints/step-<N>/   model.safetensors optimizer.safetensors … state.json   each flushed to the disk
                        MANIFEST.json   sizes and SHA-256 of the others, last
written as .tmp-<…>, renamed when complete; the folder above is flushed, and only then is an old one removed
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from fitkit.engine.weights import room, sync, write_tensors
from fitkit.errors import CheckpointError, listing, show
from fitkit.files import available_memory, open_file, read_json, safetensors_header, too_much

MANIFEST, STATE, FORMAT = "MANIFEST.json", "state.json", 1
NAME = re.compile(r"step-(\d{1,18})")
FILE = re.compile(r"[a-z]{1,32}\.(safetensors|json)")  # base names only: nothing in a manifest may lead elsewhere
MOST_STATE_BYTES = 64 << 20
KEEP = 2


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds: groups of tensors, and plain JSON values."""

    path: Path
    tensors: Mapping[str, Mapping[str, Tensor]]
    state: Mapping[str, Any]


def step_of(path: Path) -> int:
    """Return the step at which a checkpoint was taken, by its name."""
    return int(path.name.removeprefix("step-"))


def write(folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> Path:
    """Write one checkpoint as a whole, then remove all but the newest two.

    Raises CheckpointError when the disk refuses; the earlier checkpoints are untouched then.
    """
    final = folder / f"step-{step}"
    if final.exists():
        return final
    temporary = folder / f".tmp-{step}-{os.getpid()}-{os.urandom(4).hex()}"
    needed = sum(t.numel() * t.element_size() for group in tensors.values() for t in group.values())
    try:
        temporary.mkdir(parents=True)
        for name in (name for name, group in tensors.items() if group):  # safetensors reads no empty file back
            group = tensors[name]
            write_tensors(temporary / f"{name}.safetensors", group, {})
        _write_json(temporary / STATE, state)
        files = {path.name: _digest(path) for path in sorted(temporary.iterdir())}
        _write_json(temporary / MANIFEST, {"format": FORMAT, "step": step, "files": files})
        sync(temporary)
        temporary.rename(final)
        sync(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        what = f"{final}: the checkpoint could not be written: {error}. {room(folder, needed)}"
        raise CheckpointError(f"{what} The earlier ones are untouched: free some space and resume.") from None
    prune(folder)
    return final


def _write_json(path: Path, value: Any) -> None:
    with path.open("w", encoding="utf-8") as file:
        json.dump(value, file, allow_nan=False)
        file.flush()
        os.fsync(file.fileno())


def _digest(path: Path, most: int | None = None) -> dict[str, Any]:
    with open_file(path, most=most, links=False) as file:
        return {"bytes": os.fstat(file.fileno()).st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def steps(folder: Path) -> list[int]:
    """Return the steps of the checkpoints that are there, oldest first."""
    found = (NAME.fullmatch(path.name) for path in folder.glob("step-*"))
    return sorted(int(match[1]) for match in found if match)


def prune(folder: Path, keep: int = KEEP) -> None:
    """Remove all but the newest checkpoints."""
    for step in steps(folder)[:-keep]:
        shutil.rmtree(folder / f"step-{step}", ignore_errors=True)


def clear_leftovers(folder: Path) -> None:
    """Remove the unfinished folders of saves that were killed."""
    for path in folder.glob(".tmp-*"):
        shutil.rmtree(path, ignore_errors=True)


def newest(folder: Path) -> Checkpoint | None:
    """Return the newest checkpoint that is whole, or None if there never was one.

    A damaged one is skipped with a warning that names the file. Raises CheckpointError when all are damaged: starting
    over in silence is how runs are lost.
    """
    faults = []
    for step in reversed(steps(folder)):
        path = folder / f"step-{step}"
        try:
            return read(path)
        except CheckpointError as error:
            faults.append(str(error))
            warnings.warn(f"{error} Going back to an earlier checkpoint.", stacklevel=2)
    if faults:
        raise CheckpointError(f"{folder}: no checkpoint is whole. {' '.join(faults)} To start over, remove {folder}.")
    return None


def read(path: Path) -> Checkpoint:
    """Return a checkpoint after comparing the size and SHA-256 of every file with its manifest."""
    files = _manifest(path)
    for name, said in files.items():
        file = path / name
        try:
            right = _digest(file, available_memory()) == said
        except OSError as error:
            raise CheckpointError(f"{file}: {MANIFEST} names it, but it cannot be read: {error.strerror}.") from None
        if not right:
            raise CheckpointError(f"{file}: is damaged: its size or checksum is not what {MANIFEST} says.")
    state = read_json(path / STATE, most=MOST_STATE_BYTES)
    try:
        tensors = {n.removesuffix(".safetensors"): _tensors(path / n) for n in files if n.endswith(".safetensors")}
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}.") from None
    if not isinstance(state, dict):
        raise CheckpointError(f"{path / STATE}: is damaged: it is no JSON object.")
    return Checkpoint(path, tensors, state)


def _manifest(path: Path) -> dict[str, Any]:
    manifest = read_json(path / MANIFEST)
    try:
        files = manifest["files"]
        if manifest["format"] != FORMAT or f"step-{manifest['step']}" != path.name or STATE not in files:
            raise ValueError("another format, or moved from elsewhere")
        if not isinstance(files, dict):
            raise ValueError("its files are no mapping")
        wrong = [name for name in files if not FILE.fullmatch(name) or name == MANIFEST]
        if wrong:
            raise ValueError(f"it names {listing(map(show, wrong), 3)}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path / MANIFEST}: is missing or damaged: {error}.") from None
    return dict(files)


def _tensors(path: Path) -> dict[str, Tensor]:
    # A clone, since the file is mapped into memory: writing to it later would change the tensors under our hands.
    if fault := too_much(sum(size for _, _, size in safetensors_header(path, links=False).values())):
        raise ValueError(f"{path.name} {fault}")
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
