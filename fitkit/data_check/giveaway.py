"""A column that gives the target away: it alone predicts it, because it was made from it or is known only afterwards.

Classes: each row takes the class of the row whose value in that column is nearest (leave-one-out), which finds copies,
codes, and functions of any shape; the mean over classes of the share of hits has to reach 99.8 %, and one row in a
thousand may be wrong. Values: the rank correlation has to reach 0.996. Real measurements stay below: the best of
breast_cancer's 30 columns hits 91 %, the best of iris's four 95 %. Where more than a quarter of all columns reaches
97 %, the task itself is easy (clusters far apart, the last values of a slow series), and no column is told.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from fitkit.data_check.columns import FEWEST_ROWS, table_of
from fitkit.data_check.finding import Finding, Part, Samples, several
from fitkit.errors import show

FIRST_LOOK, SECOND_LOOK = 256, 4096  # rows of train: all columns in the first, what is left in the second
MOST_NUMBERS = 1 << 20  # rows times columns of the first look
HITS, WRONG, FIRST_HITS = 0.998, 0.001, 0.8
CORRELATION, IN_TIME = 0.996, 0.9999  # the last value of a slow series is no leak
EASY, MOST_SHARE = 0.97, 0.25  # what many columns reach where the task is easy, and how many that are
MOST_TARGETS, MOST_CLASSES, FEWEST_OF_CLASS = 16, 1000, 5


def check_giveaway(samples: Samples) -> tuple[Finding | None, str]:
    """Find the columns that give the target away, or say why there was no looking."""
    train = next(iter(samples.parts.values()))
    width = train.x[0].numel()
    if samples.tokens:
        return None, "token ids are no columns"
    if train.y.ndim > 2 or (train.y.ndim == 2 and (samples.target == "classes" or train.y.shape[1] > MOST_TARGETS)):
        return None, f"the target of a sample has the shape {tuple(train.y.shape[1:])}"
    if len(train) < FEWEST_ROWS:
        return None, f"train has {len(train)} rows, fewer than {FEWEST_ROWS}"
    if samples.target == "classes" and int(train.targets().min()) < 0:
        return None, "some rows have no class"
    if min(len(train), FIRST_LOOK) * width > MOST_NUMBERS:
        return None, f"a sample has {width:,} numbers"
    if width < 2:
        return None, ""
    classes = samples.target == "classes"
    table, y, names = _look(samples, train, FIRST_LOOK if len(train) > 2 * FIRST_LOOK else SECOND_LOOK)
    told, wrong = _told(samples, table, y)
    indicators = _indicators(table, y) if classes else {}
    likely = told >= (FIRST_HITS if classes else EASY)
    likely[torch.tensor([*indicators], dtype=torch.int64)] = True
    columns = likely.nonzero().flatten()
    if not len(columns):
        return None, ""
    table, told, wrong = table[:, columns], told[columns], wrong[columns]
    if len(y) < min(len(train), SECOND_LOOK):
        table, y, names = _look(samples, train, SECOND_LOOK)
        table = table[:, columns]
        told, wrong = _told(samples, table, y)
    found = _words(samples, told, wrong <= WRONG * len(y), _indicators(table, y) if indicators else {})
    two = ((table == table.amin(0)) | (table == table.amax(0))).all(0)  # all columns of a class told one-hot count once
    easy = told >= EASY
    if not classes and bool((exact := told >= 1 - 1e-9).any()):  # a copy stands out even where the task is easy
        found, easy = {i: how for i, how in found.items() if exact[i]}, exact
    many = int((easy & ~two).sum()) + bool((easy & two).any())
    if not found or many > max(1, MOST_SHARE * len(names)):
        return None, ""
    return _finding(samples, {names[int(columns[i])]: how for i, how in found.items()}), ""


def _words(samples: Samples, told: Tensor, right: Tensor, indicators: Mapping[int, int]) -> dict[int, str]:
    """Return what is to be said of each column that tells the target."""
    enough = HITS if samples.target == "classes" else IN_TIME if samples.in_time else CORRELATION
    found = {}
    for i, share in enumerate(told.tolist()):
        if share >= enough and right[i]:
            found[i] = f"has a rank correlation of {share:.4f} with the target"
            if samples.target == "classes":
                found[i] = f"alone tells the class of {share:.1%} of the rows"
        elif i in indicators:
            found[i] = f"alone tells class {show(samples.class_name(indicators[i]))} from all others"
    return found


def _look(samples: Samples, train: Part, most: int) -> tuple[Tensor, Tensor, list[str]]:
    """Return up to so many rows of train as a table, their targets, and the columns' names; rare classes come first.

    Rows that share a value have to be in no order, so they are shuffled, by a generator of their own.
    """
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(train), generator=generator)
    if samples.target == "classes" and len(train) > most:
        y = train.targets(order)
        grouped, by_class = y.sort(stable=True)
        rank = torch.empty_like(order)
        rank[by_class] = torch.arange(len(y)) - torch.searchsorted(grouped, grouped)
        order = order[rank.argsort(stable=True)[:most]]
        order = order[torch.randperm(most, generator=generator)]
    chosen = order[:most]
    table, names = table_of(samples, train.take(chosen))
    return table, train.targets(chosen), names


def _told(samples: Samples, table: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:  # (n, F), (n, ...) -> (F,), (F,)
    """Return how much each column tells of the target, from 0 to 1, and the number of rows that it tells wrong."""
    if samples.target == "classes":
        return nearest_hits(table, y)
    best = torch.stack([rank_correlation(table, one).abs() for one in y.reshape(len(y), -1).unbind(1)]).amax(0)
    return best, torch.zeros_like(best)


def nearest_hits(table: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:  # (n, F), (n,) -> (F,), (F,)
    """Return for each column the share of rows whose nearest other row in it is of their class, and how many are not.

    The share is a mean over the classes that have five rows or more; 0 where that is one class. The rows have to be
    shuffled: of several equally near ones the neighbour in their order counts.
    """
    values, order = table.t().contiguous().sort(dim=1, stable=True)
    sorted_y = y[order]
    far = values.new_full((len(values), 1), torch.inf)
    gaps = values.diff(dim=1)
    before, after = torch.cat([far, gaps], 1), torch.cat([gaps, far], 1)
    same = sorted_y[:, 1:] == sorted_y[:, :-1]
    no = same.new_zeros(len(values), 1)
    hit = torch.where(before <= after, torch.cat([no, same], 1), torch.cat([same, no], 1))
    counts = y.bincount()
    some = counts >= FEWEST_OF_CLASS
    if int(some.sum()) < 2:
        return table.new_zeros(table.shape[1]), table.new_zeros(table.shape[1])
    weight = torch.where(some, 1 / counts.clamp(min=1), 0.0) / some.sum()
    return (hit * weight[sorted_y]).sum(1), (~hit & some[sorted_y]).sum(1)


def _indicators(table: Tensor, y: Tensor) -> dict[int, int]:
    """Return the columns of two values of which one stands for one class, of three or more, and that class."""
    low, high = table.amin(0), table.amax(0)
    two = ((table == low) | (table == high)).all(0) & (low < high)
    counts = y.bincount()
    if not two.any() or (counts > 0).sum() < 3 or len(counts) > MOST_CLASSES:
        return {}
    columns = two.nonzero().flatten()
    upper = (table[:, columns] == high[columns]).double()
    together = upper.t() @ one_hot(y).double()  # (columns, K): rows of the upper value and of the class
    wrong = upper.sum(0)[:, None] + counts - 2 * together
    wrong = torch.where(counts >= FEWEST_OF_CLASS, torch.minimum(wrong, len(y) - wrong), torch.inf)
    fewest, number = wrong.min(1)
    fitting = fewest <= WRONG * counts[number]
    return dict(zip(columns[fitting].tolist(), number[fitting].tolist(), strict=True))


def rank_correlation(table: Tensor, y: Tensor) -> Tensor:  # (n, F), (n,) -> (F,)
    """Return Spearman's rank correlation of each column with y; 0 where either is constant."""
    ranks, own = _ranks(table.t()), _ranks(y.double()[None])
    ranks, own = ranks - ranks.mean(1, True), own - own.mean()
    scale = (ranks.square().sum(1) * own.square().sum()).sqrt()
    return torch.where(scale > 0, (ranks * own).sum(1) / scale.clamp(min=1e-300), 0.0)


def _ranks(values: Tensor) -> Tensor:  # (F, n) -> (F, n)
    """Return the rank of each value in its line; equal ones share the mean of theirs."""
    values = values.contiguous()
    ordered = values.sort(dim=1).values
    below = torch.searchsorted(ordered, values)
    return (below + torch.searchsorted(ordered, values, right=True)).double() / 2


def _finding(samples: Samples, found: dict[str, str]) -> Finding:
    """Say which columns tell the target, and how well."""
    told = [f"column {name} of x {how}" for name, how in found.items()]
    leave = f"leave it out, of a csv by ignore: [{', '.join(found)}]" if samples.features else "leave it out of x"
    return Finding(
        name="giveaway columns",
        level="warning",
        sentence=several(told),
        advice=f"If it is made from the target, or known only after it, the model is of no use on new rows: {leave}.",
        columns=list(found),
    )
