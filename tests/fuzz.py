"""Mutated specs and mutated headers: whatever they say, they end well or in an error of ours, within 2 s and 200 MB.

One spec in twenty that has no mistake is built, too; what builds may take the memory and the time of its model.

    python -m tests.fuzz specs 100000 [SEED]      the gallery's specs, changed as bytes and as trees
    python -m tests.fuzz headers 100000 [SEED]    headers of weights and data, cards, manifests, states, histories

Input number i of a seed is always the same: `python -m tests.fuzz specs 1 SEED:i` repeats it, and prints it.
"""

from __future__ import annotations

import collections
import contextlib
import copy
import hashlib
import json
import math
import random
import shutil
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import fitkit
from fitkit import run_folder
from fitkit.engine import checkpoint
from fitkit.errors import FitkitError
from fitkit.parts import array_file
from fitkit.resume import Checkpoints, restore
from fitkit.session import run
from fitkit.spec import reader
from fitkit.spec.spec import dump

SPECS = Path(__file__).resolve().parents[1] / "specs"
MOST_SECONDS, MOST_MIB = 2.0, 200
BUILT = 20  # of so many specs without a mistake, one is built
TOKENS = [
    "&a ",
    "*a",
    "!!python/object/apply:os.system ",
    "!x ",
    "<<: ",
    "{",
    "}",
    "[",
    "]",
    ": ",
    "- ",
    "\n",
    "\t",
    "\0",
    "'",
]
TOKENS += [
    '"',
    "\x1b",
    "\\",
    "#",
    "|",
    ">",
    "---\n",
    "...\n",
    "%YAML 1.2\n",
    "? ",
    "\ud800",
    "\u202e",
    "é",
    "../",
    "~",
    "/",
]
TOKENS += [
    "${HOME}",
    "1e400",
    "9" * 30,
    "-1",
    "0",
    ".nan",
    ".inf",
    "null",
    "true",
    "os.system",
    "__class__",
    "extends: a\n",
]
VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    1,
    -1,
    2**31,
    2**63,
    10**30,
    0.5,
    -0.0,
    1e-300,
    1e308,
    math.inf,
    math.nan,
    "",
    "x",
]
VALUES += [
    "os.system",
    "../x",
    "/etc/passwd",
    "\x1b[2J",
    "a" * 5000,
    "{epoch.__class__}",
    [],
    {},
    [[]],
    [{}],
    {"": ""},
    [1, 2],
]
VALUES += [
    {"os.system": "x"},
    {"AdamW": {"lr": "x"}},
    {"Linear": 1},
    "Linear",
    "digits",
    "mlp",
    ["ReLU"] * 50,
    [0] * 100,
]


def changed_bytes(raw: bytes, draw: random.Random) -> bytes:
    """Return bytes with a few of them changed, moved, doubled or left out, or with words put between them."""
    out = bytearray(raw)
    for _ in range(draw.choice((1, 1, 2, 4, 16))):
        at = draw.randrange(len(out) + 1)
        end = min(len(out), at + draw.choice((1, 1, 4, 40)))
        what = draw.randrange(6)
        if what == 0 and at < len(out):
            out[at] ^= 1 << draw.randrange(8)
        elif what == 1:
            del out[at:end]
        elif what == 2:
            out[at:at] = out[at:end] * draw.choice((1, 2, 50))
        elif what == 3:
            out[at:at] = draw.choice(TOKENS).encode("utf-8", "surrogatepass")
        elif what == 4:
            out[at:end] = bytes(draw.randrange(256) for _ in range(end - at))
        else:
            del out[at:]
    return bytes(out)


def changed_tree(tree: Any, draw: random.Random) -> Any:
    """Return a tree of plain values with a few nodes replaced, removed, renamed, doubled or moved."""
    tree = copy.deepcopy(tree)
    for _ in range(draw.choice((1, 1, 2, 4))):
        nodes = list(_nodes(tree))
        if not nodes:
            return draw.choice(VALUES)
        owner, key = draw.choice(nodes)
        what = draw.randrange(6)
        if what == 0:
            del owner[key]
        elif what == 1 and isinstance(owner, dict):
            owner[draw.choice([*TOKENS, str(key).upper(), f"{key}s", "__class__", "_target_"])] = owner.pop(key)
        elif what == 2:
            other, name = draw.choice(nodes)
            if name in other if isinstance(other, dict) else name < len(other):
                owner[key] = copy.deepcopy(other[name])
        elif what == 3 and isinstance(owner, list):
            owner[key:key] = [copy.deepcopy(owner[key])] * draw.choice((1, 2, 1000))
        elif what == 4 and isinstance(owner[key], int | float) and not isinstance(owner[key], bool):
            owner[key] = owner[key] * draw.choice((-1, 0, 2, 10**3, 10**9, 1e300, 0.1))
        else:
            owner[key] = copy.deepcopy(draw.choice(VALUES))
    return tree


def _nodes(tree: Any) -> Iterator[tuple[Any, Any]]:
    for key, value in list(
        tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    ):
        yield tree, key
        yield from _nodes(value)


# What is done with an input: each returns a function that draws one and opens it, and says how far it came -----------

Try = Callable[[random.Random], tuple[Any, Callable[[], str]]]


def specs(folder: Path) -> Try:
    """Return what draws a mutated spec of the gallery and loads it, as a text, a file or a dict."""
    shutil.copytree(SPECS / "data", folder / "data")
    texts = [path.read_text("utf-8") for path in sorted(SPECS.glob("*.yaml"))]
    trees = [reader.read_text(text).plain() for text in texts]
    path = folder / "spec.yaml"

    def draw_one(draw: random.Random) -> tuple[Any, Callable[[], str]]:
        number, kind = draw.randrange(len(texts)), draw.randrange(4)
        if kind < 2:
            text = changed_bytes(texts[number].encode(), draw)
            path.write_bytes(text)
            given: Any = path if kind else text.decode("utf-8", "replace") + "\n"
        else:
            given = text = changed_tree(trees[number], draw)
            with contextlib.suppress(UnicodeEncodeError, ValueError):
                given = dump(given) + "\n" if kind == 2 else given
        built = draw.randrange(BUILT) == 0

        def open_it() -> str:
            spec = fitkit.load_spec(given)
            if not built:
                return "loads"
            fitkit.build(spec, out=folder / "out")
            return "builds"

        return text, open_it

    return draw_one


def headers(folder: Path) -> Try:
    """Return what draws a mutated header, card, manifest, state or history and opens the file that it stands in."""
    spec = {
        "data": "iris",
        "splits": {"stratified": {"val": 0.2}},
        "model": {"mlp": [4]},
        "metrics": ["accuracy"],
        "callbacks": {"EMA": None, "EarlyStopping": None, "ReduceLROnPlateau": None},
        "fit": {"epochs": 2, "batch_size": 16, "device": "cpu"},
    }
    run(fitkit.load_spec(spec), out=folder / "run")
    trainer = fitkit.build(spec)
    trainer.keeper = Checkpoints(folder / "kept", every_steps=3)
    trainer.fit()
    x = torch.arange(32.0).reshape(16, 2)
    (folder / "x.npy").write_bytes(_npy(x.numpy()))
    (folder / "y.npy").write_bytes(_npy((x[:, 0] > 5).long().numpy()))
    weights = (folder / "run" / run_folder.WEIGHTS).read_bytes()
    data = _safetensors(
        {"x": ("F32", [16, 2], 128), "y": ("I64", [16], 128)}, x.numpy().tobytes() + bytes(64) + b"\1\0\0\0\0\0\0\0" * 8
    )
    saved = checkpoint.newest(folder / "kept" / "checkpoints").path
    files = {path.name: path.read_bytes() for path in saved.iterdir()}
    target = folder / "checkpoints" / saved.name
    texts = {name: (folder / "run" / name).read_bytes() for name in (run_folder.HISTORY_JSON, run_folder.SUMMARY)}
    trainers = [fitkit.build(spec)]

    def fresh() -> Any:
        if trainers[0].epoch or trainers[0].optimizer.state:
            trainers[0] = fitkit.build(spec)
        return trainers[0]

    def of_weights(draw: random.Random) -> tuple[Any, Callable[[], str]]:
        raw = _changed_safetensors(weights, draw, card=True)
        (folder / "w.safetensors").write_bytes(raw)
        return raw, lambda: f"loads {type(fitkit.load(folder / 'w.safetensors').module).__name__}"

    def of_data(draw: random.Random) -> tuple[Any, Callable[[], str]]:
        raw = _changed_safetensors(data, draw)
        (folder / "d.safetensors").write_bytes(raw)
        path = str(folder / "d.safetensors")
        return (
            raw,
            lambda: f"data {array_file.from_parts(array_file.read_safetensors(path, 'x', 'y')[0], 'auto', 'd').target}",
        )

    def of_npy(draw: random.Random) -> tuple[Any, Callable[[], str]]:
        raw = (folder / "x.npy").read_bytes()
        raw = changed_bytes(raw[:128], draw) + raw[128:]
        (folder / "m.npy").write_bytes(raw)
        paths = str(folder / "m.npy"), str(folder / "y.npy")
        return raw, lambda: f"data {array_file.from_parts(array_file.read_npy(*paths)[0], 'auto', 'm').target}"

    def of_checkpoint(draw: random.Random) -> tuple[Any, Callable[[], str]]:
        name = draw.choice(("MANIFEST.json", "state.json", "state.json", *files))
        raw = files[name]
        if name.endswith(".json"):
            raw = changed_json(raw, draw)
        else:
            raw = _changed_safetensors(raw, draw)
        now = {**files, name: raw}
        if name != "MANIFEST.json" and draw.randrange(8):
            now["MANIFEST.json"] = _sealed(now)
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for other, content in now.items():
            (target / other).write_bytes(content)

        def open_it() -> str:
            read = checkpoint.read(target)
            trainer = fresh()
            trainer.resume = lambda trainer: restore(trainer, read)
            trainer.fit()
            return "resumes"

        return (name, raw), open_it

    def of_text(draw: random.Random) -> tuple[Any, Callable[[], str]]:
        name = draw.choice(list(texts))
        raw = changed_json(texts[name], draw)
        (folder / name).write_bytes(raw)
        read = run_folder.read_history if name == run_folder.HISTORY_JSON else run_folder.status
        return raw, lambda: f"reads {type(read(folder)).__name__}"

    ways = [of_weights, of_weights, of_checkpoint, of_checkpoint, of_data, of_npy, of_text]
    return lambda draw: draw.choice(ways)(draw)


def changed_json(raw: bytes, draw: random.Random) -> bytes:
    """Return JSON changed as bytes, or as a tree; a history within it is a tree of its own."""
    if draw.randrange(3) == 0:
        return changed_bytes(raw, draw)
    tree = json.loads(raw)
    if "history" in tree and draw.randrange(3) == 0:
        tree["history"] = json.dumps(changed_tree(json.loads(tree["history"]), draw))
    else:
        tree = changed_tree(tree, draw)
    return json.dumps(tree).encode()


def _changed_safetensors(raw: bytes, draw: random.Random, card: bool = False) -> bytes:
    (length,) = struct.unpack("<Q", raw[:8])
    text, body = raw[8 : 8 + length], raw[8 + length :]
    kind = draw.randrange(4)
    if kind == 0:
        return changed_bytes(raw[: 8 + length], draw) + body
    if kind == 1 or not card:
        text = changed_json(text, draw)
    else:
        tree = json.loads(text)
        tree["__metadata__"]["fitkit"] = changed_json(tree["__metadata__"]["fitkit"].encode(), draw).decode(
            "utf-8", "replace"
        )
        text = json.dumps(tree).encode()
    return struct.pack("<Q", len(text)) + text + body


def _safetensors(tensors: dict[str, tuple[str, list[int], int]], body: bytes) -> bytes:
    header, at = {}, 0
    for name, (dtype, shape, size) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def _sealed(files: dict[str, bytes]) -> bytes:
    """Return the manifest of a checkpoint with the checksums of these files."""
    manifest = json.loads(files["MANIFEST.json"])
    for name in manifest["files"]:
        manifest["files"][name] = {"bytes": len(files[name]), "sha256": hashlib.sha256(files[name]).hexdigest()}
    return json.dumps(manifest).encode()


def _npy(array: Any) -> bytes:
    with tempfile.TemporaryFile() as file:
        np.save(file, array)
        file.seek(0)
        return file.read()


# The loop -----------------------------------------------------------------------------------------------------------

KINDS = {"specs": specs, "headers": headers}


def fuzz(
    kind: str, count: int, seed: int = 0, first: int = 0, seconds: float = math.inf
) -> tuple[dict[str, int], list[str]]:
    """Open `count` inputs; return how many ended in what, and the faults with the input's number."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    ends: collections.Counter[str] = collections.Counter()
    faults: list[str] = []
    stop = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        draw_one = KINDS[kind](Path(name))
        for i in range(first, first + count):
            if time.monotonic() > stop:
                break
            given, open_it = draw_one(random.Random(f"{kind} {seed} {i}"))
            before, begun = _reset_peak(), time.process_time()
            ended, fault = _try(open_it)
            took, grown = time.process_time() - begun, _status("VmHWM") - before
            ends[ended] += 1
            ends["slowest, ms"] = max(ends["slowest, ms"], int(1000 * took))
            ends["largest, MiB"] = max(ends["largest, MiB"], int(grown))
            fault += f" took {took:.1f} s" * (took > MOST_SECONDS) + f" took {grown:.0f} MiB" * (grown > MOST_MIB)
            if fault.strip() and (ended != "builds" or "took" not in fault):
                faults.append(f"{seed}:{i}:{fault}")
            if count == 1:
                print(given, ended, sep="\n")
    return dict(ends), faults


def _try(open_it: Callable[[], str]) -> tuple[str, str]:
    """Return how it ended, and the fault if that is none of the ways in which it may end."""
    try:
        return open_it(), ""
    except FitkitError as error:
        text = str(error)
        unprintable = not "".join(text.split("\n")).isprintable()
        return type(error).__name__, " printed what a terminal acts on" * unprintable
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return f"leaked {type(error).__name__}", f" {type(error).__name__}: {error} ({frame.filename}:{frame.lineno})"[
            :300
        ]


def _status(key: str) -> float:
    """Return a line of the process's status in MiB."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith(f"{key}:"))


def _reset_peak() -> float:
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    return _status("VmHWM")


def main(words: list[str]) -> int:
    """Run what the command line asks for, and return 1 if anything ended otherwise than it may."""
    kind, count = words[0], int(words[1])
    seed, _, first = (words[2] if len(words) > 2 else "0").partition(":")
    seconds = float(words[3]) if len(words) > 3 else math.inf
    begun = time.monotonic()
    ends, faults = fuzz(kind, count, int(seed), int(first or 0), seconds)
    done = sum(number for end, number in ends.items() if "," not in end)
    print(f"{done:,} {kind} in {time.monotonic() - begun:.0f} s, seed {seed}: {len(faults)} faults")
    for end, number in sorted(ends.items(), key=lambda item: -item[1]):
        print(f"  {number:>9,} {end}")
    for fault in faults[:50]:
        print(fault)
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
