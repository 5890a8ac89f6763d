"""Rows of the data as splits and folds deal them: how many, in which order, by which column."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import torch
from torch import Tensor

from fitkit.data import Data
from fitkit.errors import listing, nearest, show

PARTS = ("train", "val", "test")
YEAR_FIRST = re.compile(r"0000\W[A-Z]?00?(\W00)?([ T]00:00(:00)?)?")  # 2024-01, 2024-Q1, 2024/01/31: sort as text


def part_sizes(count: int, val: float, test: float) -> dict[str, int]:
    """Return how many of `count` rows each part gets, without the empty ones; `ValueError` if train would be one."""
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


def shuffled(rows: Tensor, seed: int) -> Tensor:  # (N,) -> (N,)
    """Return the rows in an order that follows from the seed alone."""
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))]


def in_order(parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the parts in the order train, val, test, and the rows of each in rising order."""
    return {part: parts[part].sort().values for part in PARTS if part in parts}


def class_quotas(counts: Sequence[int], sizes: Mapping[str, int]) -> dict[str, list[int]]:
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


def without_straddlers(data: Data, parts: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the parts, in order of time, without the text windows that reach into the following part."""
    if data.starts is None or data.window is None:
        return parts
    names = list(parts)
    for part, following in zip(names, names[1:], strict=False):
        border = data.starts[parts[following][0]]
        parts[part] = parts[part][data.starts[parts[part]] + data.window <= border]
        if not len(parts[part]):
            raise ValueError(f"the windows are too long for {part}: none of it ends before {following} begins")
    return parts


def column_of(data: Data, name: str) -> Sequence[Any]:
    """Return a column beside x and y, with a value in each row; `ValueError` says what the data has instead."""
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


def times_of(values: Sequence[Any], name: str) -> list[Any]:
    """Return values that sort in order of time: numbers, or dates in ISO form; `ValueError` if they are neither."""
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


def class_name(data: Data, number: int) -> str:
    """Return what messages call a class."""
    return data.classes[number] if data.classes is not None else str(number)


def _largest_remainder(parts: Sequence[int], whole: int) -> list[int]:
    """Round `parts / whole` down or up so that the sum is kept: the largest remainders go up."""
    rounded = [part // whole for part in parts]
    order = sorted(range(len(parts)), key=lambda i: -(parts[i] % whole))
    for i in order[: sum(parts) // whole - sum(rounded)]:
        rounded[i] += 1
    return rounded


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError
    return value
