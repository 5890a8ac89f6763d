"""The splits that a spec may name: each deals the rows of the data out to train, val and test.

A split is `(data, seed, *, …) -> {"train": rows, "val": rows, "test": rows}` with int64 row numbers in rising order; a
part whose share is 0 is left out. Same data and seed, same split, whatever torch's global generator holds. What a split
cannot do is a `ValueError` that says what to ask for instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from fitkit.data import Data
from fitkit.errors import listing, nearest, show
from fitkit.parts.rows import (
    PARTS,
    class_name,
    class_quotas,
    column_of,
    in_order,
    part_sizes,
    shuffled,
    times_of,
    without_straddlers,
)
from fitkit.spec.table import Table
from fitkit.spec.types import Fraction

MEANT = {"training": "train", "validation": "val", "valid": "val", "dev": "val", "eval": "val", "holdout": "test"}
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
    sizes = part_sizes(len(data), val, test)
    return _deal(shuffled(torch.arange(len(data)), seed), sizes)


@splits.register
def stratified(data: Data, seed: int, *, val: Fraction = 0.2, test: Fraction = 0.0) -> dict[str, Tensor]:
    """Draw val and test at random, each class in the same proportion.

    Val and test get the whole number above or below each class's share, the largest remainders first. A class of two
    rows or more is in train and in val, one of three or more in test too, where these are asked for.
    """
    if data.target != "classes" or data.y is None or data.y.dim() != 1:
        raise ValueError("the target is not one class a row, so there is nothing to stratify by: use random")
    sizes = part_sizes(len(data), val, test)
    if data.y.min() < 0:
        raise ValueError(f"a row has the class {int(data.y.min())}, and classes are numbered from 0: use random")
    counts = data.y.bincount().tolist()
    single = [show(class_name(data, number)) for number, count in enumerate(counts) if count == 1]
    if single:
        raise ValueError(
            f"class {listing(single)} has only 1 row, which cannot be in both train and val: "
            f"use random, or remove {'the class' if len(single) == 1 else 'these classes'}"
        )
    quotas = class_quotas(counts, sizes)
    order = shuffled(torch.arange(len(data)), seed)
    by_class = order[data.y[order].argsort(stable=True)]
    pieces = torch.split(by_class, [quota[number] for number in range(len(counts)) for quota in quotas.values()])
    return in_order({part: torch.cat(pieces[i :: len(quotas)]) for i, part in enumerate(quotas)})


@splits.register(primary="column")
def time(
    data: Data, seed: int, *, column: str | None = None, val: Fraction = 0.2, test: Fraction = 0.0
) -> dict[str, Tensor]:
    """Train on the earliest rows, validate on later ones, test on the last.

    `column` holds numbers or ISO dates; without it the rows are in order of time as they stand. Rows of the same time
    stay together, in the earlier part. Text windows that reach over a border are in no part, so that no target
    character is in two.
    """
    sizes = part_sizes(len(data), val, test)
    keys = list(range(len(data))) if column is None else times_of(column_of(data, column), column)
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
    return without_straddlers(data, in_order(parts))


@splits.register
def group(data: Data, seed: int, *, column: str, val: Fraction = 0.2, test: Fraction = 0.0) -> dict[str, Tensor]:
    """Keep the rows that share a value of a column together, in one part.

    The largest group is dealt first, each to the part that lacks most rows; groups of one size are shuffled.
    """
    wanted = part_sizes(len(data), val, test)
    groups: dict[Any, list[int]] = {}
    for row, value in enumerate(column_of(data, column)):
        groups.setdefault(value, []).append(row)
    if len(groups) < len(wanted):
        raise ValueError(
            f'column "{column}" has {len(groups)} group{"s" * (len(groups) > 1)}, too few for {listing(wanted)}'
        )
    members = list(groups.values())
    drawn = [members[i] for i in shuffled(torch.arange(len(groups)), seed).tolist()]
    drawn.sort(key=len, reverse=True)
    dealt: dict[str, list[int]] = {part: [] for part in wanted}
    for i, rows in enumerate(drawn):
        empty = [part for part in dealt if not dealt[part]]
        open_parts = empty if len(empty) == len(drawn) - i else dealt  # the last groups fill what has none yet
        part = max(open_parts, key=lambda part: wanted[part] - len(dealt[part]))
        dealt[part] += rows
    return in_order({part: torch.tensor(rows) for part, rows in dealt.items()})


@splits.register
def column(data: Data, seed: int, *, column: str) -> dict[str, Tensor]:
    """Take the split from a column that says train, val or test in each row."""
    dealt: dict[str, list[int]] = {part: [] for part in PARTS}
    for row, word in enumerate(column_of(data, column)):
        if word not in dealt:
            right = MEANT.get(str(word).lower()) or nearest(str(word), PARTS)
            raise ValueError(
                f'column "{column}" says {show(word)} in row {row + 1} of the data: '
                + (f'write "{right}"' if right else "write train, val or test")
            )
        dealt[word].append(row)
    if not dealt["train"]:
        raise ValueError(f'column "{column}" says "train" in no row')
    return in_order({part: torch.tensor(rows) for part, rows in dealt.items() if rows})


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
        return in_order(parts)
    sizes = part_sizes(len(parts["train"]), 0.2 if val is None else val, 0.0)
    carved = _deal(shuffled(parts["train"], seed), sizes)
    return in_order({**carved, **{part: parts[part] for part in parts if part != "train"}})


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
            rows.append([class_name(data, number)[:MOST_WIDE], *(str(count[number]) for count in counts)])
    table = [["class" if numbers else "", *split], *rows, ["all", *(str(len(part)) for part in split.values())]]
    widths = [max(map(len, cells)) for cells in zip(*table, strict=True)]
    lines = [
        "  ".join([line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))])
        for line in table
    ]
    if numbers > MOST_CLASSES:
        lines.insert(-1, f"… and {numbers - MOST_CLASSES} more classes")
    return "\n".join(lines)


def _deal(rows: Tensor, sizes: Mapping[str, int]) -> dict[str, Tensor]:
    return in_order(dict(zip(sizes, torch.split(rows, list(sizes.values())), strict=True)))


def _running(sizes: Iterable[int]) -> list[int]:
    ends: list[int] = []
    for size in sizes:
        ends.append(size + (ends[-1] if ends else 0))
    return ends
