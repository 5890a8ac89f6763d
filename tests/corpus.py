"""The corpus of mistakes: what a tired user writes, and the exact words they get back.

The tables in `mistakes/*.txt` hold what is said of files and commands, `python.txt` what is said of calls. A case:

    === what is wrong, in a few words
    the text of spec.yaml
    --- file d.csv                    a file beside it; arrays of .npy, .npz and .safetensors as `name = [JSON]`
    --- raw d.npz                     a file with exactly this text
    --- without some.module           an import that fails
    --- command check spec.yaml x=1   what is run; `fit spec.yaml` where a case says nothing
    --- says
    what is printed, word for word

`␉` stands for a tab, `<dir>` for the folder, `<names of sources>` for the names of a table, and `<arguments of AdamW>`
for what a component takes, so that a new entry changes no expectation.
"""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

import fitkit
from fitkit.builder.tables import TABLES
from fitkit.errors import listing
from fitkit.spec.check import FIT
from fitkit.spec.spec import KEYS

FOLDER = Path(__file__).parent / "mistakes"


@dataclass
class Case:
    """One mistake, and what is said of it."""

    name: str
    files: dict[str, str] = field(default_factory=dict)
    raw: dict[str, str] = field(default_factory=dict)
    without: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=lambda: ["fit", "spec.yaml"])
    message: str = ""

    def write(self, folder: Path) -> None:
        """Make the files of the case."""
        for name, text in {**self.raw, **self.files}.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if name in self.files and path.suffix in (".npy", ".npz", ".safetensors"):
                write_arrays(path, text)
            else:
                path.write_text(text)

    def expected(self, folder: Path) -> str:
        """Return the message with every placeholder filled in."""
        return re.sub(r"<dir>|<(names|arguments) of (\w+)>|<keys>", lambda match: _fill(match, folder), self.message)


def _fill(match: re.Match[str], folder: Path) -> str:
    if match[0] == "<dir>":
        return str(folder)
    if match[0] == "<keys>":
        return f"{', '.join(KEYS)}, extends"
    if match[1] == "names":
        return listing(sorted(TABLES[match[2]], key=str.lower), 40)
    entry = FIT if match[2] == "fit" else next(table[match[2]] for table in TABLES.values() if match[2] in table)
    return listing(entry.arguments, 20)


def write_arrays(path: Path, text: str) -> None:
    """Write lines of `name = [JSON]` as arrays."""
    arrays = {name.strip(): np.array(json.loads(value)) for name, _, value in (s.partition("=") for s in lines(text))}
    if path.suffix == ".npy":
        np.save(path, arrays["x"])
    elif path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        save_file(arrays, path)


def lines(text: str) -> list[str]:
    """Return the lines of a text that are not blank."""
    return [line for line in text.splitlines() if line.strip()]


def read(path: Path) -> list[Case]:
    """Return the cases of one table."""
    cases = []
    for block in path.read_text("utf-8").replace("␉", "\t").split("\n=== ")[1:]:
        name, _, body = block.partition("\n")
        spec, *parts = re.split(r"^--- ", body, flags=re.M)
        case = Case(name, {"spec.yaml": spec})
        for part in parts:
            head, _, text = part.partition("\n")
            kind, _, argument = head.partition(" ")
            if kind in ("file", "raw"):
                getattr(case, {"file": "files", "raw": "raw"}[kind])[argument] = text
            elif kind == "without":
                case.without.append(argument)
            elif kind == "command":
                case.command = shlex.split(argument)
            else:
                case.message = text.rstrip("\n") + "\n"
        cases.append(case)
    return cases


TABLES_OF_MISTAKES = {path.stem: read(path) for path in sorted(FOLDER.glob("*.txt"))}


class Samples(Dataset):
    """Ten times the same item."""

    def __init__(self, item):
        self.item = item

    def __len__(self):
        return 10

    def __getitem__(self, row):
        return self.item


class Stream(IterableDataset):
    """A stream of nothing."""

    def __iter__(self):
        return iter([])


class Named(nn.Module):
    """A module that returns a dict, as those of Hugging Face do."""

    def forward(self, x):
        return {"logits": x}


# What the code in python.txt may use.
NAMES = {
    "np": np,
    "nn": nn,
    "torch": torch,
    "fitkit": fitkit,
    "DataLoader": DataLoader,
    "Samples": Samples,
    "Stream": Stream,
    "Named": Named,
    "x": torch.linspace(-1, 1, 80).reshape(20, 4),
    "classes": torch.arange(20) % 3,
    "values": torch.linspace(0, 1, 20),
    "mlp": {"model": {"mlp": [4]}, "fit": {"epochs": 1}},
}

COMMANDS = [(f"{table}: {case.name}", case) for table, cases in TABLES_OF_MISTAKES.items() for case in cases]
PYTHON = [(name, case) for name, case in COMMANDS if name.startswith("python: ")]
COMMANDS = [(name, case) for name, case in COMMANDS if not name.startswith("python: ")]
