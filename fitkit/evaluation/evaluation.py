"""What a model is worth on some samples: loss and metrics with intervals, class by class, or residuals."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from fitkit.builder.metrics import bind_metric
from fitkit.builder.tables import default
from fitkit.engine.step import Metric
from fitkit.evaluation.calibration import ece
from fitkit.evaluation.intervals import Estimate, bootstrap, finite, ranked, wilson
from fitkit.evaluation.outcomes import Outcomes
from fitkit.parts.rankings import per_class, torchmetrics

MEASURED = {
    "classes": ("accuracy", "balanced_accuracy", "f1", "auroc", "average_precision"),
    "values": ("mean_absolute_error", "root_mean_squared_error", "r2"),
}
RANKED = {"auroc": False, "average_precision": True}  # whether it is the precision that is averaged
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
MOST_CLASSES = 1000  # of which a confusion matrix is made


@dataclass(frozen=True)
class ClassRow:
    """How one class fares: NaN where a measure has no value, as the precision of a class that is never predicted."""

    name: str
    precision: float
    recall: float
    f1: float
    support: int  # targets of this class
    predicted: int  # predictions of this class
    auroc: float = math.nan
    average_precision: float = math.nan


@dataclass(frozen=True)
class Residuals:
    """Prediction minus target of all values: a mean far from 0 is a bias."""

    mean: float
    standard_deviation: float
    quantiles: Mapping[float, float]


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation(Mapping[str, float]):
    """Loss and metrics by name, as a mapping, and what is behind them.

    `estimates` holds the 95 % intervals, `classes` a row a class and `confusion` how many targets of class i (row) were
    taken for class j (column), None for a regression; `residuals` is None for a classification.
    """

    part: str
    samples: int
    positions: int
    estimates: Mapping[str, Estimate]
    classes: tuple[ClassRow, ...] | None = None
    confusion: Tensor | None = field(default=None, repr=False)  # (C, C) int64
    residuals: Residuals | None = None
    notes: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> float:
        return self.estimates[name].value

    def __iter__(self) -> Iterator[str]:
        return iter(self.estimates)

    def __len__(self) -> int:
        return len(self.estimates)

    def interval(self, name: str) -> tuple[float, float]:
        """Return the ends of the 95 % interval of a measure."""
        return self.estimates[name].low, self.estimates[name].high

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data for strict JSON, NaN as None: measures by their names first."""
        plain: dict[str, Any] = {name: estimate.value for name, estimate in self.estimates.items()}
        plain |= {"part": self.part, "samples": self.samples, "positions": self.positions}
        plain["intervals"] = {
            name: {"low": e.low, "high": e.high, "method": e.method} for name, e in self.estimates.items()
        }
        plain["classes"] = None if self.classes is None else [asdict(row) for row in self.classes]
        plain["confusion"] = None if self.confusion is None else self.confusion.tolist()
        plain["residuals"] = self.residuals and {
            "mean": self.residuals.mean,
            "standard_deviation": self.residuals.standard_deviation,
            "quantiles": {f"{q:g}": value for q, value in self.residuals.quantiles.items()},
        }
        plain["notes"] = list(self.notes)
        return dict(finite(plain))

    def __str__(self) -> str:
        from fitkit.evaluation.words import in_words

        return in_words(self)

    def _repr_html_(self) -> str:
        from fitkit.evaluation.words import in_html

        return in_html(self)


def evaluate(outcomes: Outcomes) -> Evaluation:
    """Return loss and metrics with their intervals, and the classes or residuals behind them.

    Metrics are those of the run and the usual ones. Samples are what is drawn again for intervals, so the tokens of one
    text stay together. AUROC and average precision need the extra `metrics`; a note says where it is missing.
    """
    estimates = {"loss": _loss(outcomes)}
    notes: list[str] = []
    own = {metric.name: metric for metric in outcomes.metrics}
    for name in (*own, *MEASURED[outcomes.kind]):
        if name in estimates:
            continue
        if name in RANKED and name not in own and not _can_rank():
            notes.append(f'{name} needs an extra: pip install "fitkit[metrics]"')
            continue
        metric = own.get(name) or bind_metric(
            default("metrics", name, "metrics"), outcomes.reads, outcomes.outputs, outcomes.targets
        )
        estimates[name] = _estimate(metric, outcomes)
    if outcomes.can_be_probabilities and "ece" not in estimates:
        estimates["ece"] = ece(outcomes)
        if outcomes.temperature != 1:
            notes.append(
                f"probabilities, and so ece, are those at the calibrated temperature {outcomes.temperature:.4g}"
            )
    facts: dict[str, Any] = {}
    if outcomes.kind == "classes":
        confusion = confusion_matrix(outcomes)
        facts = {"classes": _classes(outcomes, confusion), "confusion": confusion}
        silent = [row.name for row in facts["classes"] if not row.support]
        if silent:
            notes.append(f"no sample has the class {', '.join(silent[:5])}{', …' if len(silent) > 5 else ''}")
    elif outcomes.reads != "logits":
        facts = {"residuals": _residuals(outcomes)}
    return Evaluation(
        part=outcomes.part,
        samples=len(outcomes),
        positions=outcomes.positions,
        estimates=estimates,
        notes=tuple(notes),
        **facts,
    )


def _can_rank() -> bool:
    try:
        torchmetrics()
    except ValueError:
        return False
    return True


def _loss(outcomes: Outcomes) -> Estimate:
    def measure(weights: Tensor) -> list[float]:
        values: list[float] = ((weights @ outcomes.sums) / (weights @ outcomes.counts)).tolist()
        return values

    return bootstrap(outcomes.loss, len(outcomes), measure)


def _estimate(metric: Metric, outcomes: Outcomes) -> Estimate:
    rows = metric.function(outcomes.outputs, outcomes.targets)
    if metric.keeps:
        value = metric.finish(rows, outcomes.positions)
        if metric.name in RANKED:
            return bootstrap(value, len(outcomes), lambda w: _ranked(metric.name, outcomes, w[:, outcomes.samples]))
        return bootstrap(value, len(outcomes), lambda w: _finished(metric, rows, w[:, outcomes.samples]))
    rows = rows.reshape(len(rows), -1).double()
    value = metric.finish(rows.sum(0) if rows.shape[1] > 1 else rows.sum(), outcomes.positions)
    if outcomes.one_each and rows.shape[1] == 1 and bool(((rows == 0) | (rows == 1)).all()):
        hits = rows.sum().item()
        if value == hits / len(outcomes):  # a share of independent samples
            return wilson(hits, len(outcomes))
    sums = torch.zeros(len(outcomes), rows.shape[1], dtype=torch.float64).index_add_(0, outcomes.samples, rows)
    counts = outcomes.samples.bincount(minlength=len(outcomes)).double()

    def measure(weights: Tensor) -> list[float]:
        totals = zip((weights @ sums).unbind(), (weights @ counts).tolist(), strict=True)
        return [metric.finish(total if len(total) > 1 else total[0], count) for total, count in totals]

    return bootstrap(value, len(outcomes), measure)


def _finished(metric: Metric, rows: Tensor, weights: Tensor) -> list[float]:
    """Return a metric that needs all rows for each resample: its rows as often as they are drawn."""
    drawn = [rows.repeat_interleave(weight.long(), 0) for weight in weights]
    return [metric.finish(again, len(again)) for again in drawn]


def _ranked(name: str, outcomes: Outcomes, weights: Tensor) -> list[float]:
    """Return AUROC or average precision for weights of the positions (b, M): of class 1, or the mean over classes."""
    scores = outcomes.log_probabilities(1.0)
    numbers = [1] if scores.shape[1] == 2 else [k for k, n in enumerate(outcomes.targets.bincount().tolist()) if n]
    each = [ranked(scores[:, k], outcomes.targets == k, weights, precision=RANKED[name]) for k in numbers]
    values: list[float] = torch.stack(each).nanmean(0).tolist()
    return values


def confusion_matrix(outcomes: Outcomes) -> Tensor | None:  # (C, C) int64
    """Return how many targets of class i (row) were taken for class j (column); None for too many classes."""
    count = outcomes.class_count
    if count > MOST_CLASSES:
        return None
    pairs = outcomes.targets * count + outcomes.predicted
    return pairs.bincount(minlength=count**2).reshape(count, count)


def _classes(outcomes: Outcomes, confusion: Tensor | None) -> tuple[ClassRow, ...]:
    count = outcomes.class_count
    support = outcomes.targets.bincount(minlength=count).tolist()
    predicted = outcomes.predicted.bincount(minlength=count).tolist()
    right = outcomes.targets[outcomes.targets == outcomes.predicted].bincount(minlength=count).tolist()
    areas = [[math.nan] * count] * 2
    if outcomes.can_be_probabilities and count <= MOST_CLASSES and _can_rank():
        functions = (torchmetrics().binary_auroc, torchmetrics().binary_average_precision)
        areas = [per_class(function, outcomes.probabilities(1.0), outcomes.targets) for function in functions]
    rows = []
    for k, name in enumerate(outcomes.class_names):
        both = support[k] + predicted[k]
        rows.append(
            ClassRow(
                name=name,
                precision=right[k] / predicted[k] if predicted[k] else math.nan,
                recall=right[k] / support[k] if support[k] else math.nan,
                f1=2 * right[k] / both if both else math.nan,
                support=support[k],
                predicted=predicted[k],
                auroc=areas[0][k],
                average_precision=areas[1][k],
            )
        )
    return tuple(rows)


def _residuals(outcomes: Outcomes) -> Residuals:
    errors = (outcomes.predicted.double() - outcomes.targets.double()).flatten()
    quantiles = errors.quantile(torch.tensor(QUANTILES, dtype=torch.float64)).tolist() if len(errors) < 1 << 24 else []
    spread = errors.std().item() if len(errors) > 1 else math.nan
    return Residuals(errors.mean().item(), spread, dict(zip(QUANTILES, quantiles, strict=False)))
