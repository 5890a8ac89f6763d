"""Metrics: what a run reports beside its loss, each as statistics of single samples that add up.

A metric is a function `(output, target, *, arguments) -> statistics`, (M,) or (M, S): one row a sample. The engine sums
the rows of an epoch in float64 and hands the sums (S,) with the number of samples to `finish`, so that an epoch's
value does not depend on how its samples were split into batches.

Facts of an entry: `higher_is_better`; `target`, "classes" or "values"; `finish`, a function `(sums, count) -> float`
(`mean` where a registered metric names none). A column of a history bears the name of its metric.

Shapes are those of losses: for classes, output (M, C) with target (M,) int64, or one logit (M,) with target (M,) 0 / 1
or -1 / +1; for values, output and target in the same shape (M, ...).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fitkit.spec.table import Table
from fitkit.spec.types import PositiveInt

metrics = Table("metric", facts={"higher_is_better": (True, False), "target": ("classes", "values")})

# Below this part of the sum of squares, what is left of a total variation is rounding: float64 has 16 digits, and
# summing a long epoch may cost two or three of them.
_ROUNDING = 1e-13


def mean(sums: Tensor, count: float) -> float:
    """Return the mean of a metric that has one statistic a sample; NaN when there was no sample."""
    return sums.item() / count if count else math.nan


def _root_mean(sums: Tensor, count: float) -> float:
    return math.sqrt(mean(sums, count))


def _r2(sums: Tensor, count: float) -> float:
    """Return the mean of 1 - residual / total over the outputs, from the three sums that `r2` describes."""
    if count < 2:
        return math.nan
    values = []
    for residual, target, squares in sums.reshape(3, -1).T.tolist():
        total = squares - target**2 / count
        if total <= _ROUNDING * squares:  # a constant target: 1 when it is met, 0 when it is not, NaN stays NaN
            total = residual or 1.0
        values.append(1.0 - residual / total)
    return math.fsum(values) / len(values)


@metrics.register(higher_is_better=True, target="classes", finish=mean)
def accuracy(output: Tensor, target: Tensor) -> Tensor:  # (M, C) or (M,), (M,) -> (M,)
    """Share of samples whose class is right: the highest output (the first of equals), or one logit above 0."""
    if output.dim() == 1:
        return (output > 0) == (target > 0)
    return output.argmax(-1) == target


@metrics.register(primary="k", higher_is_better=True, target="classes", finish=mean)
def top_k_accuracy(output: Tensor, target: Tensor, *, k: PositiveInt = 5) -> Tensor:  # (M, C) or (M,), (M,) -> (M,)
    """Share of samples whose class is among the `k` highest outputs; of equal outputs the first counts as the higher.

    With `k` = 1 this is `accuracy`; with `k` from the number of classes on, it is 1. A NaN is never among the highest,
    and a target that is no class, as one that the loss ignores, is never right.
    """
    if output.dim() == 1:
        output, target = torch.stack((torch.zeros_like(output), output), -1), (target > 0).long()
    target = target[:, None]
    known = target.clamp(0, output.shape[-1] - 1)
    score = output.gather(-1, known)  # (M, 1)
    classes = torch.arange(output.shape[-1], device=output.device)
    # "not at most" and not "above": with a NaN every comparison is false, and a NaN must not win
    ahead = ~(output <= score) | ((output == score) & (classes < target))
    return ((ahead.sum(-1) < k) & (known == target)[:, 0]).float()


@metrics.register(higher_is_better=False, target="values", finish=mean)
def mean_absolute_error(output: Tensor, target: Tensor) -> Tensor:  # (M, ...), (M, ...) -> (M,)
    """Mean of |output - target| over all samples and outputs."""
    return _per_sample(_error(output, target).abs()).mean(1)


@metrics.register(higher_is_better=False, target="values", finish=mean)
def mean_squared_error(output: Tensor, target: Tensor) -> Tensor:  # (M, ...), (M, ...) -> (M,)
    """Mean of (output - target)^2 over all samples and outputs."""
    return _per_sample(_error(output, target).square()).mean(1)


@metrics.register(higher_is_better=False, target="values", finish=_root_mean)
def root_mean_squared_error(output: Tensor, target: Tensor) -> Tensor:  # (M, ...), (M, ...) -> (M,)
    """Square root of the mean squared error, taken once over all samples and outputs of the epoch.

    (scikit-learn takes a root for each output and averages the roots; for one output both are the same.)
    """
    squares: Tensor = mean_squared_error(output, target)
    return squares


@metrics.register(higher_is_better=True, target="values", finish=_r2)
def r2(output: Tensor, target: Tensor) -> Tensor:  # (M, ...), (M, ...) -> (M, 3 k), k outputs a sample
    """Coefficient of determination, 1 - residual / total variation, averaged over outputs: 1 is perfect, 0 the mean.

    As scikit-learn's `r2_score`: an output whose target is constant counts 1 if it is met exactly, else 0; fewer than
    two samples give NaN. The statistics are squared error, target and squared target, in float64 (in float32 on mps,
    which has no float64). The total variation is a difference of their sums, so it loses digits with (mean / spread)^2:
    for targets around 10,000 with a spread of 1 its relative error is 4e-9 over 5,000 samples and 2e-7 over 500,000 in
    batches of 32 (measured), about what rounding such targets to float32 does. A spread below 3e-7 of the mean counts
    as constant.
    """
    exact = torch.float32 if target.device.type == "mps" else torch.float64
    truth = _per_sample(target.to(exact))
    squared_error = (_per_sample(output.to(exact)) - truth).square()
    return torch.cat((squared_error, truth, truth.square()), 1)


def _error(output: Tensor, target: Tensor) -> Tensor:
    single = torch.promote_types(output.dtype, torch.float32)  # half precision would round the squares
    return output.to(single) - target


def _per_sample(values: Tensor) -> Tensor:  # (M, ...) -> (M, k)
    return values.unsqueeze(-1).flatten(1)
