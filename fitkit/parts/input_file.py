"""Opening what a spec names: which files are read at all, and text as UTF-8."""

from __future__ import annotations

from io import BufferedReader
from pathlib import Path

from fitkit import files
from fitkit.errors import DataError, nearest

UTF_16 = (b"\xff\xfe", b"\xfe\xff")
TEXT_BYTES = 32  # of memory for each byte of a text: the bytes, characters, code points and ids are there at once


def existing(path: str) -> Path:
    """Return the path of a plain file that is there and may be read; a `DataError` says what else it is."""
    open_data(path).close()
    return Path(path)


def open_data(path: str) -> BufferedReader:
    """Return a plain file opened for reading bytes; a `DataError` says what else the path leads to."""
    if reason := files.why_not(path):
        raise DataError(f"{path}: {reason}")
    try:
        return files.open_file(path)
    except IsADirectoryError:
        raise DataError(f"{path}: this is a folder. Name a file in it.") from None
    except (FileNotFoundError, NotADirectoryError):
        near = _beside(Path(path))
        raise DataError(f"{path}: no such file." + (f' Did you mean "{near}"?' if near else "")) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be opened: {error.strerror}.") from None
    except ValueError:
        raise DataError(f"{path}: no file has such a name.") from None


def _beside(file: Path) -> str | None:
    try:
        return nearest(file.name, (other.name for other in file.parent.iterdir()))
    except OSError:
        return None


def read_text(path: str, bytes_each: int = TEXT_BYTES) -> str:
    """Return a file's text, line ends as they are and a byte order mark left out; only UTF-8 is read.

    `bytes_each` is how much memory the caller will need for each byte of the file: a `DataError` if that is too much.
    """
    try:
        with open_data(path) as file:
            size = file.seek(0, 2)
            if fault := files.too_much(size * bytes_each):
                raise DataError(f"{path}: {size:,} bytes, which {fault}. Take a part of the file.")
            file.seek(0)
            raw = file.read(size)  # no more than was counted, whatever the file does
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}.") from error
    if raw.startswith(UTF_16):
        raise DataError(f"{path}: this file is UTF-16. Save it as UTF-8.")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}:{line}: byte 0x{raw[error.start]:02x} is not UTF-8. Save the file as UTF-8 text."
        ) from error
