"""Near duplicates: rows of a part that are all but the same as a row of train, such as a picture saved once more.

Distances are Euclidean: columns of a table each over their standard deviation in train; pixels, and columns that have
one scale as pixels have, as they are. A row of a part is the near duplicate of its nearest row of train when both hold:

- the distance is at most 5 % of the median distance between two rows of train, and
- chance would bring no row of the part so near: with r_k the distance of the k-th nearest row of train, and D the
  dimension in which the data lie, some k (r_1 / r_k)^D rows of train are expected within r_1. Times the rows of the
  part that has to be under 0.001. D is 0.7 times the estimate H / median(log(r_20 / r_10)), H = 1/10 + … + 1/19, the
  mean of that logarithm for points of constant density in one dimension. k is 10, so that up to nine copies are found.

So twins among the digits, whose neighbours at all ranks are about as far, are none. Pictures that are shifted, cropped
or much brighter are not found.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fitkit.data_check.columns import Ends
from fitkit.data_check.duplicates import Twins
from fitkit.data_check.finding import MOST_NAMED, Finding, Part, Samples, kept, pair, several, spread_out

NEAR = 0.05  # of the median distance
RANK, CHANCE, CAUTION = 10, 0.001, 0.7
HARMONIC = sum(1 / i for i in range(RANK, 2 * RANK))
FEWEST_ROWS = 50  # of train
LEAST_WIDTH = 16  # a distance costs as much as that many multiplications, however few columns there are
MOST_PRODUCTS = {False: 10**8, True: 10**12}  # multiplications of a part with train, in a fit and on demand
MOST_BYTES = 1 << 32  # of the projected rows of train
DIMENSIONS, SLACK = 64, 1.5  # of a random projection, and by how much it may lengthen a distance
TILE = 1 << 22  # distances at a time
MOST_SUSPECTS, SAMPLED, PAIRS = 2000, 64, 500


def check_near(samples: Samples, twins: Twins, ends: Ends, thorough: bool) -> tuple[list[Finding], str]:
    """Find near duplicates of rows of train in the other parts, or say why there was no looking."""
    train, *others = samples.parts.values()
    if samples.tokens:
        return [], "token ids have no distance"
    if len(train) < FEWEST_ROWS or train.x[0].numel() < 2:
        return [], f"train has fewer than {FEWEST_ROWS} rows, or one number a row"
    width = min(train.x[0].numel(), DIMENSIONS) if thorough else train.x[0].numel()
    products = sum(map(len, others)) * len(train) * max(width, LEAST_WIDTH)
    if products > MOST_PRODUCTS[thorough] or 4 * len(train) * width > MOST_BYTES:
        return [], f"{products:.1e} multiplications are more than {MOST_PRODUCTS[thorough]:.0e}"
    space = _Space(train, width, per_column=train.x.ndim == 2 and not ends.one_scale)
    found = []
    for number, part in enumerate(others, start=1):
        exact = torch.zeros(len(part), dtype=torch.bool)
        shared = torch.isin(twins.group, twins.group[twins.part == 0])
        exact[twins.position[(twins.part == number) & shared]] = True
        found.append(_near(space, train, part, exact))
    return [finding for finding in found if finding is not None], ""


class _Space:
    """Where distances are taken: each column over its deviation, and projected where there are many."""

    def __init__(self, train: Part, width: int, per_column: bool) -> None:
        self.train = train
        sample = train.take(spread_out(torch.arange(len(train)), 4096))
        sample = sample.reshape(len(sample), -1).float()
        self.mean = sample.mean(0)
        self.factor = torch.ones_like(self.mean)
        if per_column:
            deviation = sample.std(0, correction=0)
            self.factor = torch.where(deviation > 0, 1 / deviation.clamp(min=1e-30), 0.0)
        self.projection: Tensor | None = None
        if width < len(self.mean):
            generator = torch.Generator().manual_seed(0)
            normal = torch.randn(len(self.mean), width, generator=generator, dtype=torch.float32)
            self.projection = (normal / width**0.5).to(sample.device)
        half = min(PAIRS, len(train) // 2)
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
        pair = self.full(train, order[:half]) - self.full(train, order[half : 2 * half])
        self.median = float(pair.norm(dim=1).median())
        self.rows = self.short(train, torch.arange(len(train)))  # (n, width)
        self.squares = self.rows.square().sum(1)

    def full(self, part: Part, positions: Tensor) -> Tensor:  # -> (n, D)
        """Return samples at their places."""
        return (part.take(positions).reshape(len(positions), -1).float() - self.mean) * self.factor

    def short(self, part: Part, positions: Tensor) -> Tensor:  # -> (n, width)
        """Return samples at their places, projected."""
        if self.projection is None:
            return self.full(part, positions)
        step = max(1, TILE // len(self.mean))
        return torch.cat([self.full(part, some) @ self.projection for some in torch.split(positions, step)])

    def nearest(self, x: Tensor) -> Tensor:  # (m, width) -> (m,)
        """Return the distance of each row's nearest in train."""
        least = []
        for some in torch.split(x, max(1, TILE // len(self.rows))):
            products = torch.addmm(self.squares, some, self.rows.t(), alpha=-2)
            least.append((products.amin(1) + some.square().sum(1)).clamp(min=0).sqrt())
        return torch.cat(least)

    def ranked(self, x: Tensor) -> tuple[Tensor, Tensor]:  # (m, width) -> (m, 2 RANK), (m, 2 RANK)
        """Return the distances of the nearest rows in train in rising order, and their positions."""
        found = []
        for some in torch.split(x, max(1, TILE // len(self.rows))):
            squares = torch.addmm(self.squares, some, self.rows.t(), alpha=-2) + some.square().sum(1, True)
            found.append(squares.topk(2 * RANK, dim=1, largest=False))
        squares = torch.cat([values for values, _ in found]).clamp(min=0)
        return squares.sqrt().cpu(), torch.cat([places for _, places in found]).cpu()


def _near(space: _Space, train: Part, part: Part, exact: Tensor) -> Finding | None:
    everything = torch.arange(len(part))
    x = space.short(part, everything)
    limit = NEAR * space.median
    distances = space.nearest(x).cpu()
    suspects = ((distances <= limit * (SLACK if space.projection is not None else 1)) & ~exact).nonzero().flatten()
    suspects = suspects[:MOST_SUSPECTS]
    if not len(suspects) or limit == 0:
        return None
    usual, _ = space.ranked(x[spread_out(everything, SAMPLED).to(x.device)])
    ratio = (usual[:, -1] / usual[:, RANK - 1].clamp(min=1e-30)).clamp(min=1).log().median()
    dimension = CAUTION * HARMONIC / max(float(ratio), 1e-3)
    ranked, places = space.ranked(x[suspects.to(x.device)])
    candidates = space.full(part, suspects)[:, None] - space.full(train, places[:, 0])[:, None]
    first = candidates.norm(dim=2).squeeze(1).cpu()
    by_chance = RANK * (first / ranked[:, RANK - 1].clamp(min=1e-30)) ** dimension * len(part)
    near = ((first <= limit) & (first > 0) & (by_chance < CHANCE)).nonzero().flatten()
    if not len(near):
        return None
    rows, twin = part.numbers(suspects[near]), train.numbers(places[near, 0])
    order = rows.argsort()[:MOST_NAMED].tolist()
    pairs = [pair(part, int(rows[i]), "≈", train, int(twin[i])) for i in order]
    return Finding(
        name="near duplicates",
        level="warning",
        sentence=f"{len(near):,} of {len(part):,} rows of {part.name} are near duplicates of rows of {train.name} "
        f"({several(pairs, len(near))}{train.counted})",
        advice=f"Look at them: if they show the same thing, {part.name} looks better than it is. Keep such rows in one "
        "part with splits: group.",
        rows={part.name: kept(rows), train.name: kept(twin)},
    )
