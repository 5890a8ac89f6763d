"""Opening what a spec names: which files are read at all, and text as UTF-8."""

from __future__ import annotations

from pathlib import Path

from fitkit.errors import DataError, nearest

RUNS_CODE = {".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle", ".h5", ".keras"}
UTF_16 = (b"\xff\xfe", b"\xfe\xff")


def existing(path: str) -> Path:
    """Return the path of a file that is there and may be read; a `DataError` says what else it is."""
    file = Path(path)
    if file.suffix.lower() in RUNS_CODE:
        raise DataError(
            f"{path}: fitkit reads no {file.suffix} files as data, because such files can run code when they are "
            f"opened. Where you trust it, load it once yourself and write it with "
            f'safetensors.torch.save_file({{"x": x, "y": y}}, "data.safetensors") or np.savez("data.npz", x=x, y=y).'
        )
    try:
        if file.is_file():
            return file
        if file.is_dir():
            raise DataError(f"{path}: this is a folder. Name a file in it.")
        near = nearest(file.name, (other.name for other in file.parent.iterdir())) if file.parent.is_dir() else None
    except OSError as error:
        raise DataError(f"{path}: cannot be opened: {error.strerror}.") from error
    raise DataError(f"{path}: no such file." + (f' Did you mean "{near}"?' if near else ""))


def read_text(path: str) -> str:
    """Return a file's text, line ends as they are and a byte order mark left out; only UTF-8 is read."""
    try:
        raw = existing(path).read_bytes()
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
