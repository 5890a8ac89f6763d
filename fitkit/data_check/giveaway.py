"""A column that gives the target away: it alone predicts it, because it was made from it or is known only afterwards.

Classes: each row takes the class of the row whose value in that column is nearest (leave-one-out), which finds copies,
codes, and functions of any shape; the mean over classes of the share of hits has to reach 99 %. Values: the rank
correlation has to reach 0.995. Real measurements stay far below: the best of breast_cancer's 30 columns reaches 0.90,
the best of iris's four 0.95. Where more than a quarter of all columns does as well, the task is easy, and none is told.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from fitkit.data_check.columns import FEWEST_ROWS, table_of
from fitkit.data_check.finding import Finding, Part, Samples, several

FIRST_LOOK, SECOND_LOOK = 256, 4096  # rows of train: all columns in the first, what is left in the second
MOST_NUMBERS = 1 << 20  # rows times columns of the first look
HITS, FIRST_HITS = 0.99, 0.93
CORRELATION, IN_TIME, FIRST_CORRELATION = 0.995, 0.9999, 0.98  # the last value of a slow series is no leak
MOST_SHARE = 0.25  # of the columns; with more, the task itself is easy
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
    if min(len(train), FIRST_LOOK) * width > MOST_NUMBERS:
        return None, f"a sample has {width:,} numbers"
    if width < 2:
        return None, ""
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(train), generator=generator)  # rows of one value are to be in no order
    suspects: Tensor | None = None
    for rows, last in ((FIRST_LOOK, False), (SECOND_LOOK, True)):
        chosen = order[:rows]
        table, names = table_of(samples, train.take(chosen))
        suspects = torch.arange(len(names)) if suspects is None else suspects
        found = _suspects(samples, table[:, suspects], train.targets(chosen), last)
        suspects = suspects[found[0]]
        if not len(suspects):
            return None, ""
    if len(suspects) > max(1, MOST_SHARE * len(names)):
        return None, ""
    return _finding(samples, train, [names[i] for i in suspects.tolist()], found[1]), ""


def _suspects(samples: Samples, table: Tensor, y: Tensor, last: bool) -> tuple[Tensor, list[str]]:
    """Return which columns of a table (n, F) tell y (n, ...) nearly without error, and how well each does."""
    if samples.target == "values":
        best = torch.stack([rank_correlation(table, one).abs() for one in y.reshape(len(y), -1).unbind(1)]).amax(0)
        enough = (IN_TIME if samples.in_time else CORRELATION) if last else FIRST_CORRELATION
        chosen = (best >= enough).nonzero().flatten()
        return chosen, [f"has a rank correlation of {best[i]:.4f} with the target" for i in chosen.tolist()]
    hits = nearest_hits(table, y)
    told = {i: f"alone tells the class of {hits[i]:.1%} of the rows" for i in range(len(hits))}
    good = hits >= (HITS if last else FIRST_HITS)
    for column, number in _indicators(table, y).items():
        good[column] = True
        told[column] = f"alone tells class {show_class(samples, number)} from all others"
    chosen = good.nonzero().flatten()
    return chosen, [told[i] for i in chosen.tolist()]


def show_class(samples: Samples, number: int) -> str:
    """Quote the name of a class."""
    return f'"{samples.class_name(number)}"'


def nearest_hits(table: Tensor, y: Tensor) -> Tensor:  # (n, F), (n,) -> (F,)
    """Return for each column the share of rows whose nearest other row in it is of their class, a mean over classes.

    The rows have to be shuffled: of several equally near ones the neighbour in their order counts.
    """
    values, order = table.t().contiguous().sort(dim=1, stable=True)
    sorted_y = y[order]
    far = values.new_full((len(values), 1), torch.inf)
    gaps = values.diff(dim=1)
    before, after = torch.cat([far, gaps], 1), torch.cat([gaps, far], 1)
    same = sorted_y[:, 1:] == sorted_y[:, :-1]
    no = same.new_zeros(len(values), 1)
    hit = torch.where(before <= after, torch.cat([no, same], 1), torch.cat([same, no], 1))
    counts = y.bincount().double()
    weight = torch.where(counts > 1, 1 / counts.clamp(min=1), 0.0)
    return (hit * (weight / (counts > 1).sum().clamp(min=1))[sorted_y]).sum(1)


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
    fitting = fewest <= (1 - HITS) * counts[number] / 2
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


def _finding(samples: Samples, train: Part, names: list[str], told: list[str]) -> Finding:
    pairs = [f"column {name} of x {how}" for name, how in zip(names, told, strict=True)]
    argument = "ignore: [COLUMN] leaves it out of a csv" if samples.features else "leave it out of x"
    return Finding(
        name="giveaway columns",
        level="warning",
        sentence=f"{several(pairs)} of train" if samples.target == "classes" else several(pairs),
        advice="If it is made from the target, or known only after it, the model will be useless on new rows: "
        f"{argument}.",
        columns=names,
    )
