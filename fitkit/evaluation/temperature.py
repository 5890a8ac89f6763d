"""The temperature that suits outcomes best, with its interval: by how much logits are divided (Guo et al. 2017)."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from fitkit.evaluation.intervals import Estimate, Z
from fitkit.evaluation.outcomes import Outcomes, tempered

LOWEST, HIGHEST = 0.01, 100.0  # between which a temperature is looked for
PIECE = 1 << 22  # logits that are held at a time

NOTHING = Estimate(math.nan, math.nan, math.nan, "none")


def fit_temperature(outcomes: Outcomes) -> Estimate:
    """Return the temperature that minimises the mean negative log-likelihood, each target counted once.

    The interval is that of the profile likelihood: temperatures at which the summed negative log-likelihood is at most
    1.92 above its minimum, half the 95 % point of chi-squared with one degree of freedom (Wilks 1938). That is for
    samples of one position; for several, which depend on each other, 1.92 is multiplied by the design effect (Rao and
    Scott 1984): the squares of the score summed by sample, over those by position. Its upper end is infinite where even
    probabilities that are all the same are in it. NaN where there is no optimum between 0.01 and 100: the likelihood of
    predictions that are all right grows without end as the temperature falls.
    """
    used = torch.ones(outcomes.positions, dtype=torch.bool)
    inverse = optimum(outcomes, used)
    if math.isnan(inverse):
        return NOTHING
    least, slopes, _ = _derivatives(outcomes, inverse, used)
    effect = float(by_sample(outcomes, slopes).square().sum() / slopes.square().sum().clamp(min=1e-300))
    most = least + Z**2 / 2 * effect
    ends = [_crossing(outcomes, inverse, factor, most, used) for factor in (2.0, 0.5)]
    return Estimate(1 / inverse, 1 / ends[0], 1 / ends[1] if ends[1] else math.inf, "profile likelihood")


def optimum(outcomes: Outcomes, used: Tensor, begin: float = 1.0) -> float:
    """Return the best 1 / temperature for the positions that are `used` (M,) bool, NaN where there is none.

    The likelihood is convex in it, so there is one optimum, found by Newton's method from 1 / `begin`, with bisection
    where it leaves the bracket, to 1e-12.
    """
    low, high, inverse = 1 / HIGHEST, 1 / LOWEST, 1 / begin
    _, slopes, curve = _derivatives(outcomes, high, used)
    if slopes.sum() <= 0:
        return math.nan
    for _ in range(200):
        _, slopes, curve = _derivatives(outcomes, inverse, used)
        slope = float(slopes.sum())
        low, high = (inverse, high) if slope < 0 else (low, inverse)
        newton = inverse - slope / curve if curve else math.inf
        if abs(newton - inverse) <= 1e-12 * inverse or high - low <= 1e-12 * high:
            break
        inverse = newton if low < newton < high else math.sqrt(low * high)
    return math.nan if inverse * HIGHEST < 1 + 1e-9 or not curve else inverse


def _crossing(outcomes: Outcomes, inverse: float, factor: float, most: float, used: Tensor) -> float:
    """Return where the summed negative log-likelihood exceeds `most` on the one side of the optimum; 0 for nowhere."""
    for _ in range(40):
        inverse *= factor
        if _derivatives(outcomes, inverse, used)[0] > most:
            break
    else:
        return 0.0
    for _ in range(100):  # from outside, Newton's method on a convex function never passes the root
        loss, slopes, _ = _derivatives(outcomes, inverse, used)
        step = (loss - most) / float(slopes.sum())
        inverse -= step
        if abs(step) <= 1e-9 * inverse:
            break
    return inverse


def _derivatives(outcomes: Outcomes, inverse: float, used: Tensor) -> tuple[float, Tensor, float]:
    """Return the summed negative log-likelihood, its derivative by 1 / temperature at each position, (M,), and the
    second's sum.

    The derivative of one position is E[z] - z_y, and its derivative Var[z], z being the logits under their own softmax.
    """
    slopes, loss, curve = [], 0.0, 0.0
    for part, logits, targets in pieces(outcomes):
        logits = tempered(logits, 1.0).clamp(min=-1e30)  # -inf times a probability of 0 would be NaN
        scaled = logits * inverse
        own = logits.gather(1, targets[:, None]).squeeze(1)
        losses = scaled.logsumexp(1) - own * inverse
        weighted = scaled.softmax(1).mul_(logits)
        mean = weighted.sum(1)
        spread = weighted.mul_(logits).sum(1) - mean.square()
        slopes.append(torch.where(used[part], mean - own, 0))
        loss += float(losses[used[part]].sum())
        curve += float(spread[used[part]].sum())
    return loss, torch.cat(slopes), curve


def pieces(outcomes: Outcomes) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield positions, their logits (m, C) float64, and their targets (m,), a piece at a time."""
    size = max(1, PIECE // outcomes.class_count)
    for start in range(0, outcomes.positions, size):
        part = slice(start, start + size)
        yield part, outcomes.logits(start, start + size), outcomes.targets[part]


def by_sample(outcomes: Outcomes, values: Tensor) -> Tensor:  # (M,) or (M, K) -> (N,) or (N, K)
    """Return the sums of values over the positions of each sample, float64."""
    zeros = torch.zeros(len(outcomes), *values.shape[1:], dtype=torch.float64)
    return zeros.index_add_(0, outcomes.samples, values.double())


def temperature_note(outcomes: Outcomes, what: str) -> str | None:
    """Return what is to be known of probabilities at a calibrated temperature, None without one.

    `what` names what is computed from them, as in "probabilities, and so ece, are".
    """
    if outcomes.temperature == 1:
        return None
    note = f"{what} those at the calibrated temperature {outcomes.temperature:.4g}"
    if outcomes.held_out and outcomes.part == "val":  # on which `fitkit calibrate` fits
        note += "; the temperature was fitted on these rows, so ece is optimistic"
    return note
