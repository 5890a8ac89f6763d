"""The splits that a spec may name: each deals the rows of the data out to train, val and test.

A split is `(data, seed, *, …) -> {"train": rows, "val": rows, "test": rows}` with int64 row numbers in rising order; a
part whose share is 0 is left out. Same data and seed, same split, whatever torch's global generator holds. What a split
cannot do is a `ValueError` that says what to ask for instead.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import torch
from torch import Tensor

from fitkit.data import Data
from fitkit.errors import listing, nearest, show
from fitkit.spec.table import Table
from fitkit.spec.types import Fraction

PARTS = ("train", "val", "test")
MEANT = {"training": "train", "validation": "val", "valid": "val", "dev": "val", "eval": "val", "holdout": "test"}
YEAR_FIRST = re.compile(r"0000\W[A-Z]?00?(\W00)?([ T]00:00(:00)?)?")  # 2024-01, 2024-Q1, 2024/01/31: sort as text
MOST_CLASSES, MOST_WIDE = 20, 30  # how many classes `class_counts` prints, and letters of their names

splits = Table("split")


@splits.register
def random(data: Data, seed: int, *, val: Fraction = 0.2, test: Fraction = 0.0) -> dict[str, Tensor]:
    """Draw val and test at random."""
    if data.window is not None and data.starts is not None and (data.starts.diff() < data.window).any():
        raise ValueError(
            f"windows of {data.window} overlap, so a random split would put the same text into train and val: "
            f"use time, or a stride of {data.window}"
        )
    sizes = _sizes(len(data), val, test)
    return _deal(_shuffled(torch.arange(len(data)), seed), sizes)


@splits.register
def stratified(data: Data, seed: int, *, val: Fraction = 0.2, test: Fraction = 0.0) -> dict[str, Tensor]:
    """Draw val and test at random, each class in the same proportion.

    Val and test get the whole number above or below each class's share, the largest remainders first. A class of two
    rows or more is in train and in val, one of three or more in test too, where these are asked for.
    """
    if data.target != "classes" or data.y is None or data.y.dim() != 1:
        raise ValueError("the target is not one class a row, so there is nothing to stratify by: use random")
    sizes = _sizes(len(data), val, test)
    if data.y.min() < 0:
        raise ValueError(f"a row has the class {int(data.y.min())}, and classes are numbered from 0: use random")
    counts = data.y.bincount().tolist()
    single = [show(_class_name(data, number)) for number, count in enumerate(counts) if count == 1]
    if single:
        raise ValueError(
            f"class {listing(single)} has only 1 row, which cannot be in both train and val: "
            f"use random, or remove {'the class' if len(single) == 1 else 'these classes'}"
        )
    quotas = _quotas(counts, sizes)
    order = _shuffled(torch.arange(len(data)), seed)
    by_class = order[data.y[order].argsort(stable=True)]
    pieces = torch.split(by_class, [quota[number] for number in range(len(counts)) for quota in quotas.values()])
    return _finished({part: torch.cat(pieces[i :: len(quotas)]) for i, part in enumerate(quotas)})


@splits.register(primary="column")
def time(
    data: Data, seed: int, *, column: str | None = None, val: Fraction = 0.2, test: Fraction = 0.0
) -> dict[str, Tensor]:
    """Train on the earliest rows, validate on later ones, test on the last.

    `column` holds numbers or ISO dates; without it the rows are in order of time as they stand. Rows of the same time
    stay together, in the earlier part. Text windows that reach over a border are in no part, so that no target
    character is in two.
    """
    sizes = _sizes(len(data), val, test)
    keys = list(range(len(data))) if column is None else _times(_column(data, column), column)
    order = sorted(range(len(data)), key=keys.__getitem__)
    parts, start = {}, 0
    for part, end in zip(sizes, _running(sizes.values()), strict=True):
        while 0 < end < len(order) and keys[order[end - 1]] == keys[order[end]]:
            end += 1
        if end <= start:
            raise ValueError(
                f'too many rows have the same time in column "{column}": {part} would be empty; ask for larger parts, '
                f"or split by another column"
            )
        parts[part] = torch.tensor(order[start:end])
        start = end
    return _without_straddlers(data, _finished(parts))


@splits.register
def group(data: Data, seed: int, *, column: str, val: Fraction = 0.2, test: Fraction = 0.0) -> dict[str, Tensor]:
    """Keep the rows that share a value of a column together, in one part.

    The largest group is dealt first, each to the part that lacks most rows; groups of one size are shuffled.
    """
    wanted = _sizes(len(data), val, test)
    groups: dict[Any, list[int]] = {}
    for row, value in enumerate(_column(data, column)):
        groups.setdefault(value, []).append(row)
    if len(groups) < len(wanted):
        raise ValueError(
            f'column "{column}" has {len(groups)} group{"s" * (len(groups) > 1)}, too few for {listing(wanted)}'
        )
    members = list(groups.values())
    shuffled = [members[i] for i in _shuffled(torch.arange(len(groups)), seed).tolist()]
    shuffled.sort(key=len, reverse=True)
    dealt: dict[str, list[int]] = {part: [] for part in wanted}
    for i, rows in enumerate(shuffled):
        empty = [part for part in dealt if not dealt[part]]
        open_parts = empty if len(empty) == len(shuffled) - i else dealt  # the last groups fill what has none yet
        part = max(open_parts, key=lambda part: wanted[part] - len(dealt[part]))
        dealt[part] += rows
    return _finished({part: torch.tensor(rows) for part, rows in dealt.items()})


@splits.register
def column(data: Data, seed: int, *, column: str) -> dict[str, Tensor]:
    """Take the split from a column that says train, val or test in each row."""
    dealt: dict[str, list[int]] = {part: [] for part in PARTS}
    for row, word in enumerate(_column(data, column)):
        if word not in dealt:
            right = MEANT.get(str(word).lower()) or nearest(str(word), PARTS)
            raise ValueError(
                f'column "{column}" says {show(word)} in row {row + 1} of the data: '
                + (f'write "{right}"' if right else "write train, val or test")
            )
        dealt[word].append(row)
    if not dealt["train"]:
        raise ValueError(f'column "{column}" says "train" in no row')
    return _finished({part: torch.tensor(rows) for part, rows in dealt.items() if rows})


@splits.register(primary="val")
def given(data: Data, seed: int, *, val: Fraction | None = None) -> dict[str, Tensor]:
    """Take the split that the source brings along.

    Where it brings no val, the share `val` of its train rows (default: 0.2) is drawn at random.
    """
    if data.split is None:
        raise ValueError("this source brings no split along: use random, stratified, time, group or column")
    parts = {part: torch.as_tensor(rows, dtype=torch.int64) for part, rows in data.split.items()}
    strange = [part for part in parts if part not in PARTS]
    if strange or not len(parts.get("train", ())) or not all(map(len, parts.values())):
        raise ValueError(
            f"the source's split has {', '.join(f'{part} ({len(rows)} rows)' for part, rows in parts.items())}: "
            f"it must have train, may have val and test, and each with rows"
        )
    rows = torch.cat(list(parts.values()))
    if rows.min() < 0 or rows.max() >= len(data) or len(torch.unique(rows)) < len(rows):
        raise ValueError(f"the source's split names a row twice, or a row outside 0 to {len(data) - 1}")
    if "val" in parts:
        if val is not None:
            raise ValueError("the source brings its own val along: leave val out")
        return _finished(parts)
    sizes = _sizes(len(parts["train"]), 0.2 if val is None else val, 0.0)
    carved = _deal(_shuffled(parts["train"], seed), sizes)
    return _finished({**carved, **{part: parts[part] for part in parts if part != "train"}})


def default_split(data: Data) -> str:
    """Return the name of the split for data whose spec asks for none."""
    if data.split is not None:
        return "given"
    if data.window is not None:
        return "time"
    if data.target == "classes" and data.y is not None and data.y.dim() == 1 and data.y.min() >= 0:
        counts = data.y.bincount()
        if (counts != 1).all():
            return "stratified"
    return "random"


def class_counts(data: Data, split: Mapping[str, Tensor]) -> str:
    """Return a table to print: how many rows each part has of each class, of 20 classes at most, and in all."""
    rows: list[list[str]] = []
    numbers = 0
    if data.target == "classes" and data.y is not None and data.y.dim() == 1 and data.y.min() >= 0:
        numbers = len(data.classes) if data.classes is not None else int(data.y.max()) + 1
        counts = [data.y[part].bincount(minlength=numbers).tolist() for part in split.values()]
        for number in range(min(numbers, MOST_CLASSES)):
            rows.append([_class_name(data, number)[:MOST_WIDE], *(str(count[number]) for count in counts)])
    table = [["class" if numbers else "", *split], *rows, ["all", *(str(len(part)) for part in split.values())]]
    widths = [max(map(len, cells)) for cells in zip(*table, strict=True)]
    lines = [
        "  ".join([line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))])
        for line in table
    ]
    if numbers > MOST_CLASSES:
        lines.insert(-1, f"… and {numbers - MOST_CLASSES} more classes")
    return "\n".join(lines)


def _sizes(count: int, val: float, test: float) -> dict[str, int]:
    if val + test >= 1:
        raise ValueError(f"val {val:g} and test {test:g} leave no rows for training: they must add up to less than 1")
    sizes = {"val": math.floor(count * val + 0.5), "test": math.floor(count * test + 0.5)}
    sizes = {"train": count - sum(sizes.values()), **sizes}
    for part, share in (("train", 1 - val - test), ("val", val), ("test", test)):
        if share > 0 and sizes[part] < 1:
            raise ValueError(
                f"{count} row{'s' * (count != 1)} with val {val:g} and test {test:g} leave none for {part}: "
                f"ask for other shares, or take more data"
            )
    return {part: size for part, size in sizes.items() if size}


def _quotas(counts: Sequence[int], sizes: Mapping[str, int]) -> dict[str, list[int]]:
    """Return how many rows of each class each part gets; train's is what the others leave."""
    total = sum(counts)
    quotas = {part: _largest_remainder([count * size for count in counts], total) for part, size in sizes.items()}
    later = [part for part in sizes if part != "train"]
    for number, count in enumerate(counts):
        for i, part in enumerate(later):
            if count >= i + 2:
                quotas[part][number] = max(quotas[part][number], 1)
        while count and sum(quotas[part][number] for part in later) >= count:
            fullest = max(reversed(later), key=lambda part: quotas[part][number])
            quotas[fullest][number] -= 1
        quotas["train"][number] = count - sum(quotas[part][number] for part in later)
    return quotas


def _largest_remainder(parts: Sequence[int], whole: int) -> list[int]:
    """Round `parts / whole` down or up so that the sum is kept: the largest remainders go up."""
    rounded = [part // whole for part in parts]
    order = sorted(range(len(parts)), key=lambda i: -(parts[i] % whole))
    for i in order[: sum(parts) // whole - sum(rounded)]:
        rounded[i] += 1
    return rounded


def _shuffled(rows: Tensor, seed: int) -> Tensor:  # (N,) -> (N,)
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))]


def _deal(rows: Tensor, sizes: Mapping[str, int]) -> dict[str, Tensor]:
    return _finished(dict(zip(sizes, torch.split(rows, list(sizes.values())), strict=True)))


def _finished(parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {part: parts[part].sort().values for part in PARTS if part in parts}


def _running(sizes: Iterable[int]) -> list[int]:
    ends: list[int] = []
    for size in sizes:
        ends.append(size + (ends[-1] if ends else 0))
    return ends


def _without_straddlers(data: Data, parts: dict[str, Tensor]) -> dict[str, Tensor]:
    if data.starts is None or data.window is None:
        return parts
    names = list(parts)
    for part, following in zip(names, names[1:], strict=False):
        border = data.starts[parts[following][0]]
        parts[part] = parts[part][data.starts[parts[part]] + data.window <= border]
        if not len(parts[part]):
            raise ValueError(f"the windows are too long for {part}: none of it ends before {following} begins")
    return parts


def _column(data: Data, name: str) -> Sequence[Any]:
    if name not in data.columns:
        near = nearest(name, data.columns)
        meant = f"; did you mean {show(near)}?" if near else ":"
        held = f"it has {listing(data.columns)}" if data.columns else f"{data.name} holds only x and y"
        raise ValueError(f"the data has no column {show(name)}{meant} {held}")
    values = data.columns[name]
    for row, value in enumerate(values):
        if value is None or value == "" or value != value:
            raise ValueError(f'column "{name}" is empty in row {row + 1} of the data: fill it in, or leave the row out')
    return values


def _times(values: Sequence[Any], name: str) -> list[Any]:
    texts = [str(value) for value in values]
    for read in (_finite, datetime.fromisoformat):
        try:
            times: list[Any] = [read(text) for text in texts]
            sorted(times)  # times with and without a zone have no order
            return times
        except (TypeError, ValueError):
            continue
    shapes = {re.sub(r"\d", "0", text) for text in texts}
    if len(shapes) == 1 and YEAR_FIRST.fullmatch(shapes.pop()):
        return texts
    strange = next((text for text in texts if not re.match(r"\d{4}-\d\d-\d\d", text)), texts[0])
    raise ValueError(
        f'column "{name}" cannot be put in order of time, with values such as {show(strange)}: '
        f"write numbers, or dates like 2024-01-31, all of one kind"
    )


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError
    return value


def _class_name(data: Data, number: int) -> str:
    return data.classes[number] if data.classes is not None else str(number)
