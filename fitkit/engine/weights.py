"""Weights on disk: one safetensors file with the model, its input transform, and a card that says what they are."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, TensorSpec, safe_open, serialize_file
from torch import Tensor, nn

from fitkit import files
from fitkit.errors import CheckpointError, listing, show

T = TypeVar("T")
CARD = "fitkit"  # one metadata key only: with several their order, and so the file's bytes, would differ every time
MODEL, TRANSFORM = "model.", "transform."
DTYPES = {  # of what a model may hold, by safetensors' names
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64,
    "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64,
    "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64, "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip


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
    _write(path, tensors, card)


def amend(path: Path, **values: Any) -> None:
    """Write values into the card of a weights file, None to take one away; its tensors stay the same, bit for bit.

    A kill leaves the old file or the new one. Raises CheckpointError when it cannot be read or written.
    """
    state, transform, card = load(path, links=False)
    tensors = {MODEL + name: tensor for name, tensor in state.items()}
    tensors |= {TRANSFORM + name: tensor for name, tensor in transform.items()}
    amended = {**card, **values}
    _write(path, tensors, {key: value for key, value in amended.items() if key not in values or value is not None})


def _write(path: Path, tensors: Mapping[str, Tensor], card: Mapping[str, Any]) -> None:
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
        needed = room(path.parent, sum(t.numel() * t.element_size() for t in tensors.values()))
        raise CheckpointError(f"{path}: the weights could not be written: {error}. {needed}") from None


def room(folder: Path, needed: int) -> str:
    """Say how many bytes something needs, and how many are free in the folder where it could not be written."""
    while not folder.exists():
        folder = folder.parent
    return f"It needs {needed:,} bytes and {shutil.disk_usage(folder).free:,} are free."


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


def first_bytes(tensor: Tensor, most: int | None = None) -> bytearray:
    """Return a copy of a tensor's bytes in their order, at most the first `most`."""
    if most is not None and tensor.dim():  # of what may not fit in memory
        rows = -(-most // max(1, tensor[:1].numel() * tensor.element_size()))
        tensor = tensor[:rows].clone(memory_format=torch.contiguous_format)
    flat = tensor.detach().contiguous().view(-1).view(torch.uint8)[:most]
    raw = bytearray(len(flat))
    if raw:  # bytes() of a storage would call Python for each of them: seconds a megabyte
        torch.frombuffer(raw, dtype=torch.uint8).copy_(flat)
    return raw


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


def describe(path: Path, *, links: bool = True) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    """Return what `load` does, with the tensors on the meta device: dtypes and shapes, and no numbers read.

    Raises CheckpointError when it is missing, damaged, not fitkit's, or larger than the memory.
    """
    with _plain_errors(path):
        header = files.safetensors_header(path, links=links)
        if fault := files.too_much(sum(size for _, _, size in header.values())):
            raise ValueError(f"it {fault}")
        with safe_open(path, framework="pt") as file:
            card = files.parse_json((file.metadata() or {})[CARD])
        stored = {
            name: torch.empty(shape, dtype=DTYPES[dtype], device="meta") for name, (dtype, shape, _) in header.items()
        }
        for name, source in card["ties"].items():
            stored[name] = stored[source]
    return _named(stored, MODEL), _named(stored, TRANSFORM), card


def load(path: Path, *, links: bool = True) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    """Return the model's state, the transform's state, and the card of a weights file.

    Raises CheckpointError when it is missing, damaged, not fitkit's, or larger than the memory.
    """
    card = describe(path, links=links)[2]
    with _plain_errors(path):
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        for name, source in card.pop("ties").items():
            tensors[name] = tensors[source]
        transform = _named(tensors, TRANSFORM)
        if not all(tensor.isfinite().all() for tensor in transform.values()):
            raise ValueError("its transform of the inputs is not finite")
    return _named(tensors, MODEL), transform, card


def _named(values: Mapping[str, T], prefix: str) -> dict[str, T]:
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}


@contextmanager
def _plain_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise CheckpointError(f"{path}: there is no such file.") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}.") from None
    except (SafetensorError, KeyError, ValueError, AttributeError, TypeError, RuntimeError) as error:
        reason = files.why_not(path) or f"not a weights file of fitkit, or damaged: {error}."
        raise CheckpointError(f"{path}: {reason}") from None


def compare(model: nn.Module, stored: Mapping[str, Tensor], path: Path) -> None:
    """Raise CheckpointError unless a file holds just the tensors of a model, in its shapes and kinds of number.

    Floats of another width are no error: `put` converts them, and says so. Both may be on the meta device.
    """
    own = model.state_dict()
    wrong = sorted(own.keys() ^ stored.keys()) or [name for name in own if own[name].shape != stored[name].shape]
    if wrong:
        raise CheckpointError(
            f"{path}: the weights do not fit this model; they differ in {listing(map(show, wrong), 6)}."
        )
    for name, tensor in own.items():
        kept = stored[name]
        if kept.dtype is not tensor.dtype and not (kept.is_floating_point() and tensor.is_floating_point()):
            message = f"{show(name)} holds {_kind(kept)} numbers, and the model {_kind(tensor)} ones"
            raise CheckpointError(f"{path}: the weights do not fit this model: {message}.")


def put(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Copy a loaded state into a model, which must have exactly these names and shapes.

    Raises CheckpointError for a parameter that is not finite, and for a buffer that is NaN (an infinite one may be a
    mask). Floats of another dtype than the model's are converted with a warning.
    """
    compare(model, state, path)
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    own = model.state_dict()
    for name, tensor in state.items():
        if not _usable(tensor, name in parameters):
            raise CheckpointError(f"{path}: {show(name)} is NaN or infinite, so these weights compute nothing.")
    other = next((name for name in own if own[name].dtype is not state[name].dtype), None)
    if other is not None:
        kinds = f"{_kind(state[other])}, the model's {_kind(own[other])}: they are converted"
        warnings.warn(f"{path}: its weights are {kinds}", stacklevel=2)
    model.load_state_dict(dict(state))


def _usable(tensor: Tensor, parameter: bool) -> bool:
    values = tensor.float() if tensor.is_floating_point() and tensor.itemsize == 1 else tensor  # float8 has no isfinite
    return bool(values.isfinite().all()) if parameter else not bool(values.isnan().any())


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
