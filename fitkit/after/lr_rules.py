"""How a sweep of the learning rate is read: smoothing, where it ends, and the rules that suggest a learning rate."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

DIVERGED = 4.0  # times the lowest running mean, as in fastai and Lightning
WINDOW = 20  # a mean reaches over this part of the sweep
EDGE = 0.1  # of the fall from the plateau to the minimum: before and after it no descent counts
LEAST_FALL = 5.0  # standard errors, below which a fall may be noise
STEEPEST = "the steepest descent of the smoothed loss (LR range test of Smith 2017; `steep` of fastai)"
TENTH = "a tenth of the lr with the lowest smoothed loss (`minimum` of fastai, Howard & Gugger 2020)"


@dataclass(frozen=True)
class Reading:
    """What a sweep says: see `LRFind`."""

    smoothed: list[float]
    ended: str
    suggestion: float | None
    rule: str
    candidates: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def running_mean(losses: Sequence[float], steps: int) -> list[float]:
    """Return the exponential moving average of losses, divided by 1 - β^i as Adam does (Kingma & Ba 2015, section 3).

    β is 1 - 20 / `steps`: the mean reaches back over a twentieth of the sweep, however many steps that has.
    """
    beta, mean, means = 1 - WINDOW / steps, 0.0, []
    for number, loss in enumerate(losses, 1):
        mean = beta * mean + (1 - beta) * loss
        means.append(mean / (1 - beta**number))
    return means


def smoothed(losses: Sequence[float], steps: int) -> list[float]:
    """Return the mean of the running means from both ends: unlike one of them it does not lag behind the loss."""
    ahead, back = running_mean(losses, steps), running_mean(losses[::-1], steps)[::-1]
    return [(one + other) / 2 for one, other in zip(ahead, back, strict=True)]


def length(losses: Sequence[float], steps: int) -> tuple[int, str]:
    """Return how many losses there are before the sweep has diverged, and why there are no more."""
    lowest = math.inf
    for number, loss in enumerate(losses):
        if not math.isfinite(loss):
            return number, "the loss is not finite"
    for number, mean in enumerate(means := running_mean(losses, steps)):
        lowest = min(lowest, mean)
        if mean > max(means[0], lowest + (DIVERGED - 1) * abs(lowest)):
            return number, "the loss diverged"
    return len(losses), ""


def read(lr: Sequence[float], losses: Sequence[float], steps: int) -> Reading:
    """Return what the losses (n,) at growing learning rates (n,) say, of a sweep of `steps` >= n."""
    count, ended = length(losses, steps)
    losses, opening = losses[:count], steps // 8  # a decade of the usual eight
    curve = smoothed(losses, steps)
    if count == 0:
        return Reading(curve, ended, None, "the first loss is not finite at any lr. Look for a bug in model or data.")
    if count <= opening:
        return Reading(curve, ended, None, f"{ended} at lr {lr[count]:.1e} already. Start much lower.")
    lowest = min(range(opening, count), key=curve.__getitem__)
    plateau = statistics.fmean(losses[:opening])
    fall = plateau - curve[lowest]
    noise = statistics.pstdev([loss - mean for loss, mean in zip(losses, curve, strict=True)][:lowest])
    error = noise * math.sqrt(1 / opening + WINDOW / 2 / steps)  # of a mean of so many, and of one of about 2/(1 - β)
    if fall <= max(LEAST_FALL * error, 1e-6 * abs(plateau)):
        why = f"the loss does not fall by more than its noise, from {plateau:.4g} to {curve[lowest]:.4g}"
        rather = "Look for a bug in model or data" if ended else "End higher, or look for a bug in model or data"
        return Reading(curve, ended, None, f"{why}. {rather}.")
    candidates = {TENTH: _short(lr[lowest] / 10), STEEPEST: _short(lr[_steepest(curve, lowest, plateau, steps)])}
    still = lowest >= count - steps // WINDOW and not ended
    notes = ("the loss was lowest at the end of the sweep, and had not risen again: end higher",) if still else ()
    return Reading(curve, ended, candidates[TENTH], TENTH, candidates, notes)


def _steepest(curve: Sequence[float], lowest: int, plateau: float, steps: int) -> int:
    """Return where a curve falls fastest by the logarithm of the learning rate, on its way to the minimum."""
    fall, wide = plateau - curve[lowest], max(1, steps // 80)
    first = max((i for i in range(lowest) if curve[i] >= plateau - EDGE * fall), default=0)
    last = next((i for i in range(first, lowest) if curve[i] <= curve[lowest] + EDGE * fall), lowest)
    ends = len(curve) - 1
    return min(range(first, last + 1), key=lambda i: curve[min(i + wide, ends)] - curve[max(i - wide, 0)])


def _short(value: float) -> float:
    return float(f"{value:.1e}")
