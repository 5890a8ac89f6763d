"""Metrics of how well scores rank samples, which need all scores of an epoch: through torchmetrics.

They join the table of metrics. A row is a sample's outputs and its target, (M, C + 1); an epoch keeps all of them, on
the device. Outputs are read as logits: one a class, or one for class 1.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from fitkit.spec.table import Table

rankings = Table("metric", facts={"higher_is_better": (True, False), "target": ("classes", "values")})

Average = Literal["macro", "weighted"]


def torchmetrics() -> Any:
    """Return torchmetrics' functions for classification; ValueError where the package is missing."""
    try:
        from torchmetrics.functional import classification
    except ImportError:
        raise ValueError('needs an extra: pip install "fitkit[metrics]"') from None
    return classification


def log_odds(outputs: Tensor) -> Tensor:  # (M, C), or (M, 1) one logit for class 1 -> (M, C) or (M, 2) float64
    """Return the logarithm of p / (1 - p) of each class, in which logits keep their order where p would round to 1."""
    outputs = outputs.double()
    if outputs.shape[1] == 1:
        outputs = torch.cat((torch.zeros_like(outputs), outputs), 1)
    others = outputs.logsumexp(1, keepdim=True) + torch.log1p(-outputs.softmax(1))
    top = outputs.argmax(
        1, keepdim=True
    )  # of the likeliest class, what is left of 1 is rounding: the others themselves
    rest = outputs.scatter(1, top, -math.inf).logsumexp(1, keepdim=True)
    return outputs - others.scatter(1, top, rest)


def per_class(function: Any, scores: Tensor, target: Tensor) -> list[float]:
    """Return a measure of each class against all others: scores (M, C), (M,) int64 -> C numbers.

    `function` is torchmetrics' for two classes, which takes numbers from 0 to 1: it gets the ranks of the scores. NaN
    for a class that no target has, or all of them have, and where a score is NaN.
    """
    values = []
    for number in range(scores.shape[1]):
        has, score = target == number, scores[:, number]
        known = bool(has.any()) and not bool(has.all()) and not bool(score.isnan().any())
        ranks = torch.unique(score, return_inverse=True)[1].double() / len(score) if known else score
        values.append(function(ranks, has.long()).item() if known else math.nan)
    return values


def _one_against_rest(function: Any, rows: Tensor, average: Average) -> float:
    """Return the measure of class 1 where there are two classes, else its average over those that targets have."""
    rows = rows[~rows[:, -1].isnan()]  # positions that the loss ignores
    scores, target = log_odds(rows[:, :-1]), rows[:, -1].long()
    if not len(rows) or bool(rows.isnan().any()):
        return math.nan
    if scores.shape[1] == 2:
        return per_class(function, scores[:, 1:], target - 1)[0]
    values = per_class(function, scores, target)
    known = [(value, int((target == k).sum())) for k, value in enumerate(values) if value == value]
    weights = [count if average == "weighted" else 1 for _, count in known]
    return sum(v * w for (v, _), w in zip(known, weights, strict=True)) / sum(weights) if known else math.nan


def _auroc(rows: Tensor, count: float, *, average: Average) -> float:
    return _one_against_rest(torchmetrics().binary_auroc, rows, average)


def _average_precision(rows: Tensor, count: float, *, average: Average) -> float:
    return _one_against_rest(torchmetrics().binary_average_precision, rows, average)


def _kept(output: Tensor, target: Tensor) -> Tensor:
    if output.dim() == 1:
        output, target = output[:, None], target > 0
    output = output.to(torch.promote_types(output.dtype, torch.float32))  # of class numbers bf16 keeps eight bits
    return torch.cat((output, target[:, None].to(output.dtype)), 1)


_FACTS: dict[str, Any] = {"higher_is_better": True, "target": "classes", "keeps": True, "needs": torchmetrics}


@rankings.register(primary="average", finish=_auroc, **_FACTS)
def auroc(output: Tensor, target: Tensor, *, average: Average = "macro") -> Tensor:  # (M, C), (M,) -> (M, C + 1)
    """Area under the ROC curve: of class 1 where there are two classes, else averaged, each class against the rest.

    0.5 is chance, 1 a perfect ranking. Classes that no target has are left out of the average.
    """
    return _kept(output, target)


@rankings.register(
    primary="average",
    higher_is_better=True,
    target="classes",
    finish=_average_precision,
    keeps=True,
    needs=torchmetrics,
)
def average_precision(
    output: Tensor, target: Tensor, *, average: Average = "macro"
) -> Tensor:  # (M, C) or (M,), (M,) -> (M, C + 1)
    """Average precision, the area under the precision-recall curve: of class 1, or averaged over the classes.

    As scikit-learn's `average_precision_score`: a sum over the recalls that occur, without interpolation.
    """
    return _kept(output, target)
