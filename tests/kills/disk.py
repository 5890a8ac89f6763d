"""What a disk can do to checkpoints: damage a file, end a save after any operation, be full."""

import contextlib
import os
import random
import shutil
import subprocess
import sys
import warnings

import torch

from fitkit.engine import checkpoint
from fitkit.errors import CheckpointError

NEWER, OLDER = 2, 1


def state(step, size=400):
    """Return a small state that tells of which step it is."""
    full = {"w": torch.full((size,), float(step)), "n": torch.tensor(step)}
    return {"model": full, "optimizer": {"0.exp_avg": full["w"] / 3}}, {"step": step, "lr": 0.1 * step}


def two_checkpoints(folder, size=400):
    for step in (OLDER, NEWER):
        checkpoint.write(folder, step, *state(step, size))
    return folder


def is_whole(saved, step):
    tensors, values = state(step, len(saved.tensors["model"]["w"]))
    return dict(saved.state) == values and all(
        torch.equal(saved.tensors[group][name], tensor)
        for group, kept in tensors.items()
        for name, tensor in kept.items()
    )


# Damage ---------------------------------------------------------------------------------------------------------------


def damage(file, draw):
    """Truncate a file, zero a part of it, or flip one bit, at a random place; say what was done."""
    raw = bytearray(file.read_bytes())
    while True:
        kind, at = draw.choice(["truncate", "zero", "flip"]), draw.randrange(len(raw))
        found = bytearray(raw)
        if kind == "truncate":
            del found[at:]
        elif kind == "zero":
            end = min(len(raw), at + draw.randint(1, 64))
            found[at:end] = bytes(end - at)
        else:
            found[at] ^= 1 << draw.randrange(8)
        if found != raw:
            file.write_bytes(found)
            return f"{kind} {file.name} at {at} of {len(raw)}"


def damages(place, count, seed=0):
    """Damage the newest checkpoint so many times; return what was not noticed, or blamed on another file."""
    draw, missed = random.Random(seed), []
    whole = two_checkpoints(place / "whole")
    for number in range(count):
        folder = shutil.copytree(whole, place / str(number))
        file = draw.choice(sorted((folder / f"step-{NEWER}").iterdir()))
        done = damage(file, draw)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            saved = checkpoint.newest(folder)
        said = " ".join(str(warning.message) for warning in caught)
        named = str(file) in said or (
            file.name == checkpoint.MANIFEST and f"{file.parent}/" in said and file.name in said
        )
        if not is_whole(saved, OLDER) or not named:
            missed.append(f"{done}: {said or 'nothing was said'}")
        shutil.rmtree(folder)
    return missed


# A save that ends after any of its operations -------------------------------------------------------------------------


class Crashed(BaseException):
    pass


_before = [lambda: None]  # what is called before each file operation; an audit hook cannot be taken away again
_operations = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "shutil.rmtree")
_installed = []


@contextlib.contextmanager
def operations(call):
    """Call a function before each operation on files inside the `with`, fsync included."""
    if not _installed:
        sys.addaudithook(lambda event, _: _before[-1]() if event in _operations else None)
        _installed.append(True)
    fsync = os.fsync

    def counted(handle):
        call()
        return fsync(handle)

    os.fsync = counted
    _before.append(call)
    try:
        yield
    finally:
        _before.pop()
        os.fsync = fsync


def crashes(place):
    """End a save before each of its operations, one after the other; return the count of places.

    Raises AssertionError where that leaves no whole checkpoint, a mixed one, or one older than the last.
    """
    for last in range(1, 1000):
        folder, done = two_checkpoints(place / str(last)), 0

        def crash(last=last):
            nonlocal done
            done += 1
            if done == last:
                raise Crashed

        try:
            with operations(crash):
                checkpoint.write(folder, 3, *state(3))
        except Crashed:
            pass
        saved = checkpoint.newest(folder)
        assert is_whole(saved, saved.state["step"]) and saved.state["step"] in (NEWER, 3), last
        checkpoint.clear_leftovers(folder)
        assert not [path for path in folder.iterdir() if not path.name.startswith("step-")]
        assert is_whole(checkpoint.read(checkpoint.write(folder, 4, *state(4))), 4)
        if done < last:
            return last - 1
    raise AssertionError("a save has no end")


# A full disk ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def small_disk(folder, size):
    """Mount a disk of so many bytes in a new folder; raises PermissionError where the system refuses."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise PermissionError(getattr(error, "stderr", None) or str(error)) from error
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk, free):
    """Fill a disk up to so many free bytes."""
    ballast = disk / "ballast"
    ballast.unlink(missing_ok=True)
    with ballast.open("wb") as file:
        file.write(bytes(max(0, shutil.disk_usage(disk).free - free)))


def full_disk(disk, size=30_000):
    """Save with ever more room on a full disk until it fits; return how often it did not.

    Raises AssertionError where a save that did not fit harmed an earlier one, left a file behind, or said too little.
    """
    page, refused = os.sysconf("SC_PAGE_SIZE"), 0
    folder = two_checkpoints(disk / "checkpoints", size)
    for free in range(0, 1 << 20, 2 * page):
        fill(disk, free)
        try:
            checkpoint.write(folder, 3, *state(3, size))
            break
        except CheckpointError as error:
            said, refused = str(error), refused + 1
        assert str(folder / "step-3") in said and "bytes" in said and "free" in said, said
        assert sorted(path.name for path in folder.iterdir()) == [f"step-{OLDER}", f"step-{NEWER}"]
        assert is_whole(checkpoint.newest(folder), NEWER)
    assert is_whole(checkpoint.newest(folder), 3)
    return refused
