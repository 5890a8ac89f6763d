"""Metrics: what a run reports beside its loss, each as statistics of single samples that add up.

A metric is a function `(output, target, *, arguments) -> statistics`, (M,) or (M, S): one row a sample. The engine sums
the rows of an epoch in float64 and hands the sums (S,) with the number of samples to `finish`, so that an epoch's
value does not depend on how its samples were split into batches.

Facts of an entry: `higher_is_better`; `target`, "classes" or "values"; `finish`, a function `(sums, count) -> float`
(`mean` where a registered metric names none), which may take arguments of the metric by their names; `keeps`, where
`finish` needs all rows (M, S) of the epoch instead of their sums; `needs`, a function that is called before a run and
raises ValueError where an extra is missing. A column of a history bears the name of its metric.

Shapes are those of losses: for classes, output (M, C) with target (M,) int64, or one logit (M,) with target (M,) 0 / 1
or -1 / +1; for values, output and target in the same shape (M, ...).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from fitkit.spec.table import Table
from fitkit.spec.types import PositiveInt

# Of precision, recall and the like: that of class 1 ("binary"), the mean over the classes that a target or a prediction
# names ("macro"), weighted by how many targets have them ("weighted"), or of all decisions together ("micro"). "auto"
# is "binary" for two classes and "macro" for more.
Average = Literal["auto", "binary", "macro", "weighted", "micro"]

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


def _decisions(output: Tensor, target: Tensor) -> Tensor:  # (M, C) or (M,), (M,) -> (M, 3 C) bool
    """Mark for each class whether a sample is rightly given it, is given it, and has it."""
    if output.dim() == 1:
        given, target, count = (output > 0).long(), (target > 0).long(), 2
    else:
        given, count = output.argmax(-1), output.shape[-1]
    classes = torch.arange(count, device=output.device)
    predicted, actual = given[:, None] == classes, target[:, None] == classes
    return torch.cat((predicted & actual, predicted, actual), 1)


def _averaged(top: Tensor, bottom: Tensor, sums: Tensor, average: Average) -> float:
    """Return the average of top / bottom, (C,) each, over the classes; 0 / 0 is 0."""
    _, predicted, actual = sums.reshape(3, -1)
    if average == "auto":
        average = "binary" if len(top) == 2 else "macro"
    if average == "micro":
        total = bottom.sum().item()
        return top.sum().item() / total if total else 0.0
    each = torch.where(bottom > 0, top / bottom, 0.0)
    if average == "binary":
        return each[1].item()
    weight = actual if average == "weighted" else (predicted + actual > 0).double()
    return float((each * weight).sum() / weight.sum())


def _precision(sums: Tensor, count: float, *, average: Average) -> float:
    hits, predicted, _ = sums.reshape(3, -1)
    return _averaged(hits, predicted, sums, average) if count else math.nan


def _recall(sums: Tensor, count: float, *, average: Average) -> float:
    hits, _, actual = sums.reshape(3, -1)
    return _averaged(hits, actual, sums, average) if count else math.nan


def _f1(sums: Tensor, count: float, *, average: Average) -> float:
    hits, predicted, actual = sums.reshape(3, -1)
    return _averaged(2 * hits, predicted + actual, sums, average) if count else math.nan


def _jaccard(sums: Tensor, count: float, *, average: Average) -> float:
    hits, predicted, actual = sums.reshape(3, -1)
    return _averaged(hits, predicted + actual - hits, sums, average) if count else math.nan


def _balanced(sums: Tensor, count: float) -> float:
    hits, _, actual = sums.reshape(3, -1)
    return (hits / actual)[actual > 0].mean().item() if count else math.nan


def _kappa(sums: Tensor, count: float) -> float:
    hits, predicted, actual = sums.reshape(3, -1)
    by_chance = (predicted * actual).sum().item() / count**2 if count else math.nan
    return (hits.sum().item() / count - by_chance) / (1 - by_chance) if by_chance < 1 else math.nan


def _matthews(sums: Tensor, count: float) -> float:
    hits, predicted, actual = sums.reshape(3, -1)
    spread = ((count**2 - predicted.square().sum()) * (count**2 - actual.square().sum())).item()
    together = (count * hits.sum() - (predicted * actual).sum()).item()
    return together / math.sqrt(spread) if spread > 0 else 0.0 if count else math.nan


@metrics.register(primary="average", higher_is_better=True, target="classes", finish=_precision)
def precision(output: Tensor, target: Tensor, *, average: Average = "auto") -> Tensor:  # (M, C), (M,) -> (M, 3 C)
    """Share of the samples given a class that have it: of class 1 where there are two classes, else averaged."""
    return _decisions(output, target)


@metrics.register(primary="average", higher_is_better=True, target="classes", finish=_recall)
def recall(output: Tensor, target: Tensor, *, average: Average = "auto") -> Tensor:  # (M, C), (M,) -> (M, 3 C)
    """Share of the samples of a class that are given it: of class 1 where there are two classes, else averaged."""
    return _decisions(output, target)


@metrics.register(primary="average", higher_is_better=True, target="classes", finish=_f1)
def f1(output: Tensor, target: Tensor, *, average: Average = "auto") -> Tensor:  # (M, C) or (M,), (M,) -> (M, 3 C)
    """Harmonic mean of precision and recall: of class 1 where there are two classes, else averaged over the classes.

    As scikit-learn's `f1_score`, where the average for two classes is "binary" by default too; 0 / 0 counts 0.
    """
    return _decisions(output, target)


@metrics.register(primary="average", higher_is_better=True, target="classes", finish=_jaccard)
def jaccard_index(output: Tensor, target: Tensor, *, average: Average = "auto") -> Tensor:  # (M, C), (M,) -> (M, 3 C)
    """Intersection over union of the samples given a class and those that have it: of class 1, or averaged."""
    return _decisions(output, target)


@metrics.register(higher_is_better=True, target="classes", finish=_balanced)
def balanced_accuracy(output: Tensor, target: Tensor) -> Tensor:  # (M, C) or (M,), (M,) -> (M, 3 C)
    """Mean of the recalls of the classes that any target has: accuracy as if all classes were equally frequent."""
    return _decisions(output, target)


@metrics.register(higher_is_better=True, target="classes", finish=_kappa)
def cohen_kappa(output: Tensor, target: Tensor) -> Tensor:  # (M, C) or (M,), (M,) -> (M, 3 C)
    """Cohen's kappa: how much of the accuracy that chance leaves open is reached; 0 is chance, 1 is perfect."""
    return _decisions(output, target)


@metrics.register(higher_is_better=True, target="classes", finish=_matthews)
def matthews_corrcoef(output: Tensor, target: Tensor) -> Tensor:  # (M, C) or (M,), (M,) -> (M, 3 C)
    """Matthews correlation coefficient, for any number of classes that of Gorodkin (2004); 0 where it has no value."""
    return _decisions(output, target)


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
