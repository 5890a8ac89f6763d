"""Whether probabilities are right: reliability, expected calibration error, and temperature scaling.

A model is calibrated when of all predictions made with confidence 0.8, 80 % are right. Guo et al. 2017, "On
Calibration of Modern Neural Networks", measure how far it is from that by binning, and mend much of it by one number:
logits are divided by a temperature, fitted on data that the model was not trained on. No prediction changes by it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from fitkit.errors import DataError
from fitkit.evaluation.intervals import Estimate, bootstrap, finite, wilson
from fitkit.evaluation.outcomes import Outcomes, tempered
from fitkit.evaluation.temperature import HIGHEST, LOWEST, NOTHING, by_sample, fit_temperature, optimum, pieces

BINS = 15  # as in Guo et al.
FOLDS = 5  # of a cross-fit

Spacing = Literal["width", "mass"]
Measure = Callable[[Tensor], Tensor]  # weights of the samples (b, N) -> (b,)


@dataclass(frozen=True)
class Bin:
    """Predictions with a confidence in (low, high]: the mean of it, and the share that is right; NaN for none."""

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Reliability:
    """How often predictions are right, by the confidence with which they were made: the probability of their class.

    Bins are of equal width from 0 to 1, or of equal mass: between quantiles, so that each holds as many predictions.
    """

    bins: tuple[Bin, ...]
    spacing: Spacing

    @property
    def ece(self) -> float:
        """The expected calibration error: the mean gap of confidence and accuracy over bins, weighed by count."""
        filled = [b for b in self.bins if b.count]
        return sum(b.count * abs(b.accuracy - b.confidence) for b in filled) / sum(b.count for b in filled)

    def __str__(self) -> str:
        return f"{len(self.bins)} bins of equal {self.spacing}"


@dataclass(frozen=True, kw_only=True, eq=False)
class Calibration:
    """A temperature, and what it does to probabilities: `before` is measured on raw logits, `after` with it.

    Both hold Estimates of `nll` (negative log-likelihood), `ece`, `brier` and `accuracy`, which no temperature changes;
    `change` holds after minus before. Where `folds` is not 0, the part that is measured is the one that the temperature
    was fitted on: each of that many folds of it was then measured with a temperature fitted on the others.

    `held_out` is the change of `nll` on the part that was fitted on, cross-fitted; NaN of too few samples. It decides
    whether the temperature is `saved`: where it is below 0, or where that is forced. Another part decides nothing.
    """

    part: str  # on which before and after were measured
    fitted_on: str
    samples: int
    folds: int
    temperature: Estimate
    previous: float | None  # of an earlier calibration
    held_out: Estimate
    saved: bool
    before: Mapping[str, Estimate]
    after: Mapping[str, Estimate]
    change: Mapping[str, Estimate]
    reliability_before: Reliability
    reliability_after: Reliability
    notes: tuple[str, ...] = ()

    @property
    def kept(self) -> float | None:
        """The temperature that the model has from now on, None for 1: this one where it is saved, else the previous."""
        if not self.saved:
            return self.previous
        return self.temperature.value if self.temperature.value != 1 else None

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data for strict JSON, NaN as None."""
        plain: dict[str, Any] = {"temperature": self.temperature.to_json(), "previous": self.previous}
        plain |= {"held_out": self.held_out.to_json(), "saved": self.saved}
        plain |= {"part": self.part, "fitted_on": self.fitted_on, "samples": self.samples, "folds": self.folds}
        for name, measures in (("before", self.before), ("after", self.after), ("change", self.change)):
            plain[name] = {measure: estimate.to_json() for measure, estimate in measures.items()}
        for name, found in (("before", self.reliability_before), ("after", self.reliability_after)):
            plain[f"reliability_{name}"] = {"spacing": found.spacing, "bins": [asdict(b) for b in found.bins]}
        return dict(finite(plain | {"notes": list(self.notes)}))

    def plot(self, axes: Any = None) -> Any:
        """Draw the reliability diagram before and after, and return matplotlib's figure; see `draw_reliability`."""
        from fitkit.evaluation.plots import draw_reliability

        return draw_reliability(self.reliability_before, self.reliability_after, axes=axes)

    def __str__(self) -> str:
        from fitkit.evaluation.words import calibration_in_words

        return calibration_in_words(self)

    def _repr_html_(self) -> str:
        from fitkit.evaluation.words import calibration_in_html

        return calibration_in_html(self)


@dataclass(frozen=True)
class Scores:
    """What each of M positions has at some temperature, (M,) float64 each."""

    nll: Tensor
    brier: Tensor
    confidence: Tensor  # the probability of the class that is predicted


def require_probabilities(outcomes: Outcomes) -> None:
    """Raise DataError unless the outputs can be read as finite class probabilities."""
    if outcomes.kind == "values":
        raise DataError(f"{outcomes.part}: this model predicts values, not classes: there are no probabilities.")
    if not outcomes.can_be_probabilities:
        raise DataError(f"{outcomes.part}: this model's loss gives scores that are no probabilities.")
    if not outcomes.positions:
        raise DataError(f"{outcomes.part}: the loss ignores every target, so there is nothing to measure.")
    if outcomes.outputs.isnan().any() or (outcomes.outputs == math.inf).any():
        raise DataError(f"{outcomes.part}: the model gives outputs that are NaN or infinite.")


def scores(outcomes: Outcomes, temperatures: Tensor) -> Scores:
    """Return what each position has at its temperature (M,) float64.

    The Brier score (Brier 1950) is the sum over classes of (probability - truth)², and half of it for two classes.
    """
    found: list[tuple[Tensor, ...]] = []
    predicted = outcomes.predicted
    for part, logits, targets in pieces(outcomes):
        logs = tempered(logits, temperatures[part, None]).log_softmax(1)
        chances = logs.exp()
        own = chances.gather(1, targets[:, None]).squeeze(1)
        squares = (chances.square().sum(1) - own.square() + (1 - own).square()) / (2 if logits.shape[1] == 2 else 1)
        sure = chances.gather(1, predicted[part, None]).squeeze(1)
        found.append((-logs.gather(1, targets[:, None]).squeeze(1), squares, sure))
    return Scores(*(torch.cat(values) for values in zip(*found, strict=True)))


def _edges(confidence: Tensor, bins: int, spacing: Spacing) -> Tensor:  # -> (bins + 1,) float64
    if spacing == "width":
        return torch.linspace(0, 1, bins + 1, dtype=torch.float64)
    places = torch.linspace(0, len(confidence) - 1, bins + 1, dtype=torch.float64)
    ordered, below = confidence.sort().values, places.long()
    return ordered[below].lerp(ordered[(below + 1).clamp(max=len(ordered) - 1)], places - below)


def _numbers(confidence: Tensor, edges: Tensor) -> Tensor:
    """Return the bin of each confidence: (low, high], the lowest bin with both of its ends."""
    return torch.searchsorted(edges[1:-1].contiguous(), confidence)


def _reliability(outcomes: Outcomes, confidence: Tensor, bins: int, spacing: Spacing) -> Reliability:
    edges = _edges(confidence, bins, spacing)
    numbers = _numbers(confidence, edges)
    hits = (outcomes.predicted == outcomes.targets).double()
    counts = numbers.bincount(minlength=bins)
    means = [numbers.bincount(values, minlength=bins) / counts for values in (confidence, hits)]
    columns = (edges[:-1], edges[1:], counts, *means)
    return Reliability(tuple(Bin(*row) for row in zip(*(c.tolist() for c in columns), strict=True)), spacing)


def check_bins(outcomes: Outcomes, bins: int) -> None:
    """Raise DataError for a number of bins that is none, or more than there are targets."""
    if bins < 1:
        raise DataError(f"{bins} bins: take at least one.")
    if outcomes.positions < bins:
        raise DataError(
            f"{outcomes.part}: its {outcomes.positions} rows are fewer than {bins} bins. "
            f"Take fewer bins, or a part with more rows."
        )


def reliability(
    outcomes: Outcomes, bins: int = BINS, *, spacing: Spacing = "width", temperature: float | None = None
) -> Reliability:
    """Return the reliability of probabilities at a temperature, the calibrated one unless another is given."""
    require_probabilities(outcomes)
    check_bins(outcomes, bins)
    chosen = outcomes.temperature if temperature is None else temperature
    return _reliability(outcomes, scores(outcomes, _same(outcomes, chosen)).confidence, bins, spacing)


def ece(outcomes: Outcomes, bins: int = BINS) -> Estimate:
    """Return the expected calibration error at the outcomes' temperature with its interval.

    Bins of equal width; as many as there are targets if those are fewer. Chance alone makes the error larger than 0,
    in resamples even more so: the interval is widened to hold the value.
    """
    if not outcomes.positions:  # the loss ignores them all
        return NOTHING
    bins = min(bins, outcomes.positions)
    measure = _measure_ece(outcomes, scores(outcomes, _same(outcomes, outcomes.temperature)).confidence, bins, "width")
    return _estimate(outcomes, measure, f"bootstrap; {bins} bins of equal width")


def _same(outcomes: Outcomes, temperature: float) -> Tensor:
    return torch.full((outcomes.positions,), temperature, dtype=torch.float64)


def _measure_mean(outcomes: Outcomes, values: Tensor) -> Measure:
    sums, counts = by_sample(outcomes, values), by_sample(outcomes, torch.ones(outcomes.positions))
    return lambda weights: (weights @ sums) / (weights @ counts)


def _measure_ece(outcomes: Outcomes, confidence: Tensor, bins: int, spacing: Spacing) -> Measure:
    gaps = (outcomes.predicted == outcomes.targets).double() - confidence
    places = outcomes.samples * bins + _numbers(confidence, _edges(confidence, bins, spacing))
    sums = places.bincount(gaps, minlength=len(outcomes) * bins).reshape(len(outcomes), bins)
    counts = by_sample(outcomes, torch.ones(outcomes.positions))
    return lambda weights: (weights @ sums).abs().sum(1) / (weights @ counts)


def _estimate(outcomes: Outcomes, measure: Measure, method: str = "bootstrap") -> Estimate:
    value = float(measure(torch.ones(1, len(outcomes), dtype=torch.float64)))
    found = bootstrap(value, len(outcomes), lambda weights: measure(weights).tolist())
    return Estimate(value, min(found.low, value), max(found.high, value), method)


def _accuracy(outcomes: Outcomes) -> Estimate:
    hits = outcomes.predicted == outcomes.targets
    if outcomes.one_each:
        return wilson(float(hits.sum()), len(outcomes))
    return _estimate(outcomes, _measure_mean(outcomes, hits))


def calibrate(
    outcomes: Outcomes,
    measured: Outcomes | None = None,
    *,
    bins: int = BINS,
    spacing: Spacing = "width",
    force: bool = False,
) -> Calibration:
    """Fit a temperature on outcomes that the model was not trained on, and measure what it does to another part.

    Without another part it is measured on the same one: cross-fitted, since numbers on what a temperature was fitted
    on flatter it. It is to be saved where the cross-fitted negative log-likelihood falls by it, or by `force`. Where no
    temperature is best (see `fit_temperature`), it is 1, and a note says so.
    """
    shown = measured or outcomes
    for one in (outcomes, shown):
        require_probabilities(one)
        if scores(one, _same(one, 1.0)).nll.isinf().any():
            raise DataError(f"{one.part}: a sample's own class has probability 0, which no temperature changes.")
    check_bins(shown, bins)
    found = fit_temperature(outcomes)
    best = 1.0 if math.isnan(found.value) else found.value
    enough = len(outcomes) >= 2 * FOLDS
    held = scores(outcomes, _cross_fitted(outcomes, FOLDS, best)) if enough else None
    after = held if held is not None and measured is None else scores(shown, _same(shown, best))
    before = scores(shown, _same(shown, 1.0))
    measures = [_measures(shown, one, bins, spacing) for one in (before, after)]
    estimates = [{name: _estimate(shown, measure) for name, measure in one.items()} for one in measures]
    accuracy = {"accuracy": _accuracy(shown)}
    held_out = NOTHING if held is None else _nll_change(outcomes, held)
    return Calibration(
        part=shown.part,
        fitted_on=outcomes.part,
        samples=len(shown),
        folds=FOLDS if enough and measured is None else 0,
        temperature=Estimate(best, found.low, found.high, found.method),
        previous=None if outcomes.temperature == 1 else outcomes.temperature,
        held_out=held_out,
        saved=force or (held_out.value < 0 and not math.isnan(found.value)),
        before=estimates[0] | accuracy,
        after=estimates[1] | accuracy,
        change={name: _estimate(shown, _difference(measures[0][name], measures[1][name])) for name in measures[0]},
        reliability_before=_reliability(shown, before.confidence, bins, spacing),
        reliability_after=_reliability(shown, after.confidence, bins, spacing),
        notes=tuple(_notes(outcomes, found, enough)),
    )


def _nll_change(outcomes: Outcomes, after: Scores) -> Estimate:
    before = scores(outcomes, _same(outcomes, 1.0))
    return _estimate(outcomes, _difference(_measure_mean(outcomes, before.nll), _measure_mean(outcomes, after.nll)))


def _cross_fitted(outcomes: Outcomes, folds: int, begin: float) -> Tensor:  # (M,) float64
    """Return for each position the temperature that is fitted on the folds in which its sample is not."""
    order = torch.randperm(len(outcomes), generator=torch.Generator().manual_seed(0))
    fold = torch.empty_like(order)
    fold[order] = torch.arange(len(outcomes)) % folds
    fold = fold[outcomes.samples]
    found = [1 / optimum(outcomes, fold != number, begin) for number in range(folds)]
    return torch.tensor(found, dtype=torch.float64).nan_to_num(1.0)[fold]


def _measures(outcomes: Outcomes, found: Scores, bins: int, spacing: Spacing) -> dict[str, Measure]:
    return {
        "nll": _measure_mean(outcomes, found.nll),
        "ece": _measure_ece(outcomes, found.confidence, bins, spacing),
        "brier": _measure_mean(outcomes, found.brier),
    }


def _difference(one: Measure, other: Measure) -> Measure:
    return lambda weights: other(weights) - one(weights)


def _notes(outcomes: Outcomes, found: Estimate, enough: bool) -> Iterator[str]:
    if math.isnan(found.value):
        why = f"no temperature between {LOWEST:g} and {HIGHEST:g} is best on {outcomes.part}"
        if bool((outcomes.predicted == outcomes.targets).all()):
            why = f"every prediction on {outcomes.part} is right, so nothing tells how sure the model may be"
        yield f"{why}: calibrate on more samples."
    if not enough:
        yield f"{len(outcomes):,} samples are too few to cross-fit: `after` is measured on what was fitted on."
