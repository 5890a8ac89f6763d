"""What a data file or a bundled set holds, and how a spec names it: the survey that a starter spec is written from."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from fitkit.builder.tables import TABLES
from fitkit.data import Data
from fitkit.errors import DataError, SpecError, listing, nearest, show
from fitkit.parts import array_file, csv_table
from fitkit.parts.input_file import existing

MOST_COLUMNS, MOST_CLASSES, MOST_TEXTS, MOST_LETTERS = 30, 8, 4, 30  # in a comment
TARGET_NAMES = ("target", "targets", "label", "labels", "class", "y")
INPUT_NAMES = ("x", "data", "features", "inputs", "images")
LENGTH, FEWEST_WINDOWS = 64, 20  # characters of a text window, and windows that a text should give at least
FEWEST_ROWS = 4  # fewer cannot be split
PATH = "from the folder of this spec, which it may not leave"


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What was found: the data, how a spec names it, and what to say of it."""

    data: Data
    source: str
    arguments: Mapping[str, Any] = field(default_factory=dict)  # of the source, as the spec says them
    why: Mapping[str, str] = field(default_factory=dict)  # a comment for each argument
    about: Sequence[str] = ()  # what the file holds, a line each
    dates: str | None = None  # a column that tells when
    parts: str | None = None  # a column that says train, val or test


def survey(path: Path, target: str | None, folder: Path) -> Survey:
    """Read a data file, or a bundled data set by its name, and tell what is in it.

    `target` is the column to predict (.csv, .tsv), the array (.npz, .safetensors), or the file of targets (.npy);
    without it, a column or array with a target's name, else the last column. `folder` is where the spec will stand: its
    paths start there, so data outside of it is a `SpecError`. Faults of the data are the `DataError`s of its source.
    """
    found = _survey(path, target, folder)
    if len(found.data) < FEWEST_ROWS:
        raise DataError(f"{path}: {len(found.data)} samples are too few to train and validate on.")
    return found


def _survey(path: Path, target: str | None, folder: Path) -> Survey:
    bundled = {
        name: entry
        for name, entry in TABLES["sources"].items()
        if name != "arrays" and not any(argument.required for argument in entry.arguments.values())
    }
    if str(path) in bundled and not path.exists():
        if target is not None:
            raise SpecError(f"{path} is a bundled data set: its target is given. Leave --target out.")
        return _arrays(bundled[str(path)].factory(), str(path), {}, {})
    try:
        existing(str(path))
    except DataError as error:
        near = nearest(str(path), bundled)
        hint = f' Did you mean the bundled "{near}"?' if near else f" Bundled are {listing(bundled)}."
        raise DataError(f"{error}{hint}" if not path.suffix else str(error)) from None
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: init reads {listing(READERS)}, not {path.suffix or 'a file without an ending'}.")
    return reader(path, target, folder)


def _relative(path: Path, folder: Path) -> str:
    whole, root = path.resolve(), folder.resolve()
    if not whole.is_relative_to(root):
        raise SpecError(
            f"{path} is not in {folder} or below it, and a spec reads no file outside of its folder. Write the spec "
            f"beside the data: --out {path.with_name('spec.yaml')}"
        )
    return whole.relative_to(root).as_posix()


def _csv(path: Path, target: str | None, folder: Path) -> Survey:
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        delimiter = max(",;\t|", key=file.readline(1 << 16).count)
    table = csv_table.read_table(str(path), delimiter)
    names = list(table.columns)
    named = next((name for name in names if name.lower() in TARGET_NAMES), names[-1])
    chosen = target or named
    table.require([chosen], "target")
    ignored = {name: fault for name in names if name != chosen and (fault := _unusable(table, name))}
    given = {"target": chosen, **({"ignore": list(ignored)} if ignored else {})}
    given |= {"delimiter": delimiter} if delimiter != "," else {}
    data: Data = TABLES["sources"]["csv"].factory(path=str(path), **given)
    guessed = "" if target else ", by its name" if named.lower() in TARGET_NAMES else ", here the last one"
    why = {
        "path": PATH,
        "target": f"the column to predict{guessed}",
        "ignore": "; ".join(f"{said(name)} {fault}" for name, fault in ignored.items()),
    }
    if data.classes is not None and csv_table.holds_numbers(table, chosen):
        why["target"] += "; say `task: values` if these numbers are quantities, not classes"
    width = max(len(said(name)) for name in names[:MOST_COLUMNS]) + 2
    about = [f"{len(data):,} rows, {len(names)} columns"]
    about += [f"  {said(name):<{width}}{_column(table, name, chosen, data)}" for name in names[:MOST_COLUMNS]]
    about += [f"  … and {len(names) - MOST_COLUMNS} more"] if len(names) > MOST_COLUMNS else []
    return Survey(
        data=data,
        source="csv",
        arguments={"path": _relative(path, folder), **given},
        why=why,
        about=about,
        dates=next((name for name in names if name != chosen and _is_date(table.columns[name])), None),
        parts=next((name for name in ignored if _says_parts(table.columns[name])), None),
    )


def _unusable(table: csv_table.CsvTable, name: str) -> str | None:
    """Say why a column is no input; None where it is one, or where the source has a fault of it to tell."""
    cells = table.columns[name]
    distinct, numeric = len(set(cells)), csv_table.holds_numbers(table, name)
    if "" in cells:
        return None
    if distinct == 1:
        return "is the same in every row"
    if _says_parts(cells):
        return "says train, val or test"
    if distinct == len(cells) and (not numeric or re.fullmatch(r"(?i)(.*_)?(id|index|row|no|nr)", name)):
        return "is different in every row"
    if not numeric and distinct > csv_table.MOST_CATEGORIES:
        return f"has {distinct} different texts"
    if numeric:
        csv_table.numbers(table, name)
        try:
            csv_table.features(table, [name])
        except DataError:
            return "has numbers too close together for float32"
    return None


def _says_parts(cells: Sequence[str]) -> bool:
    return {"train", "val"} <= set(cells) <= {"train", "val", "test"}


def _is_date(cells: Sequence[str]) -> bool:
    try:
        return all(datetime.fromisoformat(cell) and "-" in cell for cell in cells)
    except ValueError:
        return False


def _column(table: csv_table.CsvTable, name: str, target: str, data: Data) -> str:
    cells = table.columns[name]
    if name == target:
        return _target(data)
    if csv_table.holds_numbers(table, name) and "" not in cells:
        values = csv_table.numbers(table, name)
        return f"numbers from {values.min():g} to {values.max():g}"
    known = sorted(set(cells))
    return f"{len(known)} different texts: {listing(map(said, known), MOST_TEXTS)}"


def _target(data: Data) -> str:
    y = data.y
    assert y is not None  # only a text has none
    if data.target == "values":
        return f"target: numbers from {float(y.min()):g} to {float(y.max()):g}"
    counts = y.bincount().tolist()
    names = data.classes or [str(number) for number in range(len(counts))]
    told = [f"{said(name)} ({count:,})" for name, count in zip(names, counts, strict=True)]
    return f"target: {len(counts)} classes, {listing(told, MOST_CLASSES)}"


def _text(path: Path, target: str | None, folder: Path) -> Survey:
    if target is not None:
        raise SpecError(f"{path}: a text has no columns: its target is the next character. Leave --target out.")
    letters = path.stat().st_size
    given = {"length": max(1, min(LENGTH, letters // FEWEST_WINDOWS))}
    data: Data = TABLES["sources"]["text"].factory(path=str(path), **given)
    why = {"path": PATH, "length": "characters that the model sees at once"}
    about = [f"{len(data.x):,} characters, {data.vocabulary} different ones, in {len(data):,} windows"]
    return Survey(data=data, source="text", arguments={"path": _relative(path, folder), **given}, why=why, about=about)


def _npy(path: Path, target: str | None, folder: Path) -> Survey:
    guesses = [path.with_name(re.sub(r"(?i)(?<![a-z])x(?![a-z])", letter, path.name)) for letter in "yY"]
    y = Path(target) if target else next((guess for guess in guesses if guess.exists()), path)
    if y == path:
        raise DataError(f"{path}: this holds the inputs. Name the file of the targets: --target FILE.npy")
    data: Data = TABLES["sources"]["npy"].factory(x=str(path), y=str(y))
    return _arrays(data, "npy", {"x": _relative(path, folder), "y": _relative(y, folder)}, {"y": "the targets"})


def _archive(source: str) -> Callable[[Path, str | None, Path], Survey]:
    """Return the reader of files that hold named arrays."""

    def read(path: Path, target: str | None, folder: Path) -> Survey:
        bases = list(dict.fromkeys(re.sub(r"_(train|val|test)$", "", name) for name in array_file.names(str(path))))
        y = target or next((name for name in bases if name.lower() in TARGET_NAMES), "y")
        others = [name for name in bases if name != y]
        x = next((name for name in others if name.lower() in INPUT_NAMES), others[0] if len(others) == 1 else "x")
        given = {key: name for key, name in (("x", x), ("y", y)) if name != key}
        data: Data = TABLES["sources"][source].factory(path=str(path), **given)
        why = {"path": PATH, "x": "the array of the inputs", "y": "the array of the targets"}
        return _arrays(data, source, {"path": _relative(path, folder), **given}, why)

    return read


def _arrays(data: Data, source: str, given: Mapping[str, Any], why: Mapping[str, str]) -> Survey:
    sample = tuple(data.x.shape[1:])
    if data.y is not None and data.y.dim() > (1 if data.target == "classes" else 2):
        raise DataError(
            f"{data.name}: y has shape {tuple(data.y.shape)}: init knows targets of one class or one row of numbers a "
            "sample. Write the spec by hand, with a list of layers as model."
        )
    if not sample:
        raise DataError(f"{data.name}: x has one number a sample. Save it in the shape ({len(data)}, 1): x[:, None].")
    if len(sample) == 3 and sample[0] == sample[1] > sample[2] and sample[2] in (1, 3, 4):
        raise DataError(
            f"{data.name}: x has shape {tuple(data.x.shape)}, and torch's layers take images as (N, C, H, W). "
            "Save x.transpose(0, 3, 1, 2)."
        )
    kind = str(data.x.dtype).removeprefix("torch.")
    about = [f"{len(data):,} samples of shape {sample}, {kind}", f"  {_target(data)}"]
    return Survey(data=data, source=source, arguments=given, why=why, about=about)


READERS: dict[str, Callable[[Path, str | None, Path], Survey]] = {
    ".csv": _csv,
    ".tsv": _csv,
    ".npy": _npy,
    ".npz": _archive("npz"),
    ".safetensors": _archive("safetensors"),
    ".txt": _text,
}


def said(text: str) -> str:
    """Return a name for a comment: what could end the comment or hide in it is escaped."""
    return text if text.isprintable() and 0 < len(text) <= MOST_LETTERS else show(text, MOST_LETTERS)
