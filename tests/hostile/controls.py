"""What a hole would look like: code that does what is forbidden, run by the same harness, which must notice each.

No code of fitkit does any of this. A harness that lets one of these pass would also let an attack pass.
"""

from __future__ import annotations

import ctypes
import importlib
import marshal
import os
import pickle
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import safe_open

from .case import Case, bomb

OUTSIDE = Path("../outside")


def _unpickle(case: Case) -> Any:
    return pickle.loads(Path("bomb.pkl").read_bytes())


def _swallow(case: Case) -> None:
    try:
        os.system("touch pwned")
    except Exception:
        pass


def _link(case: Case) -> str:
    Path("link.csv").symlink_to(OUTSIDE / "secret.csv")
    return Path("link.csv").read_text()


# What is done, and a word of the fault that must be told.
CONTROLS: dict[str, tuple[Callable[[Case], Any], str]] = {
    "a pickle is read": (_unpickle, "pickle.find_class"),
    "a command is run": (lambda case: os.system("touch pwned"), "os.system"),
    "a command is run, and its error swallowed": (_swallow, "os.system"),
    "a process is started": (lambda case: subprocess.run(["true"]), "subprocess.Popen"),
    "a process is spawned": (lambda case: os.posix_spawn("/bin/true", ["true"], {}), "os.posix_spawn"),
    "the process forks": (lambda case: os.fork() or os._exit(0), "os.fork"),
    "the process becomes another": (lambda case: os.execv("/bin/true", ["true"]), "os.exec"),
    "text is evaluated": (lambda case: eval("1 + 1"), "compile"),
    "code is executed": (lambda case: exec(_CODE), "exec"),
    "code is unmarshalled": (lambda case: marshal.loads(_MARSHALLED), "marshal.loads"),
    "a module is imported": (lambda case: __import__("this"), "import 'this'"),
    "a module is imported by its name": (lambda case: importlib.import_module("this"), "forbidden"),
    "a library is loaded": (lambda case: ctypes.CDLL("libm.so.6"), "ctypes.dlopen"),
    "a socket is made": (lambda case: socket.socket(), "socket.__new__"),
    "a name is resolved": (lambda case: socket.getaddrinfo("localhost", 80), "forbidden"),
    "a page is opened": (lambda case: urllib.request.urlopen("http://127.0.0.1:9/"), "urllib.Request"),
    "a file is written outside": (lambda case: (OUTSIDE / "new.txt").write_text("x"), "open"),
    "a file is written beside the run folder": (lambda case: Path("other.txt").write_text("x"), "open"),
    "a file is read outside": (lambda case: (OUTSIDE / "secret.csv").read_text(), "open"),
    "a file is read by way of a link": (_link, "os.symlink"),
    "a secret is read": (lambda case: Path("/etc/passwd").read_text(), "open"),
    "the environment is read": (lambda case: Path("/proc/self/environ").read_bytes(), "open"),
    "a folder is made outside": (lambda case: (OUTSIDE / "new").mkdir(), "os.mkdir"),
    "a file is removed outside": (lambda case: (OUTSIDE / "keep.txt").unlink(), "os.remove"),
    "a file is moved outside": (lambda case: Path("data.csv").rename(OUTSIDE / "keep.txt"), "os.rename"),
    "a folder is listed outside": (lambda case: os.listdir(OUTSIDE), "os.listdir"),
    "an error leaks": (lambda case: {}["x"], "leaked KeyError"),
    "the interpreter is left": (lambda case: sys.exit(3), "SystemExit"),
    "all seems to be well": (lambda case: 0, "ended with exit 0"),
    "a traceback is printed": (lambda case: print("Traceback (most recent call last):") or 2, "a traceback"),
    "the screen is cleared": (lambda case: print("\x1b[2J") or 2, "terminal"),
    "a secret is printed": (lambda case: print("canary-of-the-outside") or 2, "outside"),
    "time is wasted": (lambda case: _burn(2.2), "took 2"),
    "memory is wasted": (lambda case: bool(bytearray(300 << 20)) + 1, "MiB"),
    "the process ends": (lambda case: os._exit(7), "took the process down"),
}
_CODE = compile("x = 1", "control", "exec")
_MARSHALLED = marshal.dumps(_CODE)


def _burn(seconds: float) -> int:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass
    return 2


def _native(case: Case) -> int:
    with safe_open(OUTSIDE / "model.safetensors", framework="pt"):
        return 2


WAYS: dict[str, tuple[Callable[[Case], Any], tuple[str, ...]]] = {
    f"control: {name}": (act, ("run",)) for name, (act, _) in CONTROLS.items()
} | {"control: native": (_native, ())}
CASES = {
    name: Case(name, lambda box: (box / "bomb.pkl").write_bytes(pickle.dumps(bomb())), (f"control: {name}",), (name,))
    for name in CONTROLS
}
# What no audit hook sees, since it is done in Rust: strace has to.
NATIVE = {"native code reads outside": Case("native code reads outside", lambda box: None, ("control: native",), ())}
