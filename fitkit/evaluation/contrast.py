"""Whether one model is better than another on the same samples, or on others: differences, intervals and tests."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist, fmean, variance
from typing import Literal

import torch
from torch import Tensor

from fitkit.evaluation.intervals import Z, resampled, wilson
from fitkit.evaluation.measures import Measure

ALPHA, POWER = 0.05, 0.8
LEAST_DRAWS = 100  # resamples in which a difference must have a value
NORMAL = NormalDist()
BOTH = NORMAL.inv_cdf(1 - ALPHA / 2) + NORMAL.inv_cdf(POWER)  # standard errors that a difference must have to be found

Outcome = Literal["same", "better", "worse", "cannot be told"]


@dataclass(frozen=True)
class Contrast:
    """How far a measure of one model lies above that of another: `difference`, with its 95 % interval and p-value.

    `needed` is how many samples (of a test over seeds: seeds a side) would show a difference of this size, if it is the
    true one, in 80 % of all cases: infinite where no number would, NaN where none can be named.
    """

    metric: str
    difference: float
    low: float
    high: float
    p: float
    method: str
    higher_is_better: bool
    needed: float = math.nan
    same: bool = False  # on every single sample
    share: bool = False  # of samples: a difference in percentage points
    p_adjusted: float = field(default=math.nan)  # Holm's, where several models are compared with one

    @property
    def outcome(self) -> Outcome:
        """What can be said at a level of 5 %."""
        p = self.p if math.isnan(self.p_adjusted) else self.p_adjusted
        if self.same:
            return "same"
        if not p < ALPHA or self.difference == 0:
            return "cannot be told"
        return "better" if (self.difference > 0) == self.higher_is_better else "worse"


@dataclass(frozen=True, eq=False)
class Overlap:
    """Where the samples of two models stand among all samples that either was measured on.

    `first` and `second` number them, (N1,) and (N2,), from 0 to `total` - 1; `shared` pairs the places of those that
    both have, (S, 2).
    """

    first: Tensor
    second: Tensor
    total: int
    shared: Tensor = field(repr=False)

    @property
    def paired(self) -> bool:
        """Whether both were measured on the same samples."""
        return len(self.shared) == len(self.first) == len(self.second)


def overlap(first: Tensor, second: Tensor, same_data: bool = True) -> Overlap:
    """Return how two lists of row numbers, (N1,) and (N2,), overlap; of different data no row is that of the other."""
    if not same_data:
        second = second + int(first.max()) + 1
    rows = torch.cat((first, second)).sort().values
    rows = rows[torch.cat((torch.ones(1, dtype=torch.bool), rows.diff() != 0))]
    places = torch.full((len(rows), 2), -1)
    one, other = torch.searchsorted(rows, first), torch.searchsorted(rows, second)
    places[one, 0], places[other, 1] = torch.arange(len(first)), torch.arange(len(second))
    return Overlap(one, other, len(rows), places[(places >= 0).all(1)])


def contrast(first: Measure, second: Measure, rows: Overlap) -> Contrast:
    """Return how far `second` lies above `first`.

    A share of the same samples is tested by McNemar's test, everything else by a bootstrap that draws the same samples
    for both; of samples that only one of them was measured on, nothing can be paired.
    """
    if first.hits is not None and second.hits is not None:
        return _shares(first, second, rows)
    return _drawn(first, second, rows)


def _shares(first: Measure, second: Measure, rows: Overlap) -> Contrast:
    assert first.hits is not None and second.hits is not None
    one, other = first.hits[rows.shared[:, 0]], second.hits[rows.shared[:, 1]]
    only_one, only_other = int((one & ~other).sum()), int((other & ~one).sum())
    phi = _phi(int((one & other).sum()), only_one, only_other, int((~one & ~other).sum()))
    counts = len(first.hits), len(second.hits)
    hits = int(first.hits.sum()), int(second.hits.sum())
    rho = phi * len(rows.shared) / math.sqrt(counts[0] * counts[1])
    difference = second.value - first.value
    low, high = share_interval(hits, counts, rho)
    same = rows.paired and not only_one + only_other
    if rows.paired:
        p, method = mcnemar(only_one, only_other), "McNemar"
    else:
        p, method = _share_p(hits, counts, rho), "Newcombe, two samples"
    spread = (high - low) / (2 * Z)
    needed = _needed(difference, spread, min(counts))
    better = second.higher_is_better
    return Contrast(second.name, difference, low, high, p, method, better, needed, same, share=True)


def mcnemar(only_first: int, only_second: int) -> float:
    """Return McNemar's p-value, two-sided, exact with mid-p: of the samples on which one of two models alone is right.

    The plain exact test is wrong too seldom when few samples differ, 1 or 2 % of the time instead of 5 %. Mid-p, which
    counts half of what was seen itself, comes close to 5 % (Fagerland, Lydersen and Laake 2013).
    """
    count, fewer = only_first + only_second, min(only_first, only_second)
    logs = [_log_choose(count, k) - count * math.log(2) for k in range(fewer + 1)]
    return min(1.0, 2 * (math.fsum(map(math.exp, logs)) - math.exp(logs[-1]) / 2))


def _log_choose(count: int, k: int) -> float:
    return math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1)


def _phi(both: int, only_one: int, only_other: int, neither: int) -> float:
    """Return the correlation of two 0/1 outcomes; 0 where one of them is always the same."""
    sides = (both + only_one) * (only_other + neither) * (both + only_other) * (only_one + neither)
    return (both * neither - only_one * only_other) / math.sqrt(sides) if sides else 0.0


def share_interval(
    hits: tuple[int, int], counts: tuple[int, int], rho: float = 0.0, z: float = Z
) -> tuple[float, float]:
    """Return the interval of the second of two shares minus the first, by Newcombe's method 10 of 1998.

    It squares and adds the distances to the ends of Wilson's intervals; `rho` is how two estimates correlate, 0 for
    separate samples. Also right for shares of 0 and 1.
    """
    one, other = (wilson(h, n, z) for h, n in zip(hits, counts, strict=True))
    down, up = (other.value - other.low, one.high - one.value), (other.high - other.value, one.value - one.low)
    middle = other.value - one.value
    ends = [math.sqrt(max(0.0, a * a - 2 * rho * a * b + b * b)) for a, b in (down, up)]
    return max(-1.0, middle - ends[0]), min(1.0, middle + ends[1])


def _share_p(hits: tuple[int, int], counts: tuple[int, int], rho: float) -> float:
    """Return the p-value to `share_interval`: the level at which the interval ends at 0."""
    if hits[0] * counts[1] == hits[1] * counts[0]:
        return 1.0
    least, most = 0.0, 40.0
    for _ in range(60):
        z = (least + most) / 2
        low, high = share_interval(hits, counts, rho, z)
        least, most = (least, z) if low < 0 < high else (z, most)
    return 2 * NORMAL.cdf(-least)


def _drawn(first: Measure, second: Measure, rows: Overlap) -> Contrast:
    """Return the difference with a bootstrap's standard error and Student's t.

    Percentiles would be narrower where a few samples have most of the loss, and then call equal models different in 6
    to 9 of 100 cases instead of 5; t does so in 3 to 5.
    """
    draws = draw_differences(first.weighted, second.weighted, rows)
    difference = second.value - first.value
    method = "paired bootstrap" if rows.paired else "bootstrap, two samples"
    same = rows.paired and len(draws) > 0 and difference == 0 and not draws.any()
    count = min(len(rows.first), len(rows.second))
    alike = not rows.paired and not (draws != difference).any()  # two perfect models: other samples may differ
    if alike or count < 2 or len(draws) < LEAST_DRAWS or not math.isfinite(difference):
        return Contrast(second.name, difference, math.nan, math.nan, math.nan, method, second.higher_is_better)
    if same:
        return Contrast(second.name, 0.0, 0.0, 0.0, 1.0, method, second.higher_is_better, same=True)
    spread = draws.std().item() * math.sqrt(count / (count - 1))  # a bootstrap divides by n
    reach = t_quantile(1 - ALPHA / 2, count - 1) * spread
    ends, p = (difference - reach, difference + reach), t_p(difference / spread, count - 1) if spread else 0.0
    needed = _needed(difference, spread, count)
    return Contrast(second.name, difference, *ends, p, method, second.higher_is_better, needed)


def draw_differences(
    first: Callable[[Tensor], list[float]], second: Callable[[Tensor], list[float]], rows: Overlap
) -> Tensor:  # (b,) float64
    """Return the differences of two measures in bootstrap samples of all rows, those without a value left out."""
    found: list[float] = []
    for weights in resampled(rows.total):
        one, other = first(weights[:, rows.first]), second(weights[:, rows.second])
        found += [b - a for a, b in zip(one, other, strict=True) if math.isfinite(b - a)]
    return torch.tensor(found, dtype=torch.float64)


def _needed(difference: float, spread: float, count: int) -> float:
    """Return how many samples have a spread so small that a difference is found with the power wanted."""
    return count * (BOTH * spread / difference) ** 2 if difference else math.nan


def over_seeds(
    first: Sequence[float], second: Sequence[float], metric: Measure, *, pairs: bool, resplit: float = 0.0
) -> Contrast:
    """Return how far the mean of `second` lies above that of `first`: a measure of several runs that differ in seed.

    With `pairs` the i-th runs of both belong together and Student's paired test is used, else Welch's. `resplit` is the
    size of the part measured on over that of the training part, where each seed drew its own split: the runs share most
    of their rows, and the variance is corrected for that (Nadeau and Bengio 2003); pairs only.
    """
    difference, half = fmean(second) - fmean(first), len(second)
    if pairs:
        spread = variance([b - a for a, b in zip(first, second, strict=True)])
        squared, freedom = spread * (1 / half + resplit), half - 1.0
        method = "paired t, corrected" if resplit else "paired t"
    else:
        parts = [variance(side) / len(side) for side in (first, second)]
        squared, spread = sum(parts), variance(first) + variance(second)
        bottom = sum(part**2 / (len(side) - 1) for part, side in zip(parts, (first, second), strict=True))
        freedom, method = squared**2 / bottom if bottom else math.nan, "Welch's t"
    same, ends, p, needed = list(first) == list(second), (math.nan, math.nan), math.nan, math.nan
    if squared:  # else all seeds agree to the last digit, and nothing says how far another one would move
        error = math.sqrt(squared)
        reach = t_quantile(1 - ALPHA / 2, freedom) * error
        ends, p = (difference - reach, difference + reach), t_p(difference / error, freedom)
        left = (difference / BOTH) ** 2 / spread - resplit
        if difference:
            needed = math.ceil(1 / left + Z**2 / (2 if pairs else 4)) if left > 0 else math.inf
    better, share = metric.higher_is_better, metric.hits is not None
    return Contrast(metric.name, difference, *ends, p, method, better, needed, same and pairs, share)


def holm(ps: Sequence[float]) -> list[float]:
    """Return p-values so raised that, of several tests, 5 % are wrong about any at all (Holm 1979); NaN stays."""
    order = sorted((p, i) for i, p in enumerate(ps) if p == p)
    raised, most = [math.nan] * len(ps), 0.0
    for rank, (p, i) in enumerate(order):
        most = max(most, min(1.0, p * (len(order) - rank)))
        raised[i] = most
    return raised


def t_p(t: float, freedom: float) -> float:
    """Return the two-sided p-value of Student's t: the regularized incomplete beta function of df / (df + t²)."""
    if freedom > 1e5:
        return 2 * NORMAL.cdf(-abs(t))
    x, a, b = freedom / (freedom + t * t), freedom / 2, 0.5
    if x == 1:
        return 1.0
    front = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x) if x else -math.inf
    )
    if x < (a + 1) / (a + b + 2):
        return front * _fraction(x, a, b) / a
    return 1 - front * _fraction(1 - x, b, a) / b


def _fraction(x: float, a: float, b: float) -> float:
    """Return the continued fraction of the incomplete beta function by Lentz's method (DLMF 8.17.22)."""
    tiny = 1e-300
    c, d = 1.0, 1 / max(tiny, 1 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, 10_000):
        for top in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d, c = 1 / (1 + top * d or tiny), 1 + top / c or tiny
            value *= d * c
        if abs(d * c - 1) < 1e-14:
            break
    return value


def t_quantile(share: float, freedom: float) -> float:
    """Return the value below which Student's t lies with a probability of `share`, above one half."""
    least, most = 0.0, 1.0
    while t_p(most, freedom) / 2 > 1 - share:
        most *= 2
    for _ in range(100):
        middle = (least + most) / 2
        least, most = (middle, most) if t_p(middle, freedom) / 2 > 1 - share else (least, middle)
    return most
