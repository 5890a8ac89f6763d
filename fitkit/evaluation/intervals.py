"""95 % intervals: how much a measure would move if other samples of the same kind had been drawn."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Z = 1.959963984540054  # the 97.5 % point of the normal distribution
RESAMPLES, FEWER, MANY = (
    1000,
    200,
    100_000,
)  # fewer from that many samples on: the interval is narrow, and they are slow
CHUNK = 1 << 22  # weights that are held at a time


@dataclass(frozen=True)
class Estimate:
    """A measure with its 95 % interval; `method` says how that was found: "Wilson" or "bootstrap"."""

    value: float
    low: float
    high: float
    method: str

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {"value": self.value, "low": self.low, "high": self.high, "method": self.method}


def finite(value: Any) -> Any:
    """Return plain data in which NaN and infinities are None, for strict JSON."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def wilson(hits: float, count: float, z: float = Z) -> Estimate:
    """Return a share with Wilson's score interval (Wilson 1927), of `z` standard errors; it stays within 0 and 1."""
    if not count:
        return Estimate(math.nan, math.nan, math.nan, "Wilson")
    share = hits / count
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return Estimate(share, max(0.0, min(middle - half, share)), min(1.0, max(middle + half, share)), "Wilson")


def resampled(count: int, seed: int = 0) -> Iterator[Tensor]:  # (b, N) float64
    """Yield how often each of N samples is drawn in each of RESAMPLES bootstrap samples, some resamples at a time."""
    generator = torch.Generator().manual_seed(seed)
    left = RESAMPLES if count < MANY else FEWER
    while left and count:
        rows = min(left, max(1, CHUNK // count))
        drawn = torch.randint(count, (rows, count), generator=generator)
        once = torch.ones((), dtype=torch.float64).expand(rows, count)
        yield torch.zeros(rows, count, dtype=torch.float64).scatter_add_(1, drawn, once)
        left -= rows


def bootstrap(value: float, count: int, measure: Callable[[Tensor], list[float]]) -> Estimate:
    """Return a measure with its percentile bootstrap interval (Efron 1979): the samples are drawn again with return.

    `measure` takes weights (b, N), how often each sample counts, and returns b values. Resamples in which the measure
    has no value, such as of a class that none of them has, are left out. The same samples give the same interval. It is
    not known, NaN, where no resample differs: of samples without a mistake the bootstrap cannot draw one.
    """
    values = [v for weights in resampled(count) for v in measure(weights) if math.isfinite(v)]
    if len(values) < FEWER // 2 or not math.isfinite(value):
        return Estimate(value, math.nan, math.nan, "bootstrap")
    if count > 1 and min(values) == max(values):
        return Estimate(value, math.nan, math.nan, "bootstrap")
    low, high = torch.tensor(values, dtype=torch.float64).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64))
    return Estimate(value, low.item(), high.item(), "bootstrap")


def ranked(scores: Tensor, positive: Tensor, weights: Tensor, *, precision: bool) -> Tensor:
    """Return the AUROC, or the average precision, of weighted samples: (N,), (N,) bool, (b, N) -> (b,).

    The sums that both are: over thresholds from the highest score on, samples of equal score at once. NaN where the
    weights leave one class alone.
    """
    order = scores.argsort(descending=True)
    ordered = scores[order]  # not their differences: infinity less itself is no 0
    ends = torch.cat((ordered[1:] != ordered[:-1], torch.ones(1, dtype=torch.bool)))  # where a group of equal ones ends
    weights, positive = weights[:, order], positive[order]
    hits = (weights * positive).cumsum(1)[:, ends]
    false = (weights * ~positive).cumsum(1)[:, ends]
    new_hits = torch.diff(hits, dim=1, prepend=torch.zeros_like(hits[:, :1]))
    total, wrong = hits[:, -1], false[:, -1]
    if precision:
        return (new_hits * torch.where(hits > 0, hits / (hits + false), 0)).sum(1) / total
    new_false = torch.diff(false, dim=1, prepend=torch.zeros_like(false[:, :1]))
    return (new_false * (hits - new_hits / 2)).sum(1) / (total * wrong)
