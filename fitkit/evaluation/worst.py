"""The samples that a model does worst on, and those whose label is suspected to be wrong."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fitkit.errors import DataError
from fitkit.evaluation.intervals import finite
from fitkit.evaluation.outcomes import Outcomes
from fitkit.evaluation.samples import Sample, decode, read_samples, text_of
from fitkit.evaluation.temperature import temperature_note

MOST_POSITIONS = 200  # targets of one sample that are listed
LEAST_RECALL = 0.5  # of a class whose labels are suspected
LEAST_ACCURACY = 0.7  # of a model that any label is suspected by
MOST_SUSPECTED = 0.1  # of the samples: where more are, it is the model that is wrong
MOST_NAMED = 5  # classes in a note
BETTER = "look for errors on val or test, best of all with the held-out predictions of a cross-validation."


@dataclass(frozen=True, kw_only=True)
class Example:
    """One sample beside what the model makes of it.

    `target` and `prediction` are the name of a class, a number, a text, or a list where a sample has several;
    `confidence` is the mean probability of what is predicted, None where there is none. `residual` is how far the
    prediction is from the target (of several values the root of the sum of squares), None for classes. `loss` is of
    classes the mean of -log p(target), of the same probabilities as the confidence: at the calibrated temperature,
    without class weights or label smoothing. It is the run's own loss where there are no probabilities.
    """

    row: int  # in the data, from 0
    line: int | None = None  # of the file, from 1, where it is a CSV
    target: Any
    prediction: Any
    confidence: float | None
    loss: float
    residual: float | None
    sample: Sample | None = None  # None where outcomes do not know their data, as those of several folds

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data, an image without its pixels."""
        found = {"row": self.row, "line": self.line, "target": self.target, "prediction": self.prediction}
        found |= {"confidence": self.confidence, "loss": self.loss, "residual": self.residual}
        return found | {"sample": self.sample and self.sample.to_json()}


@dataclass(frozen=True, kw_only=True)
class LabelError:
    """A sample that the model takes for another class than its label says, and is as sure of as it usually is there.

    Confidences are the probabilities of both classes.
    """

    row: int
    line: int | None = None
    given: str
    suggested: str
    confidence: float  # in the suggested label
    given_confidence: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Worst(Sequence[Example]):
    """Examples, the worst first, and suspected label errors, the surest first; those are None where none are sought."""

    part: str
    samples: int
    examples: tuple[Example, ...]
    label_errors: tuple[LabelError, ...] | None = None
    notes: tuple[str, ...] = ()

    def __getitem__(self, index: Any) -> Any:
        return self.examples[index]

    def __iter__(self) -> Iterator[Example]:
        return iter(self.examples)

    def __len__(self) -> int:
        return len(self.examples)

    def with_lines(self, lines: Sequence[int]) -> Worst:
        """Return the same with the line of each row in its file, `lines[row]`."""
        errors = self.label_errors and tuple(replace(error, line=lines[error.row]) for error in self.label_errors)
        return replace(self, label_errors=errors, examples=tuple(replace(e, line=lines[e.row]) for e in self.examples))

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data for strict JSON, NaN as None; images without their pixels."""
        errors = self.label_errors
        return dict(
            finite(
                {
                    "part": self.part,
                    "samples": self.samples,
                    "examples": [e.to_json() for e in self.examples],
                    "label_errors": None if errors is None else [asdict(error) for error in errors],
                    "notes": list(self.notes),
                }
            )
        )

    def __str__(self) -> str:
        from fitkit.evaluation.words import worst_in_words

        return worst_in_words(self)

    def _repr_html_(self) -> str:
        from fitkit.evaluation.words import worst_in_html

        return worst_in_html(self)


def worst(outcomes: Outcomes, count: int = 20) -> Worst:
    """Return the samples with the highest loss, of a regression those with the largest residual, and label errors.

    See `Example` for what the loss is, and `suspects` for when no label is suspected. A sample whose loss is NaN stands
    first; one that the loss ignores is left out.
    """
    if count < 1:
        raise DataError(f"{count} examples: ask for at least one.")
    losses = _losses(outcomes)
    residuals = _residuals(outcomes) if outcomes.kind == "values" and outcomes.reads != "logits" else None
    ranks = losses if residuals is None else residuals
    ranks = torch.where(outcomes.counts > 0, ranks.nan_to_num(math.inf, math.inf, -math.inf), -math.inf)
    order = ranks.argsort(descending=True, stable=True)[:count].tolist()
    chosen = [number for number in order if outcomes.counts[number] > 0]
    samples = [None] * len(chosen) if outcomes.batches is None else read_samples(outcomes, chosen)
    examples = [_example(outcomes, n, float(losses[n]), residuals, s) for n, s in zip(chosen, samples, strict=True)]
    notes: list[str] = []
    errors = None
    if outcomes.can_be_probabilities and outcomes.one_each:
        errors, why = suspects(outcomes)
        notes += why or ([] if errors else ["no label is suspected to be wrong"])
        if outcomes.part == "train":
            notes.append(f"the model was trained on these labels, so it may have learned the wrong ones: {BETTER}")
        elif errors and not outcomes.held_out:
            notes.append(f"labels that the model was trained on are no evidence: {BETTER}")
    if outcomes.can_be_probabilities and (note := temperature_note(outcomes, "confidence and -log p(target) are")):
        notes.append(note)
    return Worst(
        part=outcomes.part, samples=len(outcomes), examples=tuple(examples), label_errors=errors, notes=tuple(notes)
    )


def _losses(outcomes: Outcomes) -> Tensor:  # (N,) float64
    if not outcomes.can_be_probabilities:
        return outcomes.sums / outcomes.counts
    own = outcomes.log_probabilities().gather(1, outcomes.targets[:, None]).squeeze(1)
    sums = torch.zeros(len(outcomes), dtype=torch.float64).index_add_(0, outcomes.samples, -own)
    return sums / outcomes.samples.bincount(minlength=len(outcomes))


def _residuals(outcomes: Outcomes) -> Tensor:  # (N,) float64
    errors = (outcomes.predicted.double() - outcomes.targets.double()).reshape(outcomes.positions, -1)
    squares = torch.zeros(len(outcomes), dtype=torch.float64).index_add_(0, outcomes.samples, errors.square().sum(1))
    return squares.sqrt()


def _example(outcomes: Outcomes, number: int, loss: float, residuals: Tensor | None, sample: Sample | None) -> Example:
    first, end = torch.searchsorted(outcomes.samples, torch.tensor([number, number + 1])).tolist()
    part = replace(
        outcomes,
        outputs=outcomes.outputs[first:end],
        targets=outcomes.targets[first:end],
        samples=torch.zeros(end - first, dtype=torch.int64),
    )
    confidence = None
    if outcomes.can_be_probabilities:
        confidence = float(part.probabilities().gather(1, part.predicted[:, None]).mean())
    return Example(
        row=int(outcomes.rows[number]),
        target=_named(outcomes, part.targets),
        prediction=_named(outcomes, part.predicted),
        confidence=confidence,
        loss=loss,
        residual=None if residuals is None else float(residuals[number]),
        sample=sample,
    )


def _named(outcomes: Outcomes, values: Tensor) -> Any:
    """Return the targets or predictions of one sample as plain data: one alone, several as a list or a text."""
    if outcomes.kind == "classes" and (characters := text_of(outcomes)) is not None:
        return decode(values.tolist(), characters)
    listed = values.flatten()[:MOST_POSITIONS].tolist()
    if outcomes.kind == "classes":
        names = outcomes.class_names
        listed = [names[number] for number in listed]
    return listed[0] if len(listed) == 1 else listed


def suspects(outcomes: Outcomes) -> tuple[tuple[LabelError, ...], list[str]]:
    """Return the label errors of a model that can tell, and a note for each reason why some or all are left out.

    A model that knows nothing of a class takes its samples for others, which says nothing of their labels. So none is
    suspected whose label is a class with a recall below 0.5; and none at all where accuracy is below 0.7, or where more
    than 10 % of the samples would be suspected.
    """
    hits = outcomes.predicted == outcomes.targets
    accuracy = float(hits.double().mean())
    if accuracy < LEAST_ACCURACY:
        return (), [f"label errors: the model is too weak to tell: accuracy {accuracy:.3f}, below {LEAST_ACCURACY:g}"]
    counts = outcomes.targets.bincount(minlength=outcomes.class_count)
    recalls = outcomes.targets[hits].bincount(minlength=outcomes.class_count) / counts  # NaN without samples
    weak = [number for number, recall in enumerate(recalls.tolist()) if recall < LEAST_RECALL]
    names, notes = outcomes.class_names, []
    if weak:
        listed = ", ".join(f"{names[number]} {float(recalls[number]):.3f}" for number in weak[:MOST_NAMED])
        listed += f" and {len(weak) - MOST_NAMED:,} more" if len(weak) > MOST_NAMED else ""
        left = f"none of their {int(counts[weak].sum()):,} labels is suspected"
        notes.append(
            f"label errors: the model is too weak to tell for recalls below {LEAST_RECALL:g} ({listed}): {left}"
        )
    unknown = {names[number] for number in weak}
    errors = tuple(error for error in label_errors(outcomes) if error.given not in unknown)
    if len(errors) > MOST_SUSPECTED * len(outcomes):
        share = f"{len(errors):,} of {len(outcomes):,} labels would be suspected, more than {MOST_SUSPECTED:.0%}"
        return (), [f"label errors: the model is too weak to tell: {share.replace('%', ' %')}"]
    return errors, notes


def label_errors(outcomes: Outcomes) -> tuple[LabelError, ...]:
    """Return the samples whose label is suspected to be wrong, by confident learning (Northcutt et al. 2021).

    A class's threshold is the mean probability that the samples with its label give it. A sample counts as one of the
    class that is likeliest among those whose threshold it reaches; where that is not its label, and the model predicts
    another class too, the label is suspected. The order is that of the margin: the probability of the label minus that
    of the likeliest other class, lowest first. Outcomes must be of samples that the model was not trained on: those of
    val and test are, and the merged ones of all folds of a cross-validation cover every row.

    What is listed is mostly wrong, and not all that is wrong is listed: of 5 % flipped labels of digits 63 to 85 % are,
    with 86 to 96 % of the list right (12 nets of 2 or 5 folds).
    """
    if not (outcomes.can_be_probabilities and outcomes.one_each):
        raise DataError(f"{outcomes.part}: label errors are found where a sample has one class, with probabilities.")
    chances, targets = outcomes.probabilities(), outcomes.targets
    own = chances.gather(1, targets[:, None]).squeeze(1)
    sums = torch.zeros(chances.shape[1], dtype=torch.float64).index_add_(0, targets, own)
    thresholds = sums / targets.bincount(minlength=chances.shape[1])  # NaN for a class without samples: none reaches it
    counted = torch.where(chances >= thresholds, chances, -1.0)
    sure, likeliest = counted.max(1)
    suspected = (sure >= 0) & (likeliest != targets) & (outcomes.predicted != targets)
    margins = own - chances.scatter(1, targets[:, None], -1.0).amax(1)
    names = outcomes.class_names
    order = [n for n in margins.argsort(stable=True).tolist() if suspected[n]]
    return tuple(
        LabelError(
            row=int(outcomes.rows[n]),
            given=names[int(targets[n])],
            suggested=names[int(likeliest[n])],
            confidence=float(sure[n]),
            given_confidence=float(own[n]),
        )
        for n in order
    )
