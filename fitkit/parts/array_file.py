"""Arrays in files, and the checks that arrays pass before they are data: finite, of one length, labels from 0 to C-1.

.npy .npz .safetensors  --read-->  {"train": (x, y), …} or {"": (x, y)}  --from_parts-->  Data

x of a .npy or safetensors file may be left where it is (`read`), y is always in memory.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import torch
from safetensors import safe_open
from torch import Tensor

from fitkit.data import Data, pieces
from fitkit.errors import DataError, listing
from fitkit.files import MappedFile, safetensors_places
from fitkit.parts.input_file import open_data
from fitkit.parts.mapped_file import Mapped, Read, is_to_be_mapped, joined

if TYPE_CHECKING:
    import numpy

Task = Literal["auto", "classes", "values"]
Pairs = dict[str, tuple[Tensor, Tensor]]  # x and y of "train", "val", "test"; of "" when they come in one piece

PARTS = ("train", "val", "test")
MOST_SIDES = 64  # of a tensor
MOST_AT_ONCE = 4 << 20  # bytes: a table of contents of some 60,000 arrays
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
KEPT = (*FLOATS, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
WIDER = {torch.bool: torch.uint8, torch.uint16: torch.int32, torch.uint32: torch.int64, torch.uint64: torch.int64}


def read_npy(x: str, y: str, read: Read = "memory") -> tuple[Pairs, MappedFile | None]:
    """Read one array from each of two .npy files; x may stay in its file, which is returned then."""
    values, file = _npy(x, read)
    return {"": (values, _npy(y)[0])}, file


def read_npz(path: str, x: str, y: str) -> Pairs:
    """Read the arrays `x` and `y` of an .npz file, or its `x_train`, `y_train` and so on."""
    with _npz(path) as (found, get):
        return {part: (get(a), get(b)) for part, (a, b) in _pick(path, found, x, y).items()}


def read_safetensors(path: str, x: str, y: str, read: Read = "memory") -> tuple[Pairs, MappedFile | None]:
    """Read the tensors `x` and `y` of a safetensors file, or its `x_train`, `y_train` and so on.

    All x may stay in the file, which is returned then; several parts must lie there side by side.
    """
    with _safetensors(path) as (found, get):
        keys = _pick(path, found, x, y)
        names = [a for a, _ in keys.values()]
        with open_data(path) as file:
            places = safetensors_places(file)
            needed = sum(places[name][3] - places[name][2] for name in names)
            if not is_to_be_mapped(read, needed, f"{path}: {listing(names)}"):
                return {part: (get(a), get(b)) for part, (a, b) in keys.items()}, None
            mapped = Mapped(file, path)
        keys = dict(sorted(keys.items(), key=lambda item: places[item[1][0]][2]))  # in the order of the file
        pairs = {part: (mapped.array(*places[a], f"{path}: {a}"), get(b)) for part, (a, b) in keys.items()}
    mapped.file.begin = min(places[name][2] for name in names)
    return pairs, mapped.file


def from_parts(pairs: Pairs, task: Task, name: str, file: MappedFile | None = None) -> Data:
    """Check arrays and join them into data; `split` is set when they come as train, val and test.

    `file` is that in which x lies, if it lies in one.

    With `task` "auto", whole numbers are classes and floats are values. Classes must be 0 to C-1 with none left out;
    a column of labels (N, 1) is taken as (N,). `name` stands before every message.
    """
    checked: Pairs = {}
    for part, (x, y) in pairs.items():
        suffix = f"_{part}" if part else ""
        y = _computable(y, f"{name}: y{suffix}")
        if x.dim() and len(x) != len(y):  # said before all of a large x is read
            raise DataError(f"{name}: x{suffix} has {len(x)} rows, but y{suffix} has {len(y)}.")
        checked[part] = (_computable(x, f"{name}: x{suffix}"), y)
    xs, ys = zip(*checked.values(), strict=True)
    _alike(xs, list(checked), f"{name}: x")
    _alike(ys, list(checked), f"{name}: y")
    x, y = _joined(xs, name, file), torch.cat(ys) if len(ys) > 1 else ys[0]
    lengths = [len(part) for part in xs]
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    rows = {part: range(a, a + n) for part, a, n in zip(checked, starts, lengths, strict=True)}
    split = None if "" in rows else rows
    if task == "values" or (task == "auto" and y.is_floating_point()):
        if (y == y[0]).all():
            raise DataError(f"{name}: y is the same in every row: as a target it leaves nothing to learn.")
        y = y if y.is_floating_point() else y.float()
        return Data(x=x, y=y, target="values", name=name, split=split, file=file)
    y = _labels(y, f"{name}: y", rows)
    classes = tuple(str(label) for label in range(int(y.max()) + 1))
    return Data(x=x, y=y, target="classes", name=name, classes=classes, split=split, file=file)


def _joined(xs: Sequence[Tensor], name: str, file: MappedFile | None) -> Tensor:  # (N, ...), … -> (N, ...)
    if len(xs) == 1:
        return xs[0]
    if file is None:
        return torch.cat(list(xs))
    if (x := joined(list(xs))) is None:
        raise DataError(
            f"{name}: x of train, val and test do not lie side by side in the file, so it cannot be mapped. Write all "
            f"tensors with one call of safetensors.torch.save_file, and none whose name lies between theirs."
        )
    return x


def names(path: str) -> list[str]:
    """Return the names of the arrays in an .npz or safetensors file; `DataError` for any other file."""
    with _opened(path) as (found, _):
        return found


def _opened(path: str) -> AbstractContextManager[tuple[list[str], Callable[[str], Tensor]]]:
    return (_npz if Path(path).suffix.lower() == ".npz" else _safetensors)(path)


def _npy(path: str, read: Read = "memory") -> tuple[Tensor, MappedFile | None]:
    np = _numpy(path)
    with _plain_errors(path, "NumPy's .npy"), open_data(path) as file:
        if file.read(4) == b"PK\3\4":
            raise DataError(f"{path}: this file holds several arrays, so it is an .npz file. Use the source npz.")
        size = file.seek(0, 2)
        file.seek(0)
        shape, fortran, dtype = _read_header(np, file, size, path)
        begin = file.tell()
        if not is_to_be_mapped(read, size - begin, path):
            file.seek(0)
            return _tensor(np.lib.format.read_array(file, allow_pickle=False), path), None
        if fortran and len(shape) > 1:
            raise DataError(f"{path} is in Fortran order, so no row lies in one piece. Save np.ascontiguousarray(x).")
        mapped = Mapped(file, path)
        mapped.file.begin = begin
        return mapped.array(dtype.str, shape, begin, size, path), mapped.file


@contextmanager
def _npz(path: str) -> Iterator[tuple[list[str], Callable[[str], Tensor]]]:
    """Give the names of the arrays in an .npz file, and what reads one of them."""
    np = _numpy(path)
    with _plain_errors(path, "NumPy's .npz"), open_data(path) as file:
        if file.read(6) == b"\x93NUMPY":
            raise DataError(f"{path}: this file holds one array, so it is an .npy file. Use the source npy.")
        with zipfile.ZipFile(_Sparing(file)) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}

            def get(name: str) -> Tensor:
                info, place = members[name], f"{path}: {name}"
                if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise DataError(f"{place} is packed in a way that NumPy never packs. Save it with np.savez.")
                with archive.open(info) as member:
                    _read_header(np, member, info.file_size, place)
                    is_to_be_mapped("memory", info.file_size - member.tell(), place)
                with archive.open(info) as member:
                    return _tensor(np.lib.format.read_array(member, allow_pickle=False), place)

            yield list(members), get


class _Sparing:
    """A file from which no more than a little is read at once: zipfile would read a table of contents of any length."""

    def __init__(self, file: BinaryIO) -> None:
        self.seek, self.tell, self.seekable, self.file = file.seek, file.tell, file.seekable, file

    def read(self, size: int = -1) -> bytes:
        if size > MOST_AT_ONCE:
            raise ValueError("its table of contents is too long")
        return self.file.read(MOST_AT_ONCE if size < 0 else size)


def _read_header(np: Any, file: Any, size: int, place: str) -> tuple[tuple[int, ...], bool, Any]:
    """Return shape, Fortran order and dtype; DataError for an array that is no numbers, or is not all in the file."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise DataError(f"{place}: .npy version {version[0]} is for arrays of records. Save plain numbers.")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if dtype.hasobject:
        raise ValueError("Object arrays")
    _refuse_dtype(dtype, place)
    needed, held = math.prod(shape) * dtype.itemsize, size - file.tell()
    if any(length < 0 for length in shape) or needed != held:  # more bytes may be a second array, saved behind it
        raise DataError(f"{place}: its header says shape {shape} of {dtype}, {needed:,} bytes; {held:,} are there.")
    return shape, fortran, dtype


@contextmanager
def _safetensors(path: str) -> Iterator[tuple[list[str], Callable[[str], Tensor]]]:
    """Give the names of the tensors in a safetensors file, and what reads one of them."""
    with _plain_errors(path, "safetensors"):
        with open_data(path) as opened:
            places = safetensors_places(opened)
        with safe_open(path, framework="pt") as file:

            def get(name: str) -> Tensor:
                is_to_be_mapped("memory", places[name][3] - places[name][2], f"{path}: {name}")
                tensor: Tensor = file.get_tensor(name)
                return tensor.clone()  # of a map: what is written to the file later must not show

            yield list(places), get


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
        if isinstance(error, zipfile.BadZipFile) or "magic string" in str(error):
            raise DataError(f"{path}: this is no file of {kind} format, or it is damaged.") from error
        cause = " ".join(str(error).split())[:160] or type(error).__name__
        raise DataError(f"{path}: this cannot be read as {kind}: {cause}") from error


def _refuse_dtype(dtype: numpy.dtype[Any], place: str) -> None:
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        raise DataError(f"{place}: dtype {dtype} holds no numbers that torch has. Save it as float32 or int64.")


def _tensor(array: numpy.ndarray[Any, Any], place: str) -> Tensor:
    native = array.astype(array.dtype.newbyteorder("="), order="C", copy=False)
    return torch.from_numpy(native)


def _pick(path: str, names: Sequence[str], x: str, y: str) -> dict[str, tuple[str, str]]:
    """Return the names of x and y of "train", "val", "test"; of "" when they come in one piece."""
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
    return keys


def _computable(values: Tensor, place: str) -> Tensor:  # (N, ...) -> (N, ...)
    if values.dim() == 0 or not values.numel():
        raise DataError(f"{place} has shape {tuple(values.shape)}: there is no sample in it.")
    if values.dim() > MOST_SIDES:
        raise DataError(f"{place} has {values.dim()} dimensions, and torch computes with at most {MOST_SIDES}.")
    if values.dtype in WIDER:
        wider = values.to(WIDER[values.dtype])
        if values.dtype is torch.uint64 and (wider < 0).any():
            raise DataError(f"{place} holds whole numbers beyond 2^63, which torch cannot compute with.")
        return wider
    if values.dtype not in KEPT:
        kind = str(values.dtype).removeprefix("torch.")
        raise DataError(f"{place} has dtype {kind}, which a model cannot compute with. Save it as float32.")
    if values.is_floating_point():
        _refuse_nan(values, place)
    return values


def _refuse_nan(values: Tensor, place: str) -> None:
    bad_places = bad_rows = first = start = 0
    for part in pieces(values):
        if not bool((finite := part.isfinite()).all()):
            rows = (~finite.flatten(1)).any(1) if part.dim() > 1 else ~finite
            first = first if bad_rows else start + int(rows.nonzero()[0])
            bad_places, bad_rows = bad_places + int((~finite).sum()), bad_rows + int(rows.sum())
        start += len(part)
    if bad_rows:
        raise DataError(
            f"{place} is NaN or infinite in {bad_places} places of {bad_rows} rows, first in row {first} (rows count "
            f"from 0). Fill them in, or leave these rows out."
        )


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
    if Path(path).suffix.lower() == ".npy":
        return _computable(_npy(path)[0], path)
    with _opened(path) as (found, get):
        if x not in found:
            raise DataError(f"{path}: there is no {x}. The file holds {listing(sorted(found)) or 'nothing'}.")
        return _computable(get(x), f"{path}: {x}")
