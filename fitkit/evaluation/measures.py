"""What is measured of outcomes: the loss and each metric, as numbers that can be taken again for weighted samples."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fitkit.builder.metrics import bind_metric
from fitkit.builder.tables import default
from fitkit.engine.step import Metric
from fitkit.evaluation.intervals import ranked
from fitkit.evaluation.outcomes import Outcomes
from fitkit.parts.rankings import torchmetrics

MEASURED = {
    "classes": ("accuracy", "balanced_accuracy", "f1", "auroc", "average_precision"),
    "values": ("mean_absolute_error", "root_mean_squared_error", "r2"),
}
RANKED = {"auroc": False, "average_precision": True}  # whether it is the precision that is averaged
MOST_RANKED = 1 << 18  # targets times classes that are ranked unasked: of ten times as many, a bootstrap takes minutes


@dataclass(frozen=True, eq=False)
class Measure:
    """The loss or a metric of N samples. `hits` is which samples count, where it is a share of independent samples."""

    name: str
    value: float
    higher_is_better: bool
    weighted: Callable[[Tensor], list[float]] = field(repr=False)  # (b, N), how often each sample counts -> b values
    hits: Tensor | None = field(default=None, repr=False)  # (N,) bool


def measures(outcomes: Outcomes) -> tuple[list[Measure], list[str]]:
    """Return the loss, the metrics of the run and the usual ones; and notes on what is missing for lack of an extra."""
    found = [_loss(outcomes)]
    notes: list[str] = []
    own = {metric.name: metric for metric in outcomes.metrics}
    usual = MEASURED[outcomes.kind] if outcomes.reads != "logits" or outcomes.kind == "classes" else ()  # of labels
    for name in dict.fromkeys((*own, *usual)):
        if name == "loss":
            continue
        if name in RANKED and name not in own and not can_rank():
            notes.append(f'{name} needs an extra: pip install "fitkit[metrics]"')
            continue
        if name in RANKED and name not in own and outcomes.positions * outcomes.class_count > MOST_RANKED:
            notes.append(f"{name} takes minutes for so many targets and classes: name it in the spec's metrics for it")
            continue
        metric = own.get(name) or bind_metric(
            default("metrics", name, "metrics"), outcomes.reads, outcomes.outputs, outcomes.targets
        )
        found.append(_measure(metric, outcomes))
    return found, notes


def can_rank() -> bool:
    """Tell whether AUROC and average precision can be taken, which need an extra."""
    try:
        torchmetrics()
    except ValueError:
        return False
    return True


def _loss(outcomes: Outcomes) -> Measure:
    def weighted(weights: Tensor) -> list[float]:
        values: list[float] = ((weights @ outcomes.sums) / (weights @ outcomes.counts)).tolist()
        return values

    return Measure("loss", outcomes.loss, False, weighted)


def _measure(metric: Metric, outcomes: Outcomes) -> Measure:
    rows = metric.function(outcomes.outputs, outcomes.targets)
    if metric.keeps:

        def drawn(weights: Tensor) -> list[float]:
            weights = weights[:, outcomes.samples]
            if metric.name in RANKED:
                return _ranked(metric, outcomes, weights)
            return _finished(metric, rows, weights)

        return Measure(metric.name, metric.finish(rows, outcomes.positions), metric.higher_is_better, drawn)
    rows = rows.reshape(len(rows), -1).double()
    value = metric.finish(rows.sum(0) if rows.shape[1] > 1 else rows.sum(), outcomes.positions)
    hits = None
    if outcomes.one_each and rows.shape[1] == 1 and bool(((rows == 0) | (rows == 1)).all()):
        share = rows.sum().item() / len(outcomes)
        hits = rows[:, 0].bool() if value == share else None
    sums = torch.zeros(len(outcomes), rows.shape[1], dtype=torch.float64).index_add_(0, outcomes.samples, rows)
    counts = outcomes.samples.bincount(minlength=len(outcomes)).double()

    def weighted(weights: Tensor) -> list[float]:
        totals = zip((weights @ sums).unbind(), (weights @ counts).tolist(), strict=True)
        return [metric.finish(total if len(total) > 1 else total[0], count) for total, count in totals]

    return Measure(metric.name, value, metric.higher_is_better, weighted, hits)


def _finished(metric: Metric, rows: Tensor, weights: Tensor) -> list[float]:
    """Return a metric that needs all rows for each resample: its rows as often as they are drawn."""
    drawn = [rows.repeat_interleave(weight.long(), 0) for weight in weights]
    return [metric.finish(again, len(again)) for again in drawn]


def _ranked(metric: Metric, outcomes: Outcomes, weights: Tensor) -> list[float]:
    """Return AUROC or average precision for weights of the positions (b, M): of class 1, or the mean over classes."""
    scores, targets = outcomes.log_odds, outcomes.targets
    numbers = [1] if scores.shape[1] == 2 else [k for k, n in enumerate(targets.bincount().tolist()) if n]
    each = torch.stack([ranked(scores[:, k], targets == k, weights, precision=RANKED[metric.name]) for k in numbers])
    if isinstance(metric.finish, functools.partial) and metric.finish.keywords.get("average") == "weighted":
        counts = torch.stack([(weights * (targets == k)).sum(1) for k in numbers])
        counts = counts.where(~each.isnan(), 0)
        means = (each.nan_to_num() * counts).sum(0) / counts.sum(0)
    else:
        means = each.nanmean(0)
    values: list[float] = means.tolist()
    return values
