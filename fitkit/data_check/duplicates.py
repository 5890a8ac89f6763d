"""Samples that are the same: across parts, where they flatter the validation, and with another target.

A row has a 64-bit code; rows of one code are compared byte by byte, so that no row is called a duplicate by accident.

Rows of few coarse columns (a sex, a class, an age) are the same by chance, and that is no leak. How often chance makes
two rows the same is estimated from the columns' own repetitions: two rows agree in column j with probability p_j, and
in all of them with the root of the product of the p_j (columns depend on each other, so the product itself would be
too small). What chance explains is a note, unless rows of a part are found in train far more often than train's own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from fitkit.data_check.columns import table_of
from fitkit.data_check.finding import MOST_NAMED, Finding, Part, Samples, kept, pair, several, spread_out
from fitkit.errors import show

CHUNK = 1 << 22  # bytes of x that are gathered at a time
ENOUGH, FEW = 4.0, 5  # times as many as chance explains; standard deviations above train's own share, and rows
SAMPLED, MOST_COLUMNS = 1000, 256  # rows and columns from which chance is estimated
DIFFERENT = 0.5  # values that differ by more than this share of their standard deviation contradict each other
BY_CHANCE = "The columns are so few and coarse that chance can make rows the same; look at them if it should not."


@dataclass(frozen=True)
class Twins:
    """The rows that stand more than once: place i is position `position[i]` of part `part[i]`, in group `group[i]`.

    Groups are numbered from 0; their members stand side by side, in the order of the parts.
    """

    part: Tensor
    position: Tensor
    group: Tensor


def find_twins(parts: Sequence[Part]) -> Twins:
    """Return every row of these parts that has the same bytes as another; -0.0 counts as 0.0."""
    owner = torch.repeat_interleave(torch.arange(len(parts)), torch.tensor([len(part) for part in parts]))
    position = torch.cat([torch.arange(len(part)) for part in parts])
    places, alike = _repeated(torch.cat([_codes(part) for part in parts]))
    sure, count = torch.empty_like(alike), 0
    left = torch.arange(len(places))
    while len(left):  # once, unless different rows have one code: then those that differ from the first go on
        group = torch.unique_consecutive(alike[left], return_inverse=True)[1]
        same = _same(parts, owner, position, places[left], places[left[_starts(group)][group]])
        sure[left[same]] = group[same] + count
        count, left = count + int(group[-1]) + 1, left[~same]
    again, group = _repeated(sure)
    return Twins(owner[places[again]], position[places[again]], group)


def _starts(groups: Tensor) -> Tensor:
    """Return where each run of equal numbers begins."""
    return torch.cat([torch.ones(1, dtype=torch.bool), groups[1:] != groups[:-1]]).nonzero().flatten()


def _repeated(codes: Tensor) -> tuple[Tensor, Tensor]:  # (n,) -> (m,), (m,)
    """Return the places of all numbers that occur twice or more, equal ones side by side, and groups from 0."""
    ordered, order = torch.sort(codes, stable=True)
    same = ordered[1:] == ordered[:-1]
    no = torch.zeros(min(1, len(codes)), dtype=torch.bool)
    member = torch.cat([no, same]) | torch.cat([same, no])
    return order[member], torch.unique_consecutive(ordered[member], return_inverse=True)[1]


def _codes(part: Part) -> Tensor:  # -> (n,) int64 on the CPU
    """Return a 64-bit code of each row: equal ones have equal codes, others seldom."""
    if not part.x[0].numel():
        return torch.arange(len(part))
    size = part.x[0].numel() * part.x.element_size()
    word = next(kind for kind in (torch.int64, torch.int32, torch.int16, torch.uint8) if size % kind.itemsize == 0)
    generator = torch.Generator().manual_seed(0)
    factors = torch.randint(-(2**62), 2**62, (size // word.itemsize,), generator=generator).to(part.x.device) * 2 + 1
    codes = []
    for start in range(0, len(part), step := max(1, CHUNK // size)):
        words = _plain(part.take(slice(start, start + step))).view(word).long()
        words ^= words >> 29  # or the upper bits, which tell floats apart, would be multiplied out of the word
        codes.append(words.mul_(factors).sum(1))
    return torch.cat(codes).cpu()


def _plain(x: Tensor) -> Tensor:  # (n, ...) -> (n, d)
    """Flatten the samples of a copy, and write zeros in one way."""
    x = x.contiguous().view(len(x), -1)
    return x.add_(0.0) if x.is_floating_point() else x


def _same(parts: Sequence[Part], owner: Tensor, position: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """Tell for pairs of places whether they hold the same bytes."""
    size = parts[0].x[0].numel() * parts[0].x.element_size()
    found = []
    for start in range(0, len(one), step := max(1, CHUNK // max(1, size))):
        pair = [_gather(parts, owner, position, places[start : start + step]) for places in (one, other)]
        found.append((pair[0] == pair[1]).all(1))
    return torch.cat(found)


def _gather(parts: Sequence[Part], owner: Tensor, position: Tensor, places: Tensor) -> Tensor:  # -> (n, bytes)
    rows: Tensor | None = None
    for number, part in enumerate(parts):
        mine = (owner[places] == number).nonzero().flatten()
        if len(mine):
            taken = _plain(part.take(position[places[mine]])).view(torch.uint8).cpu()
            rows = taken.new_empty(len(places), taken.shape[1]) if rows is None else rows
            rows[mine] = taken
    assert rows is not None
    return rows


def check_duplicates(samples: Samples, twins: Twins) -> list[Finding]:
    """Find rows of a part that another part has too, and rows that are the same but for their target."""
    parts = list(samples.parts.values())
    if not len(twins.group):
        return []
    chance = _chance(samples, twins)
    found = [_shared(parts, twins, *pair, chance) for pair in combinations(range(len(parts)), 2)]
    return [finding for finding in (*found, _conflict(samples, twins, chance)) if finding is not None]


def _chance(samples: Samples, twins: Twins) -> float:
    """Return the probability that two different samples of these data are the same by chance."""
    part = next(iter(samples.parts.values()))
    distinct = torch.ones(len(part), dtype=torch.bool)
    distinct[twins.position[(twins.part == 0) & _again(twins.group)]] = False
    positions = spread_out(distinct.nonzero().flatten(), SAMPLED)
    table = table_of(samples, part.take(positions))[0]
    columns = spread_out(torch.arange(table.shape[1]), MOST_COLUMNS)
    pairs, bits = len(table) * (len(table) - 1) / 2, 0.0
    for column in columns.tolist():
        bits += math.log2((pairs + 1) / (_equal_pairs(table[:, column]) + 1))
    return float(2 ** (-bits * table.shape[1] / len(columns) / 2))


def _equal_pairs(numbers: Tensor) -> int:
    """Count the pairs of equal numbers."""
    counts = torch.unique(numbers, return_counts=True)[1]
    return int((counts * (counts - 1)).sum()) // 2


def _again(group: Tensor) -> Tensor:
    """Tell which members are not the first of their group."""
    again = torch.ones(len(group), dtype=torch.bool)
    again[_starts(group)] = False
    return again


def _shared(parts: Sequence[Part], twins: Twins, one: int, other: int, chance: float) -> Finding | None:
    """Tell which rows of part `other` stand in part `one` too."""
    count = int(twins.group[-1]) + 1
    mine = (twins.part == one).nonzero().flatten()
    members = twins.group[mine].bincount(minlength=count)
    theirs = ((twins.part == other) & (members[twins.group] > 0)).nonzero().flatten()
    if not len(theirs):
        return None
    first = torch.zeros(count, dtype=torch.int64)
    first[twins.group[mine.flip(0)]] = twins.position[mine.flip(0)]  # of several the first, which is written last
    rows, twin = parts[other].numbers(twins.position[theirs]), parts[one].numbers(first[twins.group[theirs]])
    number, size, name, base = len(theirs), len(parts[other]), parts[other].name, parts[one].name
    repeated = int((members[twins.group[mine]] > 1).sum()) / len(parts[one])
    deviation = (max(repeated, 1 / size) / size) ** 0.5
    copied = number >= FEW and number / size - repeated > ENOUGH * deviation
    by_chance = not copied and number <= ENOUGH * chance * size * len(parts[one])
    order = rows.argsort()[:MOST_NAMED].tolist()
    pairs = [pair(parts[other], int(rows[i]), "=", parts[one], int(twin[i])) for i in order]
    return Finding(
        name="duplicates",
        level="note" if by_chance else "warning",
        sentence=f"{number:,} of {size:,} rows of {name} are duplicates of rows of {base} "
        f"({several(pairs, number)}{parts[one].counted})",
        advice=BY_CHANCE
        if by_chance
        else f"{name} then looks better than it is: remove repeated rows before the split, or split by group.",
        rows={name: kept(rows), base: kept(twin)},
    )


def _conflict(samples: Samples, twins: Twins, chance: float) -> Finding | None:
    """Tell which rows are the same but for their target."""
    parts = list(samples.parts.values())
    y = torch.cat([part.targets().double().reshape(len(part), -1) for part in parts])
    starts = torch.tensor([0, *(len(part) for part in parts)]).cumsum(0)
    mine = y[starts[twins.part] + twins.position]
    high = mine.new_full((int(twins.group[-1]) + 1, y.shape[1]), -torch.inf)
    group = twins.group[:, None].expand_as(mine)
    low, high = (-high).scatter_reduce(0, group, mine, "amin"), high.scatter_reduce(0, group, mine, "amax")
    differ = (high - low > (DIFFERENT * y.std(0, correction=0) if samples.target == "values" else 0)).any(1)
    members = differ[twins.group].nonzero().flatten()
    if not len(members):
        return None
    total, groups = len(y), int(differ.sum())
    pairs = [_contradiction(samples, twins, mine, int(group)) for group in differ.nonzero().flatten()[:MOST_NAMED]]
    by_chance = groups <= ENOUGH * chance * total * (total - 1) / 2
    rows = {}
    for number, part in enumerate(parts):
        here = members[twins.part[members] == number]
        if len(here):
            rows[part.name] = kept(part.numbers(twins.position[here]))
    return Finding(
        name="label conflicts",
        level="note" if by_chance else "warning",
        sentence=f"{len(members):,} rows have the same x as another row and another target "
        f"({several(pairs, groups)}{parts[0].counted})",
        advice=BY_CHANCE if by_chance else "Only one of them can be right: look at these rows, and mend their targets.",
        rows=rows,
    )


def _contradiction(samples: Samples, twins: Twins, targets: Tensor, group: int) -> str:
    """Name two rows of a group whose targets (M, …) differ: the first, and the first or else the farthest other."""
    parts = list(samples.parts.values())
    places = (twins.group == group).nonzero().flatten()
    away = (targets[places] - targets[places[:1]]).abs().amax(1)
    chosen = torch.cat([places[:1], places[away > 0][:1], places[away.argmax()][None]])  # a group may be all the data
    said: list[str] = []
    for place in chosen.tolist():
        part, position = parts[int(twins.part[place])], twins.position[place : place + 1]
        target = part.targets(position)[0]
        word = f"{float(target.flatten()[0]):.4g}"
        if samples.target == "classes" and target.ndim == 0:
            word = show(samples.class_name(int(target)))
        if not said or (len(said) == 1 and word not in said[0]):
            said.append(f"{part.place(int(part.numbers(position)), bool(said))} is {word}")
    return ", ".join(said)
