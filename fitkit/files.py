"""Opening a file to read it, so that no file can hang, flood the memory or slip in what is no plain data.

Whatever is wrong is an `OSError` (the file itself) or a `ValueError` (what it holds) whose words can stand in a
message; only `read_json`, for the files of runs, raises `CheckpointError` by itself, and `MappedFile` a `DataError`.
"""

from __future__ import annotations

import errno
import json
import math
import mmap
import os
import stat
import sys
import weakref
from collections.abc import Iterable
from io import BufferedReader
from pathlib import Path
from typing import Any, NoReturn

from fitkit.errors import CheckpointError, DataError, show

MOST_JSON_BYTES = 1 << 20  # of a file with a few values; a history and a checkpoint's state may be longer
MOST_HEADER_BYTES = 8 << 20  # of a safetensors file: names and shapes of some 50,000 tensors, and the card
ARRAY_SHARE = 0.5  # of the available memory that one array may take: it is copied at least once on its way to a model
FORMULA = "=+-@\t\r\n＝＋－＠"  # what a cell begins with that Excel, LibreOffice or Google Sheets compute
NO_FILES = ("/dev/", "/memfd:", "/SYSV")  # how the names of maps begin that lie in memory
TORCH = ("tensors = torch.load({name}, weights_only=True)", 'safetensors.torch.save_file(tensors, {stem}.safetensors")')
PICKLE = ('x, y = pickle.load(open({name}, "rb"))', 'numpy.savez({stem}.npz", x=x, y=y)')
HDF5 = ('file = h5py.File({name}); x, y = file["x"][:], file["y"][:]', PICKLE[1])
RECIPES = {  # kinds of files that fitkit opens nowhere, and the two lines of Python that make one which it does
    **dict.fromkeys((".pt", ".pth", ".ckpt", ".bin"), TORCH),
    **dict.fromkeys((".pkl", ".pickle"), PICKLE),
    ".joblib": ("x, y = joblib.load({name})", PICKLE[1]),
    **dict.fromkeys((".h5", ".hdf5"), HDF5),
    ".keras": ("weights = keras.models.load_model({name}).get_weights()", 'numpy.savez({stem}.npz", *weights)'),
    ".parquet": ("table = pandas.read_parquet({name})", 'table.to_csv({stem}.csv", index=False)'),
}


def open_file(path: Path | str, *, most: int | None = None, links: bool = True) -> BufferedReader:
    """Return a regular file opened for reading bytes; it may be at most `most` bytes long.

    A folder, pipe, device or socket is an `OSError` at once, and so is a link where `links` is false.
    """
    _refuse_kind(os.stat(path, follow_symlinks=links))  # before it is opened: a device may act on being opened
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if links else os.O_NOFOLLOW)
    handle = os.open(path, flags)
    try:
        found = os.fstat(handle)  # once more, of what was opened: the name may lead elsewhere by now
        _refuse_kind(found)
        if most is not None and found.st_size > most:
            raise OSError(errno.EFBIG, f"it has {found.st_size:,} bytes, and at most {most:,} are read")
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def _refuse_kind(found: os.stat_result) -> None:
    mode = found.st_mode
    if stat.S_ISREG(mode):
        return
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder")
    kinds = {stat.S_IFLNK: "a link", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    raise OSError(errno.EINVAL, f"it is {kinds.get(stat.S_IFMT(mode), 'a device')}, not a plain file")


def read_bytes(path: Path | str, *, most: int, links: bool = True) -> bytes:
    """Return what a regular file of at most `most` bytes holds; see `open_file`."""
    with open_file(path, most=most, links=links) as file:
        raw = file.read(most + 1) or b""  # it may have grown since; /proc does not say how long its files are
    if len(raw) > most:
        raise OSError(errno.EFBIG, f"it has more than {most:,} bytes")
    return raw


def read_json(path: Path, *, most: int = MOST_JSON_BYTES) -> Any:
    """Return the strict JSON of a file in a run folder; `CheckpointError` names the file that is anything else."""
    try:
        return parse_json(read_bytes(path, most=most, links=False).decode("utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: there is no such file.") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise CheckpointError(f"{path}: is damaged: {error}.") from None


def as_text(name: str) -> str:
    """Return a name as a CSV cell that no spreadsheet takes for a formula."""
    try:
        float(name)
    except ValueError:
        return f"'{name}" if len(name) > 1 and name[0] in FORMULA else name
    return name


def parse_json(text: str) -> Any:
    """Return the value of strict JSON; `ValueError` for NaN, infinities, a key given twice, and nesting without end."""
    try:
        return json.loads(text, parse_constant=_refuse_word, parse_float=_finite, object_pairs_hook=_without_twins)
    except RecursionError:
        raise ValueError("its values are nested too deeply") from None


def _refuse_word(word: str) -> NoReturn:
    raise ValueError(f"{word} is not JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{show(digits)} is beyond any float")
    return value


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twin = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {show(twin)} is there twice")
    return found


def safetensors_header(path: Path | str, *, links: bool = True) -> dict[str, tuple[str, tuple[int, ...], int]]:
    """Return the dtype, shape and bytes of each tensor of a safetensors file, without reading any.

    `ValueError` when the header is none; safetensors itself checks that the tensors lie in the file side by side.
    """
    with open_file(path, links=links) as file:
        places = safetensors_places(file)
    return {name: (dtype, shape, end - begin) for name, (dtype, shape, begin, end) in places.items()}


def safetensors_places(file: BufferedReader) -> dict[str, tuple[str, tuple[int, ...], int, int]]:
    """Return the dtype, shape, first byte and end of each tensor of an open safetensors file; see `safetensors_header`.

    Bytes count from the beginning of the file.
    """
    length = int.from_bytes(file.read(8) or b"", "little")
    if not 2 <= length <= os.fstat(file.fileno()).st_size:
        raise ValueError("it does not begin with the length of its header")
    if length > MOST_HEADER_BYTES:
        raise ValueError(f"its header has {length:,} bytes, and at most {MOST_HEADER_BYTES:,} are read")
    header = parse_json(file.read(length).decode("utf-8"))
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    header.pop("__metadata__", None)
    try:
        return {
            name: (entry["dtype"], tuple(entry["shape"]), *(8 + length + int(at) for at in entry["data_offsets"][:2]))
            for name, entry in header.items()
        }
    except (KeyError, TypeError, IndexError, ValueError):
        raise ValueError("its header does not say dtype, shape and place of each tensor") from None


class MappedFile:
    """A file whose bytes from `begin` on are used where they lie: a map of it is no copy.

    A map shows what is written to the file later, and a read behind the end of a file that became shorter ends the
    process (SIGBUS). `refuse_change` looks for that beforehand; between the look and the read it may still happen.
    """

    def __init__(self, file: BufferedReader, path: str, begin: int = 0, *, times: bool = True) -> None:
        self.handle = os.dup(file.fileno())  # of its own: the caller closes theirs
        weakref.finalize(self, os.close, self.handle)
        self.path, self.begin, self.times = path, begin, times
        self.before = self._state()

    def _state(self) -> tuple[int, ...]:
        found = os.fstat(self.handle)
        return (found.st_size, found.st_mtime_ns) if self.times else (found.st_size,)

    def refuse_change(self) -> None:
        """Raise DataError if the file is no longer what it was when it was mapped, by its length and time of change."""
        if (now := self._state()) != self.before:
            what = (
                f"it had {self.before[0]:,} bytes, and has {now[0]:,} now"
                if now[0] != self.before[0]
                else "it is newer"
            )
            raise DataError(f"{self.path}: this file was changed while data was read from it: {what}. Begin again.")

    def view(self) -> mmap.mmap:
        """Return the whole file as bytes that cannot be written to."""
        # Shared and without the right to write: a private map that could be written to counts as memory that is taken.
        return mmap.mmap(self.handle, self.before[0], flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)

    def expect(self, starts: Iterable[int], length: int) -> None:
        """Tell the system that so many bytes at each of these places (from `begin`) will be read: it fetches them."""
        if sys.platform == "linux":
            for start in starts:
                os.posix_fadvise(self.handle, self.begin + start, length, os.POSIX_FADV_WILLNEED)


def mapped_file(address: int) -> MappedFile | None:
    """Return the file in which the byte at this address of memory lies; None where it is memory, or nobody tells.

    The system is Linux, or nobody tells. What this process itself may write there is no change of the file.
    """
    try:
        lines = Path("/proc/self/maps").read_text("utf-8", "replace").splitlines()
    except OSError:
        return None
    for line in lines:
        span, _, offset, _, inode, *name = line.split(None, 5)
        first, end = (int(number, 16) for number in span.split("-"))
        if first <= address < end and name and name[0].startswith("/") and not name[0].startswith(NO_FILES):
            return _same_file(name[0], int(inode), int(offset, 16) + address - first)
    return None


def _same_file(path: str, inode: int, begin: int) -> MappedFile | None:
    try:
        with open_file(path) as file:
            same = os.fstat(file.fileno()).st_ino == inode
            return MappedFile(file, path, begin, times=False) if same else None
    except (OSError, ValueError):  # it may be deleted by now; its map is as good as memory then
        return None


def why_not(path: Path | str) -> str | None:
    """Say why fitkit opens no file of this kind, and how to convert it; None for any other kind."""
    name, suffix = Path(path).name, Path(path).suffix.lower()
    if suffix not in RECIPES:
        return None
    if suffix == ".parquet":
        why = f"fitkit reads no {suffix} files. Convert it with two lines of Python:"
    else:
        why = (
            f"fitkit opens no {suffix} files, because such files can run code when they are opened. Where you trust "
            f"it, convert it yourself with two lines of Python:"
        )
    quoted = {"name": show(name, 200), "stem": show(Path(name).stem, 200)[:-1]}
    return "\n  ".join([why, *(line.format(**quoted) for line in RECIPES[suffix])])


def available_memory() -> int | None:
    """Return how many bytes of memory this process may still take: the system's, or its control group's if less.

    None where the system does not say (`/proc/meminfo` is Linux's).
    """
    found = [_meminfo(), _cgroup()]
    return min((size for size in found if size is not None), default=None)


def too_much(needed: int, share: float = 1.0) -> str | None:
    """Say that `needed` bytes are more than a share of the memory that is available; None where they fit."""
    available = available_memory()
    if available is None or needed <= share * available:
        return None
    part = f", of which fitkit takes at most {share:.0%} for this" if share < 1 else ""
    return f"takes {_size(needed)} of memory, and {_size(available)} are available{part}"


def _size(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count:,} bytes"


def _meminfo() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, IndexError, StopIteration):
        return None


def _cgroup() -> int | None:
    """Return what the limits of the process's control groups (version 2, or the memory controller of 1) leave."""
    try:
        lines = Path("/proc/self/cgroup").read_text("utf-8").splitlines()
    except (OSError, ValueError):
        return None
    left = []
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        root = Path("/sys/fs/cgroup") / controllers
        files = ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
        folder = root / name.lstrip("/")
        for group in (folder, *folder.parents):  # a group above may have the lower limit
            if group.is_relative_to(root):
                left.append(_left(group, *files))
    return min((size for size in left if size is not None), default=None)


def _left(group: Path, limit: str, usage: str) -> int | None:
    try:
        most, used = (int((group / name).read_text("ascii")) for name in (limit, usage))  # "max" is no number: no limit
        counts = dict(line.split() for line in (group / "memory.stat").read_text("ascii").splitlines())
        cached = int(counts.get("total_inactive_file", counts.get("inactive_file", 0)))  # the system gives it back
    except (OSError, ValueError):
        return None
    return max(0, most - used + cached)
