"""The corpus seen from outside: which files and processes the kernel was asked for, native code included.

    python -m tests.hostile.runner --strace [WORD …]

strace follows every process of the runner. Between two marks, which the runner leaves by opening a path that is not
there, lies one way of one case; what is asked for there must lie in the folder of the case or belong to the
interpreter, and no process may begin. Without strace it says so and does nothing.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from .guard import LIBRARY, inside

CALLS = "execve,execveat,open,openat,openat2,creat,connect,bind,socket,clone,clone3,fork,vfork,ptrace,memfd_create"
CALLS += ",unlink,unlinkat,rename,renameat,renameat2,mkdir,mkdirat,rmdir,link,linkat,symlink,symlinkat,chmod,fchmodat"
CALL = re.compile(r"^(?:\[pid\s+)?(?P<pid>\d+)?\]?\s*(?P<name>\w+)\((?P<rest>.*)")
PATH = re.compile(r'(?:(?P<at>AT_FDCWD|\d+)<(?P<folder>[^>]*)>, )?"(?P<path>(?:[^"\\]|\\.)*)"(?P<cut>\.\.\.)?')
OPENED = re.compile(r"= \d+<(/[^>]*)>$")
STARTS = ("execve", "execveat", "fork", "vfork", "clone", "clone3", "ptrace")
MACHINE = ("/proc", "/sys", "/dev/null", "/dev/urandom", "/dev/shm", "/etc/ld.so.cache", "/lib", "/usr/lib", "/lib64")
# Of what belongs to the machine: secrets of the process, which no case may read.
PRIVATE = re.compile(r"/proc/(self|\d+)/(environ|mem|fd/|root|cwd)")


def faults(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Return which way of which case asked for what it may not have, by the lines of strace's log."""
    way = folder = ""
    for line in lines:
        found = CALL.match(line)
        if not found:
            continue
        name, rest = found["name"], found["rest"]
        if "/hostile-mark/" in rest:
            mark = re.search(r'/hostile-mark/([^"]*)"', rest)
            way = mark[1] if mark else way
            folder = (PATH.search(rest) or {"folder": ""})["folder"] or ""
        elif way and way != "end" and (fault := _fault(name, rest, folder)):
            yield way, fault


def _fault(name: str, rest: str, folder: str) -> str:
    """Return what is wrong with a call; `folder` is where the case stands."""
    if name in STARTS:
        return "" if "CLONE_THREAD" in rest else f"{name}({rest[:100]}"
    if name in ("socket", "connect", "bind", "memfd_create"):
        return f"{name}({rest[:100]}"
    for found in PATH.finditer(rest):
        path = os.path.join(found["folder"] or folder, found["path"].encode().decode("unicode_escape"))
        if not _allowed(os.path.normpath(path)):
            return f"{name} {path}"
    opened = OPENED.search(rest)  # where it really led, links followed
    return f"{name} {opened[1]}" if opened and not _allowed(opened[1]) else ""


def _allowed(path: str) -> bool:
    if PRIVATE.match(path):
        return False
    # A case's folder is <work>/box; that of the files beside it, <work>/outside, is not allowed.
    return "/box/" in f"{path}/" or inside(path, (*LIBRARY, *MACHINE))


def main(words: Sequence[str]) -> int:
    """Run the corpus under strace, print what was seen, and return 1 if a case asked for what it may not have."""
    if shutil.which("strace") is None:
        print("SKIPPED: strace is not installed here.", file=sys.stderr)
        return 0
    from . import controls
    from .runner import CORPUS, run, summary

    # verify-resume is made of processes, which is what this looks for: the audit hook has seen to those two cases.
    names = [name for name, case in CORPUS.items() if case.ways != ("verify",)]
    names = [name for name in names if not words or any(word in name for word in words)]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        log.mkdir()
        prefix = ["strace", "-f", "-qq", "-y", "-s", "400", "--seccomp-bpf", "-e", f"trace={CALLS}"]
        outcomes = run([*names, *controls.NATIVE], prefix=[*prefix, "-o", f"{log}/<name>"])
        calls: Counter[str] = Counter()
        bad = []
        for path in sorted(log.iterdir()):
            with path.open(errors="replace") as file:
                text = file.readlines()
            calls.update(found["name"] for line in text if (found := CALL.match(line)))
            bad += faults(text)
    noticed = [way for way, _ in bad if way.startswith("control: ")]
    bad = [(way, fault) for way, fault in bad if way not in noticed]
    print(f"the control, a file read outside by native code, was {'' if noticed else 'NOT '}noticed")
    print(summary(outcomes))
    print("calls seen: " + ", ".join(f"{name} {count:,}" for name, count in calls.most_common()))
    print(f"{len(bad)} forbidden calls in {len({way for way, _ in bad})} ways")
    for way, fault in bad[:60]:
        print(f"    {way}: {fault}")
    return int(bool(bad) or not noticed)
