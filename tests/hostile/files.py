"""Hostile data files, weights, run folders and checkpoints: each is one attack that a stranger could hand over.

`run` in a case's folder is a copy of a run that was really made, `finished` or `killed` before its end, and then
changed in one place. Where a checksum stands in the way, it is made right again: an attacker can do that too.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .case import SPEC, TABLE, Case, bomb
from .specs import changed

MIB = 1 << 20
SECRET = "../outside/secret.csv"

# Data files ---------------------------------------------------------------------------------------------------------

WAYS = ("check", "fit", "resume", "init", "evaluate-data", "predict")
ALONE = WAYS[:-1]  # predict reads x alone, so what is wrong with y is none of its business


def data(
    name: str,
    file: str,
    content: bytes | Callable[[Path], Any],
    ways: tuple[str, ...] = WAYS,
    must: tuple[str, ...] | None = None,
) -> Case:
    """Return a case in which a spec, `init`, `evaluate` and `predict` are given one hostile file of data."""
    source = {".csv": "csv", ".txt": "text"}.get(Path(file).suffix, Path(file).suffix[1:])
    given = f"{{x: {file}, y: y.npy}}" if source == "npy" else f"{{path: {file}}}"

    def make(box: Path) -> None:
        finished(box, "table" if source == "csv" else "arrays")
        (box / "spec.yaml").write_text(changed(f"data: {{{source}: {given}}}"))
        np.save(box / "y.npy", np.arange(8) % 2)
        path = box / file
        path.unlink(missing_ok=True)
        content(path) if callable(content) else path.write_bytes(content)

    return Case(name, make, ways, ways if must is None else must, file)


def npy(header: str | bytes, body: bytes = b"", length: int | None = None) -> bytes:
    """Return an .npy file of version 2 with this text as its header."""
    raw = header if isinstance(header, bytes) else header.encode("latin1")
    return b"\x93NUMPY\x02\x00" + struct.pack("<I", len(raw) if length is None else length) + raw + body


def shaped(shape: str, descr: str = "'<f4'") -> str:
    """Return the header of an .npy file."""
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}"


def npz(**members: bytes) -> bytes:
    """Return an .npz file of members that are bytes already."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return file.getvalue()


def saved(array: Any) -> bytes:
    """Return an array as an .npy file, objects pickled."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


X, Y = saved(np.arange(16, dtype=np.float32).reshape(8, 2)), saved(np.arange(8) % 2)
OBJECTS = saved(np.array([bomb()] * 8, dtype=object))
PICKLE = pickle.dumps(bomb())


def zip_bomb(mib: int) -> bytes:
    """Return an .npz whose x is a small array and `mib` MiB of zeros, about a thousandth of that on the disk."""

    def deflated(raw: bytes) -> bytes:  # ended by a full flush, so that a block can be repeated
        packer = zlib.compressobj(9, zlib.DEFLATED, -15)
        return packer.compress(raw) + packer.flush(zlib.Z_FULL_FLUSH)

    head = npy(shaped("(8, 2)"))
    size = len(head) + mib * MIB
    packed = deflated(head) + deflated(bytes(MIB)) * mib + b"\x03\x00"  # and an empty last block
    local = struct.pack("<4s5H3L2H", b"PK\3\4", 20, 0, 8, 0, 0, 0, len(packed), size, 5, 0) + b"x.npy" + packed
    entry = struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, 20, 0, 8, 0, 0, 0, len(packed), size, 5, 0, 0, 0, 0, 0, 0)
    entry += b"x.npy"
    return local + entry + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, len(entry), len(local), 0)


def patched(raw: bytes, old: bytes, new: bytes) -> bytes:
    """Return a file with some of its bytes replaced by as many others."""
    assert old in raw and len(old) == len(new)
    return raw.replace(old, new)


def tensors(header: Any, body: bytes = b"", length: int | None = None) -> bytes:
    """Return a safetensors file with this header: an object, or its bytes."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + body


def at(begin: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    """Return what a safetensors header says of one tensor."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def hole(size: int, head: bytes = b"") -> Callable[[Path], Any]:
    """Return what makes a file that claims this size and takes no room on the disk."""

    def make(path: Path) -> None:
        path.write_bytes(head)
        os.truncate(path, size)

    return make


def pipe(path: Path) -> None:
    """Make a pipe that nobody writes to."""
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def link(target: str) -> Callable[[Path], Any]:
    """Return what makes a symbolic link."""

    def make(path: Path) -> None:
        path.unlink(missing_ok=True)
        path.symlink_to(target)

    return make


def members(count: int) -> bytes:
    """Return an .npz of many empty members."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for i in range(count):
            archive.writestr(f"x{i}.npy", b"")
    return file.getvalue()


NUMPY = [
    data("a pickle under the name of an .npy", "x.npy", PICKLE),
    data("an array of objects", "x.npy", OBJECTS),
    data("a header that nests", "x.npy", npy("(" * 100_000)),
    data("a header that nests a little less", "x.npy", npy("-" * 5000 + "1")),
    data("a header of 4 GB", "x.npy", npy(shaped("(8, 2)"), length=0xFFFFFFFF)),
    data("a header of 9 MiB", "x.npy", npy(shaped("(8, 2)") + " " * (9 * MIB))),
    data("a header that is code", "x.npy", npy("__import__('os').system('touch pwned')")),
    data("a dtype that is code", "x.npy", npy(shaped("(8, 2)", "'__import__(\"os\")'"))),
    data("a dtype of objects in a field", "x.npy", npy(shaped("(8,)", "[('a', '|O')]"), PICKLE)),
    data("a dtype of a gigabyte", "x.npy", npy(shaped("(8,)", "'|V1000000000'"))),
    data("10^12 rows in 100 bytes", "x.npy", npy(shaped("(1000000000000, 2)"), bytes(100))),
    data("a shape that overflows", "x.npy", npy(shaped("(4611686018427387904, 4)"), bytes(64))),
    data("a shape that overflows to what is there", "x.npy", npy(shaped("(4294967296, 4294967296, 0, 1)"))),
    data("a shape beyond 64 bits", "x.npy", npy(shaped("(" + "9" * 100 + ",)"))),
    data("a shape below zero", "x.npy", npy(shaped("(-8, 2)"), bytes(64))),
    data("a shape of ten thousand sides", "x.npy", npy(shaped("(" + "1," * 10_000 + ")"), bytes(4))),
    data("a truth as a shape", "x.npy", npy(shaped("(True, 2)"), bytes(8))),
    data("an .npy without an end", "x.npy", hole(1 << 40, npy(shaped("(137438953472, 2)")))),
    data("an .npy that is a pipe", "x.npy", pipe),
    data("an .npy that is a link to outside", "x.npy", link(SECRET), ("check", "fit", "resume")),
    data("a pickle under the name of an .npz", "data.npz", PICKLE),
    data("objects in an .npz", "data.npz", npz(x=OBJECTS, y=Y)),
    data("objects as the targets of an .npz", "data.npz", npz(x=X, y=OBJECTS), must=ALONE),
    data("a member that is a pickle", "data.npz", npz(x=PICKLE, y=Y)),
    data("members that climb", "data.npz", npz(**{"../../outside/pwned": X, "/tmp/pwned-by-fitkit": Y})),
    data("a zip bomb behind an array", "data.npz", zip_bomb(1024), must=ALONE),
    data("a member that claims 16 EB", "data.npz", npz(x=npy(shaped("(1152921504606846976, 2)")), y=Y)),
    data("a member that claims 4 GB and has 100 bytes", "data.npz", npz(x=npy(shaped("(500000000, 2)")), y=Y)),
    data("thirty thousand members", "data.npz", members(30_000)),
    data(
        "an encrypted member", "data.npz", patched(npz(x=X), b"PK\1\2\x14\x03\x14\x00\0", b"PK\1\2\x14\x03\x14\x00\1")
    ),
    data("a method that is none", "data.npz", npz(x=X).replace(b"\x08\0", b"\x63\0")),
    data("an end that lies about where all begins", "data.npz", npz(x=X, y=Y)[:-6] + b"\xff\xff\xff\x7f\0\0"),
    data("an .npz without an end", "data.npz", hole(1 << 40, npz(x=X, y=Y))),
]
DEEP = b'{"a":' * 100_000 + b"1" + b"}" * 100_000
SAFETENSORS = [
    data("a pickle under the name of a safetensors", "data.safetensors", PICKLE),
    data("a header of 2^63", "data.safetensors", tensors({}, length=1 << 63)),
    data("a header of 2^64 - 1", "data.safetensors", tensors({}, length=(1 << 64) - 1)),
    data("a header of 100 MB in 100 bytes", "data.safetensors", tensors({}, bytes(100), length=100_000_000)),
    data("a header of 99 MB without an end", "data.safetensors", hole(1 << 40, tensors(b"{", length=99_000_000))),
    data("a header that nests in a safetensors", "data.safetensors", tensors(DEEP)),
    data(
        "tensors that overlap", "data.safetensors", tensors({"x": at(0, 64, [8, 2]), "y": at(0, 64, [8, 2])}, bytes(64))
    ),
    data(
        "tensors with a gap", "data.safetensors", tensors({"x": at(0, 64, [8, 2]), "y": at(96, 128, [8])}, bytes(128))
    ),
    data(
        "one name twice",
        "data.safetensors",
        tensors(
            b'{"x":{"dtype":"F32","shape":[8,2],"data_offsets":[0,64]},'
            b'"x":{"dtype":"F32","shape":[16],"data_offsets":[0,64]}}',
            bytes(64),
        ),
    ),
    data(
        "a shape that overflows in a safetensors",
        "data.safetensors",
        tensors({"x": at(0, 64, [1 << 62, 8])}, bytes(64)),
    ),
    data(
        "a tensor of no bytes and 2^62 rows",
        "data.safetensors",
        tensors({"x": at(0, 0, [1 << 62, 0]), "y": at(0, 0, [0])}),
    ),
    data("offsets backwards", "data.safetensors", tensors({"x": at(64, 0, [8, 2])}, bytes(64))),
    data("offsets below zero", "data.safetensors", tensors({"x": at(-64, 0, [8, 2])}, bytes(64))),
    data("a dtype that is none", "data.safetensors", tensors({"x": at(0, 64, [8, 2], "OBJECT")}, bytes(64))),
    data(
        "names that clear the screen",
        "data.safetensors",
        tensors({"\x1b[2J": at(0, 4, [1]), "y\n": at(4, 8, [1])}, bytes(8)),
    ),
    data("a thousand sides", "data.safetensors", tensors({"x": at(0, 4, [1] * 1000), "y": at(4, 8, [1])}, bytes(8))),
    data("NaN everywhere", "data.safetensors", tensors({"x": at(0, 64, [8, 2]), "y": at(64, 96, [8])}, b"\xff" * 96)),
    data(
        "a terabyte without an end", "data.safetensors", hole(1 << 40, tensors({"x": at(0, (1 << 40) - 84, [1 << 38])}))
    ),
    data("a safetensors that is a pipe", "data.safetensors", pipe),
    data("a safetensors that is a link", "data.safetensors", link(SECRET), ("check", "fit", "resume")),
]
TEXTS = [
    data("a pickle under the name of a CSV", "data.csv", PICKLE),
    data("a table that clears the screen", "data.csv", b"\x1b[2J,\x1b]0;pwned\x07\n\x1b[31m,2\n"),
    data("a cell that clears the screen", "data.csv", b"size,colour,kind\n1,red,a\n\x1b[2J,red,b\n3,red,a\n"),
    data("ten thousand columns", "data.csv", (",".join(f"c{i}" for i in range(10_000)) + "\n").encode() * 2),
    data("a cell of a MiB", "data.csv", b'size,colour,kind\n"' + b"a" * MIB + b'",red,a\n'),
    data("a quote that never ends", "data.csv", b'size,colour,kind\n"' + b"\n" * MIB),
    data(
        "a number of half a million digits", "data.csv", b"size,colour,kind\n" + b"9" * 500_000 + b",red,a\n1,red,b\n"
    ),
    data("null bytes in a table", "data.csv", b"size,colour,kind\n\0,red,a\n1,red,b\n"),
    data("UTF-16 in a table", "data.csv", "size,colour,kind\n1,red,a\n".encode("utf-16")),
    data("a table without an end", "data.csv", hole(1 << 40, TABLE.encode())),
    data("a table that is a pipe", "data.csv", pipe),
    data("a table that is a link", "data.csv", link(SECRET), ("check", "fit", "resume")),
    data("a text without an end", "data.txt", hole(1 << 40, b"abc")),
    data("a text that is a pipe", "data.txt", pipe),
]

# Run folders --------------------------------------------------------------------------------------------------------


def finished(box: Path, kind: str = "table") -> Path:
    """Put a copy of a finished run into the folder, with the spec and the data that it was made of."""
    shutil.copytree(box.parent / f"benign-{kind}", box, dirs_exist_ok=True)
    return box / "run"


def killed(box: Path) -> Path:
    """Put a copy of a run into the folder that was killed some steps before its end."""
    run = finished(box)
    for folder in newest(run)[1:]:
        shutil.rmtree(folder)
    (run / "summary.json").write_text('{"status": "running"}\n')
    return run


LOADS = ("load", "evaluate", "evaluate-data", "predict")


def run(
    name: str,
    change: Callable[[Path], Any],
    must: tuple[str, ...],
    ways: tuple[str, ...] = (*LOADS, "test", "resume"),
    begin: Callable[[Path], Path] = finished,
) -> Case:
    """Return a case in which one thing of a run folder was changed."""
    return Case(name, lambda box: change(begin(box)), ways, must)


def weights(name: str, content: bytes | Callable[[Path], Any], must: tuple[str, ...] = LOADS) -> Case:
    """Return a case in which the weights of a run are something else."""

    def change(run: Path) -> None:
        path = run / "model.safetensors"
        path.unlink()
        content(path) if callable(content) else path.write_bytes(content)

    return run(name, change, must)


def parts(path: Path) -> tuple[dict[str, Any], bytes]:
    """Return the header and the bytes of a safetensors file."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def card(
    name: str, change: Callable[[dict[str, Any]], Any], must: tuple[str, ...] = ("load", "evaluate-data", "predict")
) -> Case:
    """Return a case in which the card of the weights says something else; `change` returns it, or changes it."""

    def edit(run: Path) -> None:
        header, body = parts(run / "model.safetensors")
        card = json.loads(header["__metadata__"]["fitkit"])
        changed = change(card)
        said = changed if isinstance(changed, str) else json.dumps(card if changed is None else changed)
        header["__metadata__"]["fitkit"] = said
        (run / "model.safetensors").write_bytes(tensors(header, body))

    return run(name, edit, must)


def says(*keys: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Return what sets one value deep in a card or state."""

    def change(card: dict[str, Any]) -> None:
        for key in keys[:-1]:
            card = card[key]
        card[keys[-1]] = value

    return change


def nested(levels: int, inner: str = "1") -> str:
    """Return JSON of many levels."""
    return "[" * levels + inner + "]" * levels


def torch_zip(path: Path) -> None:
    """Write a checkpoint of torch that is a bomb."""
    torch.save({"a": bomb()}, path)


def tied(header: dict[str, Any]) -> None:
    """Let names of a card's ties stand for one another in a circle."""
    header["ties"] = {"model.1.weight": "model.3.weight", "model.3.weight": "model.1.weight"}


WEIGHTS = [
    weights("weights that torch wrote, with a bomb", torch_zip),
    weights("weights that are a pickle", PICKLE),
    weights("weights that are a zip with a polyglot head", npz(x=OBJECTS)),
    weights("weights without a card", tensors({"x": at(0, 4, [1])}, bytes(4))),
    weights("weights with a header of 2^63", tensors({}, length=1 << 63)),
    weights("weights without an end", hole(1 << 40, tensors({"x": at(0, (1 << 40) - 84, [1 << 38])}))),
    weights("weights that are a pipe", pipe),
    weights("weights that are a folder", lambda path: path.mkdir()),
    weights("weights that are a link to outside", link("../../outside/model.safetensors")),
    weights("weights that are a device", link("/dev/zero")),
    weights("a card that is no JSON", tensors({"__metadata__": {"fitkit": "__import__('os')"}})),
    weights("a card that nests", tensors({"__metadata__": {"fitkit": nested(100_000)}})),
    weights(
        "a card that nests less", tensors({"__metadata__": {"fitkit": '{"ties": {}, "spec": ' + nested(900) + "}"}})
    ),
]
CARDS = [
    card("a card that is a list", lambda card: [card]),
    card("a card that is a number of a million digits", lambda card: "9" * 1_000_000),
    card("a card of another format", says("format", value=2)),
    card("a card whose model is a path in Python", says("spec", "model", value={"os.system": "touch pwned"})),
    card("a card whose model is a class of torch", says("spec", "model", value="torch.nn.Linear")),
    card("a card whose model has a _target_", says("spec", "model", value={"_target_": "os.system", "command": "x"})),
    card("a card whose model has an _instantiator", says("_instantiator", value="os.system"), must=()),
    card("a card whose model is a source of data", says("spec", "model", value={"csv": {"path": SECRET}})),
    card("a card whose model extends a file", says("spec", "model", value={"mlp": {"extends": "/etc/passwd"}})),
    card("a card whose spec extends a file", says("spec", "extends", value=SECRET), must=()),
    card("a card whose spec reads other data", says("spec", "data", value={"csv": {"path": SECRET}}), must=()),
    card("a card whose loss is a path in Python", says("spec", "loss", value={"os.system": {}})),
    card("a card without a loss", says("spec", "loss", value={})),
    card("a card whose loss is a source", says("spec", "loss", value={"csv": {"path": SECRET}})),
    card(
        "a card whose loss has code",
        says("spec", "loss", value={"cross_entropy": {"weight": "lambda: 1"}}),
        must=("evaluate-data",),
    ),
    card("a card whose metric is a path", says("spec", "metrics", value={"os.system": {}}), must=("evaluate-data",)),
    card(
        "a card whose metrics nest",
        says("spec", "metrics", value={"accuracy": json.loads(nested(500))}),
        must=("evaluate-data",),
    ),
    card("a card whose model is a billion wide", says("spec", "model", value={"mlp": [1_000_000_000]})),
    card("a card whose model is a million by a million", says("spec", "model", value={"mlp": [1_000_000, 1_000_000]})),
    card("a card whose model has a million layers", says("spec", "model", value={"mlp": [1] * 1_000_000})),
    card("a card whose model has 20,000 layers", says("spec", "model", value=["ReLU"] * 20_000)),
    card("a card with ten billion inputs", says("inputs", "shape", value=[10_000_000_000])),
    card("a card with 10^8 inputs", says("inputs", "shape", value=[100_000_000])),
    card("a card with inputs of half", says("inputs", "shape", value=[0.5])),
    card("a card with truth as inputs", says("inputs", "shape", value=[True])),
    card("a card with a million sides", says("inputs", "shape", value=[1] * 1_000_000)),
    card("a card with a vocabulary of 10^8", says("inputs", "vocabulary", value=100_000_000)),
    card("a card with 10^8 outputs", says("outputs", value=100_000_000)),
    card("a card with outputs below zero", says("outputs", value=-1)),
    card(
        "a card with a million categories", says("features", value=[{"name": "size", "categories": ["a"] * 1_000_000}])
    ),
    card("a card whose features are words", says("features", value="size")),
    card("a card whose categories are numbers", says("features", value=[{"name": 1, "categories": [1, 2, 3, 4]}])),
    card("a card whose class names are numbers", says("classes", value=[0, 1])),
    card("a card with a million classes", says("classes", value=["a"] * 1_000_000)),
    card("a card with classes over another axis", says("class_dim", value=1_000_000)),
    card("a card with another precision", says("precision", value="torch.load")),
    card("a card with a list as precision", says("precision", value=["bfloat16"])),
    card("a card that ties what is not there", says("ties", value={"model.1.weight": "nothing"})),
    card("a card that ties in a circle", tied, must=()),
    card("a card that ties a number", says("ties", value={"a": 1})),
    card("a card whose ties are a list", says("ties", value=["a", "b"])),
    card("a card that asks for a module of one's own", says("built", value=False)),
    card("a card whose key clears the screen", says("spec", "model", value={"\x1b[2J": 1})),
]


def named(
    name: str, content: bytes | str | Callable[[Path], Any], must: tuple[str, ...], file: str, **more: Any
) -> Case:
    """Return a case in which one file of a run folder is something else."""

    def change(run: Path) -> None:
        path = run / file
        if callable(content):
            path.unlink(missing_ok=True)
            content(path)
        else:
            path.write_bytes(content.encode() if isinstance(content, str) else content)

    return run(name, change, must, **more)


READS_SPEC = ("evaluate", "evaluate-data", "predict", "test")


def resolved(name: str, section: str, must: tuple[str, ...] = READS_SPEC) -> Case:
    """Return a case in which the resolved spec of a run says something else."""
    return named(name, changed(section), must, "resolved.yaml")


def outward(file: str) -> Callable[[Path], Any]:
    """Return what puts a link to the outside in the place of one thing of a run folder."""

    def change(run: Path) -> None:
        path = run / file
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        path.symlink_to("../../outside" if "." not in file[1:] else "../../outside/keep.txt")

    return change


def moved(run: Path) -> None:
    """Make the run folder itself a link."""
    run.rename(run.with_name("elsewhere"))
    run.symlink_to("elsewhere")


FOLDERS = [
    resolved("a resolved spec that reads outside", f"data: {{csv: {{path: {SECRET}}}}}", ("evaluate", "test")),
    resolved("a resolved spec that reads an absolute path", "data: {csv: {path: /etc/passwd}}", ("evaluate", "test")),
    resolved(
        "a resolved spec that reads its own weights", "data: {csv: {path: run/model.safetensors}}", ("evaluate", "test")
    ),
    resolved("a resolved spec with a path in Python", "model: {os.system: touch pwned}"),
    resolved("a resolved spec with a tag", "seed: !!python/object/apply:os.system ['touch pwned']"),
    resolved("a resolved spec with a base", "extends: ../../outside/base.yaml"),
    resolved("a resolved spec that compiles", "fit: {compile: true, batch_size: 16, device: cpu}", ()),
    resolved("a resolved spec that asks for workers", "fit: {workers: 9, batch_size: 16}", ()),
    resolved("a resolved spec that writes", "callbacks: {CSVLogger: {filename: ../../outside/log.csv}}"),
    resolved("a resolved spec of a billion", "model: {mlp: [1000000000]}", ("evaluate", "test")),
    named("a resolved spec that is a pickle", PICKLE, READS_SPEC, "resolved.yaml"),
    named("a resolved spec that is a pipe", pipe, READS_SPEC, "resolved.yaml"),
    named("a resolved spec without an end", hole(1 << 40), READS_SPEC, "resolved.yaml"),
    named("looks that nest", nested(100_000), ("test",), "test_looks.json"),
    named("looks that are no list", '{"a": 1}', ("test",), "test_looks.json"),
    named("looks without an end", hole(1 << 40), ("test",), "test_looks.json"),
    named("looks that are a pipe", pipe, ("test",), "test_looks.json"),
    named("a summary that nests", nested(100_000), ("resume",), "summary.json"),
    named("a summary that is no mapping", "[]", ("resume",), "summary.json"),
    named("a summary that is not UTF-8", b"\xff\xfe", ("resume",), "summary.json"),
    named("a summary with a status of its own", '{"status": {"__class__": "os.system"}}', (), "summary.json"),
    named("a summary without an end", hole(1 << 40), ("resume",), "summary.json"),
    named("a history that nests", nested(100_000), ("resume",), "history.json"),
    named("a history that is no history", '{"format": 1}', ("resume",), "history.json"),
    named("a history that is not UTF-8", b"\xff\xfe", ("resume",), "history.json"),
    named("a history without an end", hole(1 << 40), ("resume",), "history.json"),
    named("a history with a digit bomb", '{"format": ' + "9" * 100_000 + "}", ("resume",), "history.json"),
    named("an environment that lies", '{"torch": "9.9", "threads": {}}', ("resume",), "env.json", begin=killed),
    named("an environment that nests", nested(100_000), ("resume",), "env.json", begin=killed),
    named("an environment that is a list", "[1]", ("resume",), "env.json", begin=killed),
    named("an environment that is no JSON", "os.system", ("resume",), "env.json", begin=killed),
    named("an environment that clears the screen", '{"torch": "\\u001b[2J"}', ("resume",), "env.json", begin=killed),
    named("an environment without an end", hole(1 << 40), ("resume",), "env.json", begin=killed),
    run("a lock that is a link", outward(".lock"), ("resume",)),
    run("a lock that is a pipe", lambda run: pipe(run / ".lock"), ("resume",)),
    run("a history that is a link", outward("history.csv"), ("resume",)),
    run("a ledger that is a link", outward("test_looks.json"), ("test",)),
    run("checkpoints that are a link", outward("checkpoints"), ("resume",), begin=killed),
    run("a run folder that is a link", moved, ("resume",), begin=killed),
    run("a run folder within itself", lambda run: (run / "checkpoints" / "up").symlink_to(".."), ("resume",)),
]

# Checkpoints --------------------------------------------------------------------------------------------------------


def newest(run: Path) -> list[Path]:
    """Return the folders of the checkpoints."""
    return sorted((run / "checkpoints").glob("step-*"))


def sealed(folder: Path) -> None:
    """Make the checksums of a checkpoint right again."""
    path = folder / "MANIFEST.json"
    manifest = json.loads(path.read_text())
    for name in manifest["files"]:
        raw = (folder / name).read_bytes()
        manifest["files"][name] = {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
    path.write_text(json.dumps(manifest))


def checkpoint(name: str, change: Callable[[Path], Any], must: tuple[str, ...] = ("resume",)) -> Case:
    """Return a case in which every checkpoint of a killed run was changed in the same way."""
    return run(name, lambda run: [change(folder) for folder in newest(run)], must, ("resume",), killed)


def manifest(name: str, change: Callable[[dict[str, Any]], Any]) -> Case:
    """Return a case in which the manifests say something else."""

    def edit(folder: Path) -> None:
        path = folder / "MANIFEST.json"
        said = json.loads(path.read_text())
        path.write_text(json.dumps(change(said) or said))

    return checkpoint(name, edit)


def state(name: str, change: Callable[[dict[str, Any]], Any], must: tuple[str, ...] = ("resume",)) -> Case:
    """Return a case in which the states say something else, under right checksums."""

    def edit(folder: Path) -> None:
        path = folder / "state.json"
        said = json.loads(path.read_text())
        changed = change(said)
        path.write_text(changed if isinstance(changed, str) else json.dumps(said))
        sealed(folder)

    return checkpoint(name, edit, must)


def swapped(file: str, content: bytes | Callable[[Path], Any]) -> Callable[[Path], None]:
    """Return what puts something else into the place of a file, under a right checksum where it has one."""

    def change(folder: Path) -> None:
        path = folder / file
        path.unlink()
        content(path) if callable(content) else path.write_bytes(content)
        if file != "MANIFEST.json" and path.is_file() and path.stat().st_size < MIB and not path.is_symlink():
            sealed(folder)

    return change


def entry(name: str) -> Callable[[dict[str, Any]], None]:
    """Return what adds a file to a manifest."""
    said = {"bytes": 12, "sha256": hashlib.sha256(b"keep me safe").hexdigest()}
    return lambda manifest: manifest["files"].update({name: said})


def history(change: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], None]:
    """Return what changes the history within a state."""

    def edit(state: dict[str, Any]) -> None:
        document = json.loads(state["history"])
        change(document)
        state["history"] = json.dumps(document)

    return edit


def groups(**values: Any) -> Callable[[dict[str, Any]], None]:
    """Return what changes the options of the optimizer within a state."""
    return lambda state: [group.update(values) for group in state["optimizer"]["groups"]]


def callback(**values: Any) -> Callable[[dict[str, Any]], None]:
    """Return what changes the memory of every callback within a state."""
    return lambda state: [memory.update(values) for _, memory in state["callbacks"]]


def more_tensors(file: str, add: Mapping[str, Any]) -> Callable[[Path], None]:
    """Return what puts other tensors into a group, their bytes all zero."""
    size = max(tensor["data_offsets"][1] for tensor in add.values())
    return swapped(file, tensors(add, bytes(size)))


COUNTER_LIES = {
    "a word": "x", "a list": [], "nothing": None, "below zero": -1, "half": 0.5, "beyond 64 bits": 10**30, "truth": True
}  # fmt: skip
CHECKPOINTS = [
    manifest("a manifest that climbs", entry("../../../../outside/keep.txt")),
    manifest("a manifest with an absolute path", entry("/etc/passwd")),
    manifest("a manifest that climbs to a good name", entry("../model.safetensors")),
    manifest("a manifest with a null byte", entry("a\0.json")),
    manifest("a manifest that names itself", entry("MANIFEST.json")),
    manifest("a manifest that clears the screen", entry("\x1b[2J.json")),
    manifest("a manifest with other endings", entry("model.pkl")),
    manifest("a manifest that is a list", lambda said: [said]),
    manifest("a manifest whose files are a list", lambda said: {**said, "files": list(said["files"])}),
    manifest("a manifest of another format", says("format", value="1; os.system")),
    manifest("a manifest of another step", says("step", value="../../outside")),
    manifest("a manifest of a million files", lambda said: {**said, "files": {f"a{i}.json": 1 for i in range(10**6)}}),
    manifest("a manifest without a state", lambda said: said["files"].pop("state.json") and None),
    checkpoint("a manifest that nests", swapped("MANIFEST.json", nested(100_000).encode())),
    checkpoint("a manifest without an end", swapped("MANIFEST.json", hole(1 << 40))),
    checkpoint("a manifest that is a pipe", swapped("MANIFEST.json", pipe)),
    checkpoint("a manifest that is a link", swapped("MANIFEST.json", link("../../../../outside/keep.txt"))),
    checkpoint("a manifest that is not UTF-8", swapped("MANIFEST.json", b"\xff\xfe{}")),
    checkpoint("a state that is a pickle", swapped("state.json", PICKLE)),
    checkpoint("a state that is a link", swapped("state.json", link("../../../../outside/keep.txt"))),
    checkpoint("a state that is a pipe", swapped("state.json", pipe)),
    checkpoint("a state without an end", swapped("state.json", hole(1 << 40))),
    checkpoint("tensors that are a pickle", swapped("optimizer.safetensors", PICKLE)),
    checkpoint("tensors that torch wrote, with a bomb", swapped("optimizer.safetensors", torch_zip)),
    checkpoint("tensors that are a link", swapped("model.safetensors", link("../../../../outside/model.safetensors"))),
    checkpoint("tensors that are a pipe", swapped("model.safetensors", pipe)),
    checkpoint("tensors without an end", swapped("model.safetensors", hole(1 << 40))),
    checkpoint("tensors of another model", more_tensors("model.safetensors", {"x": at(0, 4, [1])})),
    checkpoint("sums of another run", more_tensors("sums.safetensors", {"loss": at(0, 4, [1])})),
    checkpoint("sums of a thousand values", more_tensors("sums.safetensors", {
        "loss": at(0, 4000, [1000]), "count": at(4000, 8000, [1000]), "samples": at(8000, 12000, [1000])})),
    checkpoint("averages of another model", more_tensors("callbacks.safetensors", {"1.x": at(0, 4, [1])})),
    checkpoint("an optimizer's state for parameter 10^9", more_tensors("optimizer.safetensors", {
        "1000000000.step": at(0, 4, []), "0.__class__": at(4, 8, [1])})),
    checkpoint("an optimizer's state of other shapes", more_tensors("optimizer.safetensors", {
        "0.step": at(0, 4, []), "0.exp_avg": at(4, 8, [1]), "0.exp_avg_sq": at(8, 12, [1])})),
    checkpoint("an optimizer's state with half of its entries", more_tensors("optimizer.safetensors", {
        "0.step": at(0, 4, [])})),
    state("a state that nests", lambda state: nested(100_000)),
    state("a state that is a list", lambda state: "[]"),
    state("a state with NaN", lambda state: '{"counters": NaN}'),
    state("a state with a digit bomb", lambda state: '{"counters": ' + "9" * 1_000_000 + "}"),
    *[state(f"a step that is {what}", says("counters", "step", value=lie)) for what, lie in COUNTER_LIES.items()],
    *[state(f"an epoch that is {what}", says("counters", "epoch", value=lie)) for what, lie in COUNTER_LIES.items()],
    state("a batch that is a word", says("counters", "batch", value="x")),
    state("a batch below zero", says("counters", "batch", value=-5)),
    state("a rate factor that is a word", says("counters", "lr_factor", value="x")),
    state("a best value that is a word", says("counters", "best_value", value="x")),
    state("seconds that are nothing", says("counters", "seconds", value=None)),
    state("a rate that is nothing", groups(lr=None)),
    *[state(f"a micro-batch of {rows}", says("counters", "micro_batch", value=rows)) for rows in (0, -1, 0.5, 10**30)],
    state("seconds that are a list", says("counters", "seconds", value=[])),
    state("a counter of one's own", says("counters", "__class__", value="os.system"), ()),
    state("counters that are missing", says("counters", value={})),
    state("a state of other callbacks", says("callbacks", value=[["os.system", {}]])),
    state("a callback's memory that is a word", callback(step="x")),
    state("a callback's memory of attributes", callback(__class__="os.system", on_step_end="os.system"), ()),
    state("ties in a circle", says("ties", value={"model": {"a": "b", "b": "a"}})),
    state("ties of a group that is not there", says("ties", value={"__class__": {"a": "b"}})),
    state("ties that are a list", says("ties", value=["a"])),
    state("a best that is not there", says("has_best", value="no"), ()),
    state("a history that is code", says("history", value="__import__('os').system('touch pwned')")),
    state("a history in a state that nests", says("history", value=nested(50_000))),
    state("a history of other columns", history(says("columns", value={"__class__": []}))),
    state("a history of a million rows", history(says("columns", "loss", value=[0.0] * 10**6))),
    state("a history whose monitor is no column", history(says("monitor", value="__class__")), ()),
    state("an optimizer whose lr is a word", groups(lr="x")),
    state("an optimizer whose lr is a list", groups(initial_lr=[1]), ()),
    state("an optimizer whose betas are one", groups(betas=[0.9]), ()),
    state("an optimizer whose betas are words", groups(betas=["a", "b"]), ()),
    state("an optimizer whose parameters are others", groups(params=[0, 10**9])),
    state("an optimizer whose parameters are words", groups(params=["os.system"] * 4)),
    state("an optimizer that asks for CUDA graphs", groups(capturable=True, fused=True, foreach=True), ()),
    state("an optimizer with values for tensors", says("optimizer", "values", value={"0.exp_avg": "os.system"})),
    state("an optimizer whose groups are a mapping", says("optimizer", "groups", value={})),
    run(
        "two thousand checkpoints",
        lambda run: [(run / "checkpoints" / f"step-{i}").mkdir() for i in range(1000, 3000)],
        (), ("resume",), killed,
    ),
    run("a checkpoint of step 10^18", lambda run: newest(run)[-1].rename(run / "checkpoints" / ("step-" + "9" * 18)),
        (), ("resume",), killed),
]  # fmt: skip


def verified(name: str, text: str) -> Case:
    """Return a case for `verify-resume`, which starts processes of its own."""
    return Case(name, lambda box: (box / "spec.yaml").write_text(text), ("verify",), ("verify",))


VERIFIED = [
    verified("a tag to verify", SPEC + "seed: !!python/object/apply:os.system ['touch pwned']\n"),
    verified("a path in Python to verify", changed("model: {os.system: touch pwned}")),
]

FILES: list[Case] = [*NUMPY, *SAFETENSORS, *TEXTS, *WEIGHTS, *CARDS, *FOLDERS, *CHECKPOINTS, *VERIFIED]
