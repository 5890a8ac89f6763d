"""Compiled steps on disk, so that the second run of a spec starts compiled.

A stored graph is code: it is kept in a folder of the user's alone, never in a run folder, and one that others may write
to is not read. What is damaged, or was made by another torch, processor or fitkit, is made anew.

<cache>/graphs/<sha256 of what shapes the graph>      SHA-256 of what follows, then torch's own format
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import os
import platform
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from fitkit.engine.private import Graph, load_graph

MOST_BYTES = 1 << 30  # of all graphs together: the ones not used for longest go first
DIGEST = 64
TORCH_CACHE = "TORCHINDUCTOR_CACHE_DIR"
NAME = re.compile(r"[0-9a-f]{64}")


def cache_folder() -> Path:
    """Return where compiled steps are kept: $FITKIT_CACHE, or fitkit under $XDG_CACHE_HOME or ~/.cache."""
    own = os.environ.get("FITKIT_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fitkit"


@contextlib.contextmanager
def private_torch_cache() -> Iterator[None]:
    """Let torch's compiler keep its code where only the user can write.

    By itself it takes a folder among all users' temporary files, under a name that anybody can take first. One that the
    user chose stays.
    """
    chosen = os.environ.get(TORCH_CACHE)
    if chosen and Path(chosen).parent != Path(tempfile.gettempdir()):
        yield
        return
    folder = cache_folder() / "torch"
    try:
        if any(c.isspace() for c in str(folder)):
            raise OSError("its compiler's commands do not quote paths")
        make_private(cache_folder())
        make_private(folder)
    except OSError:
        folder = Path(tempfile.mkdtemp(prefix="fitkit-"))
    os.environ[TORCH_CACHE] = str(folder)
    try:
        yield
    finally:
        os.environ.pop(TORCH_CACHE)
        if chosen:
            os.environ[TORCH_CACHE] = chosen


class Store:
    """The graphs of one run's recipe: everything that shapes them but the shapes of a call."""

    def __init__(self, recipe: Any, folder: Path | None = None) -> None:
        self.folder = (folder or cache_folder()) / "graphs"
        self.recipe = {"recipe": recipe, **_environment()}

    def path(self, key: Any) -> Path:
        """Return the file of a graph."""
        text = json.dumps({**self.recipe, "key": repr(key)}, sort_keys=True, default=repr)
        return self.folder / hashlib.sha256(text.encode()).hexdigest()

    def get(self, key: Any) -> Graph | None:
        """Return a stored graph, or None when there is none that can be trusted and read."""
        path = self.path(key)
        try:
            if not _is_private(self.folder) or not _is_private(path):
                return None
            raw = path.read_bytes()
            said, body = raw[:DIGEST], raw[DIGEST:]
            if hashlib.sha256(body).hexdigest().encode() != said:
                return None
            graph = load_graph(io.BytesIO(body))
            os.utime(path)
        except Exception:  # of a foreign torch, say: it is only a cache
            return None
        return graph

    def put(self, key: Any, graph: Graph) -> str:
        """Keep a graph; return why it could not be kept, or nothing."""
        path = self.path(key)
        try:
            make_private(self.folder)
            with tempfile.TemporaryDirectory(dir=self.folder) as folder:
                saved = Path(folder) / "graph"
                graph.save(str(saved))
                body = saved.read_bytes()
                saved.write_bytes(hashlib.sha256(body).hexdigest().encode() + body)
                saved.chmod(0o600)
                saved.replace(path)
            prune(self.folder)
        except Exception as error:  # a full disk, a folder that cannot be written, a graph that torch cannot pickle
            return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:160]}"
        return ""


def make_private(folder: Path) -> None:
    """Make a folder that only the user can read or write; OSError where it is a link or another's."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise OSError(f"{folder} is a link, or belongs to somebody else")
    folder.chmod(0o700)


def entries(folder: Path | None = None) -> list[tuple[Path, int, float]]:
    """Return the stored graphs as (path, bytes, time of the last use), the newest first."""
    found = []
    with contextlib.suppress(OSError):
        for path in ((folder or cache_folder()) / "graphs").iterdir():
            status = path.lstat()
            if NAME.fullmatch(path.name) and stat.S_ISREG(status.st_mode):
                found.append((path, status.st_size, status.st_mtime))
    return sorted(found, key=lambda entry: -entry[2])


def clear() -> tuple[int, int]:
    """Remove all stored graphs and what torch's compiler keeps beside them; return how many graphs, bytes of all."""
    found = entries()
    size = sum(own for _, own, _ in found)
    for path, *_ in found:
        path.unlink(missing_ok=True)
    folder = cache_folder() / "torch"
    with contextlib.suppress(OSError):  # there is none
        if _is_private(folder):
            size += sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())
            shutil.rmtree(folder, ignore_errors=True)
    return len(found), size


def prune(folder: Path, most: int = MOST_BYTES) -> None:
    """Remove the graphs that were not used for longest, until at most `most` bytes are left."""
    total = 0
    for path, size, _ in entries(folder.parent):
        total += size
        if total > most:
            path.unlink(missing_ok=True)


def _is_private(path: Path) -> bool:
    """Tell whether a file or folder, no link or pipe, belongs to the user and nobody else may write to it."""
    status = path.lstat()
    kept = stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)
    return kept and status.st_uid == os.getuid() and not status.st_mode & 0o022


@functools.cache
def _environment() -> dict[str, Any]:
    sources = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        sources.update(path.read_bytes())
    return {
        "fitkit": sources.hexdigest(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "processor": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
