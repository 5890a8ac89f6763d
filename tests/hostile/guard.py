"""An audit hook that notices what a stranger's file must never make the process do.

Python reports these events itself, before it acts: the hook writes the event down and raises, so nothing happens even
where something would. It is armed only while a file of a stranger is handled, after everything was imported. It does
not see what native code does (safetensors opens files in Rust): `strace.py` looks at the same corpus from outside.
"""

from __future__ import annotations

import ast
import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

# An event that begins with one of these is forbidden whatever its arguments are.
FORBIDDEN = (
    ("exec", "compile", "import", "marshal.", "pickle.", "code.__new__", "function.__new__", "builtins.input")
    + (
        "os.system",
        "os.exec",
        "os.posix_spawn",
        "os.spawn",
        "os.fork",
        "os.startfile",
        "subprocess.",
        "pty.",
        "ctypes.",
    )
    + ("socket.", "urllib.", "http.", "ftplib.", "smtplib.", "webbrowser.", "sys.settrace", "sys.setprofile")
    + ("cpython.run", "os.kill", "os.putenv", "os.chown", "os.setxattr", "syslog.", "winreg.", "sqlite3.")
)
CHANGES = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.chmod", "os.link", "os.symlink", "os.truncate")
CHANGES += ("os.utime", "shutil.rmtree", "shutil.move", "shutil.copyfile", "tempfile.mkstemp", "tempfile.mkdtemp")
LOOKS = ("os.listdir", "os.scandir")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

# The interpreter with its packages, and fitkit itself. What a warning or a time zone needs belongs to the machine.
LIBRARY = tuple(
    {os.path.realpath(root) for root in (sys.prefix, sys.base_prefix)}
    | {os.path.realpath(Path(__file__).parents[2] / "fitkit"), "/etc/localtime", "/usr/share/zoneinfo"}
    | {
        "/dev/null",
        "/dev/urandom",
        "/proc/meminfo",
        f"/proc/{os.getpid()}/cgroup",
        "/sys/fs/cgroup",
    }  # how much memory there is
)


class Forbidden(BaseException):
    """What the hook raises; no `except Exception` of anybody swallows it."""


class Guard:
    """The hook with its rules: `reads` and `writes` are the folders and files that are open to a case."""

    def __init__(self) -> None:
        self.on = False
        self.reads: tuple[str, ...] = ()
        self.child: tuple[str, ...] = ()
        self.writes: tuple[str, ...] = ()
        self.events: list[str] = []
        sys.addaudithook(self._hook)

    @contextlib.contextmanager
    def armed(self, reads: Sequence[Path], writes: Sequence[Path], child: Sequence[str] = ()) -> Iterator[list[str]]:
        """Note forbidden events inside the `with`, in the list that it gives.

        `child` is the beginning of the one command that may be started: `verify-resume` is made of processes.
        """
        self.child = tuple(child)
        self.reads = (*map(os.path.realpath, reads), *LIBRARY)
        self.writes = tuple(map(os.path.realpath, writes))
        self.events = []
        self.on = True
        try:
            yield self.events
        finally:
            self.on = False

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        self.on = False  # what the hook itself does is not the case's doing
        try:
            wrong = self._wrong(event, arguments)
        finally:
            self.on = True
        if wrong:
            self.events.append(f"{event} {wrong}")
            raise Forbidden(f"{event} {wrong}")

    def _wrong(self, event: str, arguments: tuple[Any, ...]) -> str:
        """Return what is forbidden about an event, or nothing."""
        if event == "compile" and sys._getframe(2).f_code is ast.parse.__code__:
            return ""  # a syntax tree and no code: NumPy reads the header of an .npy with ast.literal_eval
        if event == "subprocess.Popen" and self.child and tuple(arguments[1])[: len(self.child)] == self.child:
            return ""
        if event.startswith(FORBIDDEN):
            return " ".join(repr(argument)[:80] for argument in arguments) or "()"
        if event == "open":
            path, mode, flags = arguments
            writing = set(mode or "") & set("wax+") or (mode is None and flags & WRITING)
            roots = (os.devnull, *self.writes) if writing else (*self.reads, *self.writes)
            return self._outside([path], roots)
        if event in CHANGES:
            if isinstance(arguments[-1], int) and arguments[-1] >= 0:  # relative to a folder that is open
                arguments = (os.path.join(os.readlink(f"/proc/self/fd/{arguments[-1]}"), os.fsdecode(arguments[0])),)
            return self._outside(arguments, self.writes)
        if event in LOOKS:
            return self._outside(arguments[:1], (*self.reads, *self.writes))
        return ""

    def _outside(self, arguments: Sequence[Any], roots: Sequence[str]) -> str:
        for path in arguments:
            if isinstance(path, str | bytes | os.PathLike) and not inside(resolved(os.fsdecode(path)), roots):
                return os.fsdecode(path)[:200]
        return ""


def resolved(path: str) -> str:
    """Return where a path leads once every link is followed; a path that no system call takes leads nowhere."""
    try:
        return os.path.realpath(path)
    except ValueError:  # a null byte in it
        return os.devnull


def inside(path: str, roots: Sequence[str]) -> bool:
    """Tell whether a resolved path is one of the roots or below one."""
    return any(path == root or path.startswith(root.rstrip("/") + "/") for root in roots)
