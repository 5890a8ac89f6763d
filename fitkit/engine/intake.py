"""What Python hands to `fit(data=…)`: tensors, arrays, datasets and loaders, brought to `Data` once, at the edge."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fitkit.data import Data, pieces
from fitkit.errors import DataError, listing, nearest, show
from fitkit.files import ARRAY_SHARE, mapped_file, too_much, why_not

PARTS = ("train", "val", "test")
MEANT = {"training": "train", "validation": "val", "valid": "val", "dev": "val", "eval": "val", "holdout": "test"}
NO_CLASSES = (torch.bool, torch.uint16, torch.uint32, torch.uint64)  # torch counts and compares none of these
Part = Data | Dataset[Any] | DataLoader[Any]


def take(data: Any) -> Part | dict[str, Part]:
    """Return what `data` holds: one part that is still to be split, or a dict of parts that are split already.

    Takes `(x, y)` of tensors or NumPy arrays, a `Dataset`, a `DataLoader`, or {"train": …, "val": …, "test": …} of
    these. Raises DataError for anything else.
    """
    if not isinstance(data, Mapping):
        return _part(data, "data")
    for name in data:
        if name not in PARTS:
            near = MEANT.get(str(name).lower()) or nearest(str(name), PARTS)
            hint = f" Did you mean {show(near)}?" if near else " Hand x and y as (x, y)." if "x" in data else ""
            raise DataError(f"data[{show(name)}]: the parts are called train, val and test.{hint}")
    if "train" not in data:
        raise DataError(f'data has no "train" part, only {listing(data) or "nothing"}.')
    return {name: _part(part, f"data[{show(name)}]") for name, part in data.items()}


def take_whole(data: Any, name: str) -> dict[str, Part]:
    """Return data of which nothing is split off, as the part "train"; `name` is what messages call it."""
    return {"train": _part(data, name)}


def _part(data: Any, name: str) -> Part:
    if isinstance(data, Dataset | DataLoader):
        return data
    if isinstance(data, tuple | list) and len(data) == 2:
        return arrays(data[0], data[1], name)
    if isinstance(data, str | os.PathLike):
        if reason := why_not(str(data)):
            raise DataError(f"{name}: {show(str(data))}: {reason}")
        raise DataError(f"{name}: a file is named in the spec, such as data: {{csv: {{path: {show(str(data))}}}}}.")
    what = f"a {type(data).__name__}" + (f" of {len(data)}" if isinstance(data, tuple | list) else "")
    raise DataError(f"{name}: expects (x, y), a Dataset or a DataLoader, not {what}.")


def arrays(x: Any, y: Any, name: str) -> Data:
    """Return `Data` of two arrays; whole numbers in `y` are classes, real numbers are values.

    Where x is a map of a file, such as numpy.memmap, it stays one, and is read batch by batch if it is too large for
    the memory.
    """
    x, y = tensor(x, f"{name}: x"), tensor(y, f"{name}: y")
    if x.ndim == 0 or y.ndim == 0 or len(x) != len(y):
        raise DataError(
            f"{name}: x has shape {tuple(x.shape)} and y {tuple(y.shape)}: they need the same number of rows."
        )
    if len(x) == 0:
        raise DataError(f"{name}: there are no rows.")
    y = y.cpu()  # splits and class counts are made there; it is small
    y = y.long() if y.dtype in NO_CLASSES else y
    for part, values in (("x", x), ("y", y)):
        refuse_nan(values, f"{name}: {part}")
    target = "values" if y.is_floating_point() else "classes"
    large = x.device.type == "cpu" and too_much(x.numel() * x.element_size(), ARRAY_SHARE)
    file = mapped_file(x.data_ptr()) if large else None
    return Data(x=x, y=y, target=target, name=name, given_in_python=True, file=file)  # type: ignore[arg-type]


def tensor(value: Any, name: str) -> Tensor:
    """Return a tensor or NumPy array (or anything with its interface) as a tensor, without a copy where possible."""
    if isinstance(value, Tensor):
        if value.is_complex():
            raise DataError(f"{name} holds complex numbers: give their real and imaginary parts as two features.")
        return value.detach()
    if hasattr(value, "to_numpy"):  # a data frame or series
        value = value.to_numpy()
    if hasattr(value, "__array_interface__"):
        kind = value.dtype.kind
        if kind in "OUSMmVc":
            rather = "Number the classes: np.unique(y, return_inverse=True)[1]" if kind in "US" else "Encode them first"
            raise DataError(f"{name} holds {value.dtype} values: fitkit computes with numbers. {rather}.")
        return _from_numpy(value, name)
    if isinstance(value, list | tuple):
        try:
            return torch.tensor(value)
        except (TypeError, ValueError) as error:
            raise DataError(f"{name} cannot become a tensor: {error}.") from None
    raise DataError(f"{name} is a {type(value).__name__}: expects a tensor or a NumPy array.")


def _from_numpy(value: Any, name: str) -> Tensor:
    other = None  # the dtype that torch can compute with, where it is another
    if value.dtype.kind == "u" and value.dtype.itemsize > 1:  # torch compares no uint16, uint32, uint64
        other = "int64"
    elif any(step < 0 for step in value.strides) or not value.dtype.isnative:
        other = value.dtype.newbyteorder("=")
    if other is not None:
        if fault := too_much(value.size * (8 if other == "int64" else value.dtype.itemsize), ARRAY_SHARE):
            raise DataError(f"{name} is {value.dtype}, of which torch needs a copy: it {fault}. Save it as {other}.")
        return torch.from_numpy(value.astype(other, copy=True))
    if value.flags.writeable:
        return torch.from_numpy(value)
    large = too_much(value.nbytes, ARRAY_SHARE) is not None
    if not large or mapped_file(value.__array_interface__["data"][0]) is None:
        return torch.from_numpy(value.copy())  # a module may write to what it is given
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # and nothing writes to it
        return torch.from_numpy(value)


def refuse_nan(values: Tensor, name: str) -> None:
    """Raise DataError naming the first row that holds a NaN or an infinity."""
    if not values.is_floating_point():
        return
    first = count = start = 0
    for part in pieces(values):
        if not bool((finite := part.isfinite()).all()):
            rows = (~finite.flatten(1)).any(1) if part.ndim > 1 else ~finite
            first = first if count else start + int(rows.nonzero()[0])
            count += int(rows.sum())
        start += len(part)
    if count:
        many = f"{count} row{'s'[: count != 1]}; the first is row {first}"
        raise DataError(f"{name} holds NaN or infinity in {many}. Fill them in, or leave these rows out.")
