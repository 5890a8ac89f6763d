"""Arrays in files, and the checks that arrays pass before they are data: finite, of one length, labels from 0 to C-1.

.npy .npz .safetensors  --read-->  {"train": (x, y), …} or {"": (x, y)}  --from_parts-->  Data
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors import safe_open
from torch import Tensor

from fitkit.data import Data
from fitkit.errors import DataError, listing
from fitkit.parts.input_file import existing

if TYPE_CHECKING:
    import numpy

Task = Literal["auto", "classes", "values"]
Pairs = dict[str, tuple[Tensor, Tensor]]  # x and y of "train", "val", "test"; of "" when they come in one piece

PARTS = ("train", "val", "test")
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
KEPT = (*FLOATS, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
WIDER = {torch.bool: torch.uint8, torch.uint16: torch.int32, torch.uint32: torch.int64, torch.uint64: torch.int64}


def read_npy(x: str, y: str) -> Pairs:
    """Read one array from each of two .npy files."""
    return {"": (_npy(x), _npy(y))}


def read_npz(path: str, x: str, y: str) -> Pairs:
    """Read the arrays `x` and `y` of an .npz file, or its `x_train`, `y_train` and so on."""
    np = _numpy(path)
    with _plain_errors(path, "NumPy's .npz"), existing(path).open("rb") as file:
        archive = np.load(file, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise DataError(f"{path}: this file holds one array, so it is an .npy file. Use the source npy.")
        return _pick(path, archive.files, lambda name: _tensor(archive[name], f"{path}: {name}"), x, y)


def read_safetensors(path: str, x: str, y: str) -> Pairs:
    """Read the tensors `x` and `y` of a safetensors file, or its `x_train`, `y_train` and so on."""
    with _plain_errors(path, "safetensors"), safe_open(existing(path), framework="pt") as file:
        return _pick(path, list(file.keys()), file.get_tensor, x, y)


def from_parts(pairs: Pairs, task: Task, name: str) -> Data:
    """Check arrays and join them into data; `split` is set when they come as train, val and test.

    With `task` "auto", whole numbers are classes and floats are values. Classes must be 0 to C-1 with none left out;
    a column of labels (N, 1) is taken as (N,). `name` stands before every message.
    """
    checked: Pairs = {}
    for part, (x, y) in pairs.items():
        suffix = f"_{part}" if part else ""
        x, y = _computable(x, f"{name}: x{suffix}"), _computable(y, f"{name}: y{suffix}")
        if len(x) != len(y):
            raise DataError(f"{name}: x{suffix} has {len(x)} rows, but y{suffix} has {len(y)}.")
        checked[part] = (x, y)
    xs, ys = zip(*checked.values(), strict=True)
    _alike(xs, list(checked), f"{name}: x")
    _alike(ys, list(checked), f"{name}: y")
    x, y = (tensors[0] if len(tensors) == 1 else torch.cat(tensors) for tensors in (xs, ys))
    lengths = [len(part) for part in xs]
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    rows = {part: range(a, a + n) for part, a, n in zip(checked, starts, lengths, strict=True)}
    split = None if "" in rows else rows
    if task == "values" or (task == "auto" and y.is_floating_point()):
        if (y == y[0]).all():
            raise DataError(f"{name}: y is the same in every row: as a target it leaves nothing to learn.")
        return Data(x=x, y=y if y.is_floating_point() else y.float(), target="values", name=name, split=split)
    y = _labels(y, f"{name}: y", rows)
    classes = tuple(str(label) for label in range(int(y.max()) + 1))
    return Data(x=x, y=y, target="classes", name=name, classes=classes, split=split)


def _npy(path: str) -> Tensor:
    np = _numpy(path)
    with _plain_errors(path, "NumPy's .npy"), existing(path).open("rb") as file:
        array = np.load(file, allow_pickle=False)
        if isinstance(array, np.lib.npyio.NpzFile):
            raise DataError(f"{path}: this file holds several arrays, so it is an .npz file. Use the source npz.")
    return _tensor(array, path)


def _numpy(path: str) -> Any:
    try:
        import numpy
    except ImportError:
        raise DataError(
            f"{path}: reading this file takes NumPy, which is not installed. Run: pip install numpy. "
            f"A safetensors file needs nothing more."
        ) from None
    return numpy


@contextmanager
def _plain_errors(path: str, kind: str) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # a damaged file makes NumPy raise nearly anything, tokenizer errors included
        if "Object arrays" in str(error):
            raise DataError(
                f"{path}: this file holds Python objects (dtype object), which can run code when they are opened. "
                f"Save arrays of numbers."
            ) from error
        if "allow_pickle" in str(error):  # NumPy's words for any bytes that it does not know
            raise DataError(f"{path}: this is no file of {kind} format, or it is damaged.") from error
        cause = " ".join(str(error).split())[:160] or type(error).__name__
        raise DataError(f"{path}: this cannot be read as {kind}: {cause}") from error


def _tensor(array: numpy.ndarray[Any, Any], place: str) -> Tensor:
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        raise DataError(f"{place}: dtype {array.dtype} holds no numbers that torch has. Save it as float32 or int64.")
    native = array.astype(array.dtype.newbyteorder("="), order="C", copy=False)
    return torch.from_numpy(native)


def _pick(path: str, names: Sequence[str], get: Callable[[str], Tensor], x: str, y: str) -> Pairs:
    if x in names:
        keys = {"": (x, y)}
    else:
        keys = {part: (f"{x}_{part}", f"{y}_{part}") for part in PARTS if {f"{x}_{part}", f"{y}_{part}"} & set(names)}
    if not keys or (x not in names and "train" not in keys):
        raise DataError(
            f"{path}: there is no {x}, and no {x}_train. The file holds {listing(sorted(names)) or 'nothing'}: "
            f"say x: and y: with two of these."
        )
    wanted = [key for pair in keys.values() for key in pair]
    for key in wanted:
        if key not in names:
            raise DataError(f"{path}: there is no {key}. The file holds {listing(sorted(names))}.")
    strays = [name for name in names if name.startswith((f"{x}_", f"{y}_")) and name not in wanted]
    if strays and "" not in keys:
        raise DataError(f"{path}: {strays[0]} is not read: the parts are named {listing(PARTS)}. Rename or remove it.")
    return {part: (get(a), get(b)) for part, (a, b) in keys.items()}


def _computable(values: Tensor, place: str) -> Tensor:  # (N, ...) -> (N, ...)
    if values.dim() == 0 or not values.numel():
        raise DataError(f"{place} has shape {tuple(values.shape)}: there is no sample in it.")
    if values.dtype in WIDER:
        wider = values.to(WIDER[values.dtype])
        if values.dtype is torch.uint64 and (wider < 0).any():
            raise DataError(f"{place} holds whole numbers beyond 2^63, which torch cannot compute with.")
        return wider
    if values.dtype not in KEPT:
        kind = str(values.dtype).removeprefix("torch.")
        raise DataError(f"{place} has dtype {kind}, which a model cannot compute with. Save it as float32.")
    if values.is_floating_point():
        bad = ~values.isfinite()
        rows = bad.flatten(1).any(1) if values.dim() > 1 else bad
        if rows.any():
            raise DataError(
                f"{place} is NaN or infinite in {int(bad.sum())} places of {int(rows.sum())} rows, first in row "
                f"{int(rows.nonzero()[0])} (rows count from 0). Fill them in, or leave these rows out."
            )
    return values


def _alike(tensors: Sequence[Tensor], parts: Sequence[str], place: str) -> None:
    first = tensors[0]
    for part, other in zip(parts, tensors, strict=True):
        if other.shape[1:] != first.shape[1:] or other.dtype != first.dtype:
            raise DataError(
                f"{place}_{part} has samples of shape {tuple(other.shape[1:])} and {other.dtype}, but {parts[0]} has "
                f"{tuple(first.shape[1:])} and {first.dtype}. Save all parts alike."
            )


def _labels(y: Tensor, place: str, rows: Mapping[str, range]) -> Tensor:  # (N, ...) or (N, 1) -> int64
    if y.is_floating_point() and (y != y.round()).any():
        row = int((y != y.round()).nonzero()[0, 0])
        raise DataError(f"{_at(place, row, rows)} is no whole number. Say task: values, or number the classes.")
    y = y.long()
    if y.dim() == 2 and y.shape[1] == 1:
        y = y.squeeze(1)
    if y.dim() == 2 and y.min() >= 0 and (y.sum(1) == 1).all():
        raise DataError(f"{place} is one-hot: each row has one 1. Save the numbers of the classes: y.argmax(1).")
    found = torch.unique(y).tolist()
    if len(found) == 1:
        raise DataError(f"{place} is {found[0]} in every row: as a target it leaves nothing to learn.")
    wrong = next((label for i, label in enumerate(found) if label != i), None)
    if wrong is not None:
        where = (y == wrong).flatten(1).any(1) if y.dim() > 1 else y == wrong
        count = int(where.sum())
        raise DataError(
            f"{_at(place, int(where.nonzero()[0]), rows)} is {wrong} ({count} row{'s' * (count > 1)}): the labels are "
            f"{listing(map(str, found))}, and classes are numbered from 0 with none left out. Renumber them: "
            f"y = np.unique(y, return_inverse=True)[1]. If they are quantities, say task: values."
        )
    return y


def _at(place: str, row: int, rows: Mapping[str, range]) -> str:
    part = next(part for part, span in rows.items() if row in span)
    return f"{place}{f'_{part}' if part else ''}[{row - rows[part].start}]"


def read_x(path: str, x: str) -> Tensor:
    """Read samples alone, for prediction: a .npy file, or the array `x` of an .npz or safetensors file."""
    if path.endswith(".npy"):
        return _computable(_npy(path), path)
    if path.endswith(".npz"):
        np = _numpy(path)
        with _plain_errors(path, "NumPy's .npz"), existing(path).open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            names = list(archive.files)
            values = _tensor(archive[x], f"{path}: {x}") if x in names else None
    else:
        with _plain_errors(path, "safetensors"), safe_open(existing(path), framework="pt") as file:
            names = list(file.keys())
            values = file.get_tensor(x) if x in names else None
    if values is None:
        raise DataError(f"{path}: there is no {x}. The file holds {listing(sorted(names)) or 'nothing'}.")
    return _computable(values, f"{path}: {x}")
