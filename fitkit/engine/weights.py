"""Weights on disk: one safetensors file with the model, its input transform, and a card that says what they are."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, TensorSpec, safe_open, serialize_file
from torch import Tensor, nn

from fitkit.errors import CheckpointError, listing, show

CARD = "fitkit"  # one metadata key only: with several their order, and so the file's bytes, would differ every time
MODEL, TRANSFORM = "model.", "transform."


def snapshot(model: nn.Module, into: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Return a copy of the model's state, written into an earlier copy when one is given."""
    state = model.state_dict()
    if into is None:
        return {name: tensor.detach().clone() for name, tensor in state.items()}
    for name, tensor in state.items():
        into[name].copy_(tensor)
    return into


def save(path: Path, state: Mapping[str, Tensor], transform: nn.Module | None, card: Mapping[str, Any]) -> None:
    """Write weights and card beside the target, flush, and rename: a kill leaves the old file or the new one.

    Raises CheckpointError when the disk refuses.
    """
    tensors = {MODEL + name: tensor for name, tensor in state.items()}
    tensors |= {TRANSFORM + name: tensor for name, tensor in (transform.state_dict() if transform else {}).items()}
    tensors, ties = untie(tensors)
    text = json.dumps({**card, "ties": ties}, allow_nan=False)
    temporary = path.with_name(f".{path.name}.{os.urandom(8).hex()}.tmp")  # a name that no link can wait under
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(temporary, tensors, {CARD: text})
        temporary.replace(path)
        sync(path.parent)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise CheckpointError(
            f"{path}: the weights could not be written: {error}. Free some space and run again."
        ) from None


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write contiguous CPU tensors to a file that is on the disk when this returns; OSError when it refuses."""
    serialize_file({name: _spec(tensor) for name, tensor in tensors.items()}, path, dict(metadata))
    os.chmod(path, 0o644)  # safetensors makes it 0600, so that no colleague could read it
    sync(path)


def _spec(tensor: Tensor) -> TensorSpec:
    """Say where a CPU tensor's bytes are; safetensors' own function for torch would need NumPy for it."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    length = tensor.numel() * tensor.element_size()
    return TensorSpec(dtype=dtype, shape=tensor.shape, data_ptr=tensor.data_ptr(), data_len=length)


def sync(path: Path) -> None:
    """Make the system write a file or folder to the disk before anything else happens."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def untie(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return a CPU copy of each tensor, and which names share one: safetensors refuses tensors that share memory."""
    first: dict[object, str] = {}
    kept, ties = {}, {}
    for name, tensor in tensors.items():
        key = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and key in first:
            ties[name] = first[key]
        else:
            first[key] = name
            kept[name] = tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
    return kept, ties


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    """Return the model's state, the transform's state, and the card of a weights file.

    Raises CheckpointError when it is missing, damaged, or not fitkit's.
    """
    try:
        with safe_open(path, framework="pt") as file:
            card = json.loads((file.metadata() or {})[CARD])
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        for name, source in card.pop("ties").items():
            tensors[name] = tensors[source]
    except FileNotFoundError:
        raise CheckpointError(f"{path}: there is no such file.") from None
    except (OSError, SafetensorError, KeyError, ValueError, AttributeError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a weights file of fitkit, or damaged: {error}.") from None
    model = {name.removeprefix(MODEL): tensor for name, tensor in tensors.items() if name.startswith(MODEL)}
    transform = {n.removeprefix(TRANSFORM): tensor for n, tensor in tensors.items() if n.startswith(TRANSFORM)}
    return model, transform, card


def put(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Copy a loaded state into a model, which must have exactly these names and shapes."""
    own = model.state_dict()
    wrong = sorted(own.keys() ^ state.keys()) or [name for name in own if own[name].shape != state[name].shape]
    if wrong:
        raise CheckpointError(
            f"{path}: the weights do not fit this model; they differ in {listing(map(show, wrong), 6)}."
        )
    model.load_state_dict(dict(state))
