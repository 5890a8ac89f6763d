"""The splits of a cross-validation: each deals the rows out k times, and a run is one of these folds.

They are splits like any other, `(data, seed, *, …, fold) -> {"train": rows, "val": rows, "test": rows}`: a spec that
names a fold is the run of that fold, and one that names none asks for all of them, one after the other. The fact
`folds` names the arguments whose product is their number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from torch import Tensor

from fitkit.data import Data
from fitkit.errors import show
from fitkit.parts.rows import (
    class_name,
    class_quotas,
    column_of,
    in_order,
    part_sizes,
    times_of,
    without_straddlers,
)
from fitkit.spec.table import Table
from fitkit.spec.types import Fraction, NonNegativeInt, PositiveInt, Range

FoldCount = Annotated[int, Range(low=2)]
MOST_CLASSES, MOST_WIDE = 10, 20  # how many classes `fold_counts` prints, and letters of their names
MOST_FOLDS = 10_000  # each is a run of its own
DIGITS = 12  # to which squared shares are compared: rounding errors of sums choose nothing

folds = Table("split")


@folds.register(primary="k", folds=("k", "repeats"))
def kfold(
    data: Data,
    seed: int,
    *,
    k: FoldCount = 5,
    stratified: bool | None = None,
    repeats: PositiveInt = 1,
    groups: str | None = None,
    test: Fraction = 0.0,
    fold: PositiveInt | None = None,
) -> dict[str, Tensor]:
    """Cross-validate: k runs, each on another fold of the rows.

    A run validates on one fold and trains on the others, so that every row is in val exactly once in each of the
    `repeats`, which deal anew; `test` is the share that no run sees.
    `stratified` deals each class evenly, to within one row (default: where the target is one class a row). Rows that
    share a value of the column `groups` stay together; then the groups that weigh most are dealt first, each to where
    it keeps the folds most alike in classes and size. `fold` is one of the folds, from 1 to k times repeats, to be run
    alone (default: all of them).
    """
    if data.window is not None and data.starts is not None and (data.starts.diff() < data.window).any():
        raise ValueError(
            f"windows of {data.window} overlap, so folds would share text: use time_series, or a stride of "
            f"{data.window}"
        )
    number = _number(fold, k * repeats)
    classes = _classes(data, stratified)
    members = None if groups is None else _members(data, groups)
    generator = torch.Generator().manual_seed(seed)
    rows, held = torch.arange(len(data)), {}
    if test:
        order = rows[torch.randperm(len(rows), generator=generator)]
        rows, held["test"] = _hold_out(order, classes, members, test)
    _refuse_few(data, rows, k, classes, None if members is None else members[rows], groups)
    dealt: list[Tensor] = []
    for repeat in range(repeats):
        order = rows[torch.randperm(len(rows), generator=generator)]
        if members is None:
            by_class = order[classes[order].argsort(stable=True)]
            dealt += [by_class[i::k] for i in range(k)]  # one to each in turn: no count differs by more than a row
        else:
            blur = torch.rand(int(members.max()) + 1, generator=generator) + 0.5 if repeat else None
            dealt += _dealt_groups(order, [1.0] * k, classes, members, blur)
    if members is not None:
        _refuse_same(dealt, k, members)
    train = torch.cat([part for i, part in enumerate(dealt) if i // k == number // k and i != number])
    return in_order({"train": train, "val": dealt[number], **held})


@folds.register(primary="k", folds=("k",))
def time_series(
    data: Data,
    seed: int,
    *,
    k: FoldCount = 5,
    column: str | None = None,
    gap: NonNegativeInt = 0,
    test: Fraction = 0.0,
    fold: PositiveInt | None = None,
) -> dict[str, Tensor]:
    """Cross-validate over time: k runs, each on a longer past.

    The rows are cut into k + 1 stretches of time, the first with what is left over; fold i trains on the first i of
    them and validates on the next, as scikit-learn's TimeSeriesSplit does. `column` holds numbers or ISO dates; without
    it the rows are in order of time as they stand. Rows of the same time stay together, in the earlier stretch. `gap`
    rows before val are left out of train, and `test` is the share of the last rows, which no fold sees. `fold` is one
    of the folds, from 1 to k, to be run alone (default: all of them).
    """
    number = _number(fold, k)
    keys = list(range(len(data))) if column is None else times_of(column_of(data, column), column)
    order = sorted(range(len(data)), key=keys.__getitem__)
    end = _border(part_sizes(len(data), 0.0, test)["train"], order, keys)
    size = end // (k + 1)
    if size == 0 or (test and end == len(order)):
        raise ValueError(
            f"{len(data)} rows are too few for {k} folds" + (f" and a test of {test:g}" if test else "") + ": "
            "each needs rows to train on and later ones to validate on; take a smaller k"
        )
    borders = [*(_border(end - (k - i) * size, order, keys) for i in range(k)), end]
    for i, (start, stop) in enumerate(zip(borders, borders[1:], strict=False), 1):
        if start >= stop:
            raise ValueError(f'too many rows have the same time in column "{column}": fold {i} would be without val')
    if gap >= borders[0]:
        raise ValueError(f"a gap of {gap} leaves fold 1 no rows to train on: {borders[0]} rows come before its val")
    _refuse_one_class(data, order[: borders[0] - gap], order)
    train, val = order[: borders[number] - gap], order[borders[number] : borders[number + 1]]
    parts = {"train": torch.tensor(train), "val": torch.tensor(val)}
    if test:
        parts["test"] = torch.tensor(order[end:])
    return without_straddlers(data, in_order(parts))


def fold_counts(data: Data, parts: Sequence[Mapping[str, Tensor]]) -> str:
    """Return a table to print: the rows of each fold's parts, and of each class in its val, of 10 classes at most."""
    names: list[str] = []
    if _may_stratify(data):
        assert data.y is not None
        present = data.y.bincount()
        names = [class_name(data, number)[:MOST_WIDE] for number in range(len(present))][:MOST_CLASSES]
    table = [["fold", *parts[0], *(f"val {name}" for name in names)]]
    for number, part in enumerate(parts, 1):
        counts = (
            data.y.cpu()[part["val"]].bincount(minlength=len(names)).tolist() if data.y is not None and names else []
        )
        table.append([str(number), *(str(len(rows)) for rows in part.values()), *map(str, counts[: len(names)])])
    widths = [max(map(len, cells)) for cells in zip(*table, strict=True)]
    return "\n".join("  ".join(cell.rjust(w) for cell, w in zip(line, widths, strict=True)) for line in table)


def _number(fold: int | None, count: int) -> int:
    """Return which fold is asked for, from 0."""
    if count > MOST_FOLDS:
        raise ValueError(f"{count:,} folds are more than the {MOST_FOLDS:,} that are dealt: take smaller numbers")
    if fold is not None and fold > count:
        raise ValueError(f"there is no fold {fold}: there are {count}, numbered from 1")
    return (fold or 1) - 1


def _may_stratify(data: Data) -> bool:
    return data.target == "classes" and data.y is not None and data.y.dim() == 1 and bool(data.y.min() >= 0)


def _classes(data: Data, stratified: bool | None) -> Tensor:  # (N,) int64, all 0 where nothing is to be stratified
    may = _may_stratify(data)
    if stratified and not may:
        raise ValueError("the target is not one class a row, so there is nothing to stratify by: leave stratified out")
    if data.y is None or not may or stratified is False:
        return torch.zeros(len(data), dtype=torch.int64)
    return data.y.cpu().long()


def _members(data: Data, column: str) -> Tensor:  # (N,) int64: the number of each row's group
    numbers: dict[Any, int] = {}
    return torch.tensor([numbers.setdefault(value, len(numbers)) for value in column_of(data, column)])


def _count(numbers: Tensor) -> int:
    """Return how many different numbers there are."""
    return int((numbers.bincount() > 0).sum())


def _refuse_few(data: Data, rows: Tensor, k: int, classes: Tensor, members: Tensor | None, column: str | None) -> None:
    """Raise ValueError for more folds than there are rows, groups, or rows of the smallest class."""
    left = " outside test" if len(rows) < len(data) else ""
    if len(rows) < k:
        raise ValueError(f"{len(rows)} rows{left} are too few for {k} folds: take k of at most {len(rows)}")
    if members is not None and (count := _count(members)) < k:
        advice = f"take k of at most {count}" if count > 1 else "split by another column"
        raise ValueError(
            f'column "{column}" has {count} group{"s" * (count > 1)}{left}, too few for {k} folds: {advice}'
        )
    counts = classes[rows].bincount()
    fewest, number = min((count, number) for number, count in enumerate(counts.tolist()) if count)
    if fewest < k:
        smaller = f"take k of at most {fewest}, or " if fewest > 1 else ""
        raise ValueError(
            f"class {show(class_name(data, number))} has only {fewest} row{'s' * (fewest > 1)}{left}, too few for {k} "
            f"stratified folds: {smaller}write stratified: false"
        )


def _hold_out(order: Tensor, classes: Tensor, members: Tensor | None, share: float) -> tuple[Tensor, Tensor]:
    """Return the rows for folds and those for test, in the proportion and by the groups that folds are dealt with."""
    sizes = part_sizes(len(order), 0.0, share)
    if members is not None:
        if _count(members) < 3:
            raise ValueError("there are too few groups for folds and a test part: leave test out")
        rest, test = _dealt_groups(order, [1 - share, share], classes, members)
        return rest, test
    by_class = order[classes[order].argsort(stable=True)]
    quotas = class_quotas(classes.bincount().tolist(), sizes)
    pieces = torch.split(by_class, [count for pair in zip(*quotas.values(), strict=True) for count in pair])
    return torch.cat(pieces[0::2]), torch.cat(pieces[1::2])


def _dealt_groups(
    order: Tensor, weights: Sequence[float], classes: Tensor, members: Tensor, blur: Tensor | None = None
) -> list[Tensor]:
    """Deal whole groups out to as many bins as there are weights, with shares of each class in their proportion.

    Greedy: a group goes where the sum of squared shares of the classes, over the bins' weights, grows least, which for
    equal weights is where their variance does; the groups with the largest squared shares go first, those of one size
    in the order of their first rows. `blur` (G,) are factors of their sizes that change this order, so that a repeat
    deals otherwise. The last groups fill the bins that have none yet.
    """
    group, number = members[order], int(members.max()) + 1
    counts = torch.zeros(number, int(classes.max()) + 1, dtype=torch.float64)  # (G, C)
    counts.index_put_((group, classes[order]), torch.ones(1, dtype=torch.float64), accumulate=True)
    shares = counts / counts.sum(0).clamp(min=1)
    own, sizes = shares.square().sum(1), counts.sum(1).tolist()
    size = own if blur is None else own * blur
    first = torch.full((number,), len(order)).scatter_reduce(0, group, torch.arange(len(order)), "amin")
    present = [i for i in range(number) if sizes[i]]
    ranking = sorted(present, key=lambda i: (-round(float(size[i]), DIGITS), int(first[i])))
    weight, bins = torch.tensor(weights, dtype=torch.float64), range(len(weights))
    held = torch.zeros(len(weights), shares.shape[1], dtype=torch.float64)
    rows = [0.0 for _ in bins]
    found = torch.empty(number, dtype=torch.int64)
    for place, i in enumerate(ranking):
        cost = ((2 * held @ shares[i] + own[i]) / weight).tolist()
        empty = [bin for bin in bins if not rows[bin]]
        open_bins = empty if len(empty) == len(ranking) - place else bins
        chosen = min(open_bins, key=lambda bin: (round(cost[bin], DIGITS), rows[bin] / weights[bin]))  # noqa: B023
        found[i] = chosen
        held[chosen] += shares[i]
        rows[chosen] += sizes[i]
    return [order[found[group] == bin] for bin in bins]


def _refuse_same(dealt: Sequence[Tensor], k: int, members: Tensor) -> None:
    """Raise ValueError where two repeats have the same folds, because the groups can hardly be dealt otherwise."""
    seen: dict[frozenset[frozenset[int]], int] = {}
    for start in range(0, len(dealt), k):
        deal = frozenset(frozenset(members[rows].tolist()) for rows in dealt[start : start + k])
        before, repeat = seen.setdefault(deal, start // k + 1), start // k + 1
        if before != repeat:
            raise ValueError(
                f"repeat {repeat} has the same folds as repeat {before}: these groups can hardly be dealt otherwise; "
                f"leave repeats out"
            )


def _border(place: int, order: Sequence[int], keys: Sequence[Any]) -> int:
    """Return the first place from `place` on where a later time begins."""
    while 0 < place < len(order) and keys[order[place - 1]] == keys[order[place]]:
        place += 1
    return place


def _refuse_one_class(data: Data, first: Sequence[int], everything: Sequence[int]) -> None:
    """Raise ValueError where the rows before the first val are of one class: then rows stand by class, not by time."""
    if not _may_stratify(data):
        return
    assert data.y is not None
    y = data.y.cpu()
    if _count(y[list(first)]) == 1 < _count(y[list(everything)]):
        name = show(class_name(data, int(y[first[0]])))
        raise ValueError(
            f"fold 1 would train on class {name} alone: are the rows in order of time? Name the column that holds "
            f"their times, or use kfold"
        )
