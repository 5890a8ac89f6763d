"""What a model is worth on some samples: loss and metrics with intervals, class by class, or residuals."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from fitkit.evaluation.calibration import ece
from fitkit.evaluation.intervals import Estimate, bootstrap, finite, wilson
from fitkit.evaluation.measures import Measure, can_rank, measures
from fitkit.evaluation.outcomes import Outcomes
from fitkit.evaluation.temperature import temperature_note
from fitkit.parts.rankings import per_class, torchmetrics

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
    found, notes = measures(outcomes)
    estimates = {measure.name: estimate(measure, len(outcomes)) for measure in found}
    if outcomes.can_be_probabilities and "ece" not in estimates:
        estimates["ece"] = ece(outcomes)
        if note := temperature_note(outcomes, "probabilities, and so ece, are"):
            notes.append(note)
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


def estimate(measure: Measure, count: int) -> Estimate:
    """Return the 95 % interval of a measure of so many samples: Wilson's for a share, else a bootstrap's."""
    if measure.hits is not None:
        return wilson(int(measure.hits.sum()), count)
    return bootstrap(measure.value, count, measure.weighted)


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
    if outcomes.can_be_probabilities and count <= MOST_CLASSES and can_rank():
        functions = (torchmetrics().binary_auroc, torchmetrics().binary_average_precision)
        areas = [per_class(function, outcomes.log_odds, outcomes.targets) for function in functions]
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
