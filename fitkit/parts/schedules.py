"""Schedules: what the learning rate is multiplied by, as functions of the progress of the run.

A schedule is a pure function `(progress, *, arguments) -> multiplier`; progress runs from 0 to 1. `bind_schedule` ties
one to a number of steps: the multiplier is then a function of the number of optimizer steps applied so far, nothing is
remembered between steps, and a resumed run needs that one integer.

With `t` steps applied out of `total`, and `w` of them for warm-up, the next step is taken with

    t < w:   multiplier = (t + 1) / w * schedule(0)
    t >= w:  multiplier = schedule((t - w) / (total - w)), and schedule(1) from t = total on

Without warm-up these are torch's `LinearLR`, `CosineAnnealingLR`, `PolynomialLR`, `ExponentialLR` and `MultiStepLR`,
step by step: the value at progress 1 is the one that a step after the last would have. `OneCycleLR` alone counts
otherwise: torch puts its peak on step `pct_start * total - 1` and its floor on the last step; here they are at
`pct_start * total` and at the end of the run, one step later, as in every other schedule. A drop that waits for a
metric, `ReduceLROnPlateau`, has a memory and so is a callback.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

from fitkit.spec.component import Component
from fitkit.spec.table import Table
from fitkit.spec.types import Fraction, NonNegative, NonNegativeInt, Positive


def warmup_steps(component: Component, total_steps: int, *, warmup: NonNegativeInt | Fraction = 0) -> int:
    """Return the number of warm-up steps: `warmup` itself from 1 on, below 1 that fraction of the run.

    A warm-up that leaves no step for the schedule is a `SpecError`.
    """
    steps = int(warmup) if warmup >= 1 else round(warmup * total_steps)
    if steps >= total_steps:
        raise component.error(
            f"the warm-up takes {steps} steps and the whole run has {total_steps}. "
            "Give fewer steps, or a fraction of the run such as 0.05.",
            "warmup",
        )
    return steps


schedules = Table("schedule", shared=warmup_steps)


def bind_schedule(component: Component, total_steps: int) -> Callable[[int], float]:
    """Return the multiplier of the learning rate as a function of the number of optimizer steps applied so far.

    `total_steps` is the number of optimizer steps of the whole run, at least 1.
    """
    schedule = functools.partial(component.entry.factory, **component.own())
    warm = warmup_steps(component, total_steps, **component.shared())
    if component.entry.factory is constant and not warm:  # the multiplier is asked for before every step
        return lambda step: 1.0

    def multiplier(step: int) -> float:
        if step < warm:
            return float((step + 1) / warm * schedule(0.0))
        return float(schedule(min(1.0, (step - warm) / (total_steps - warm))))

    return multiplier


@schedules.register
def constant(progress: float) -> float:
    """The learning rate as it is, from the first step (or the end of the warm-up) to the last."""
    return 1.0


@schedules.register(primary="end")
def linear(progress: float, *, end: NonNegative = 0.0) -> float:
    """A straight line from 1 to `end`."""
    return 1.0 + (end - 1.0) * progress


@schedules.register(primary="end")
def cosine(progress: float, *, end: NonNegative = 0.0) -> float:
    """Half a cosine wave from 1 to `end`: slow, fast, slow (arXiv:1608.03983)."""
    return _cosine(1.0, end, progress)


@schedules.register(primary="power")
def polynomial(progress: float, *, power: Positive = 2.0, end: NonNegative = 0.0) -> float:
    """From 1 to `end` as (1 - progress)^power: 1 is a straight line, more than 1 falls fast and ends slowly."""
    return end + (1.0 - end) * (1.0 - progress) ** power  # type: ignore[no-any-return]


@schedules.register(primary="end")
def exponential(progress: float, *, end: Positive = 0.01) -> float:
    """From 1 to `end` by the same factor every step: end^progress."""
    return end**progress  # type: ignore[no-any-return]


@schedules.register
def step(progress: float, *, at: list[Fraction], factor: Positive = 0.1) -> float:
    """Multiply by `factor` at each of the points `at`, given as fractions of the run: [0.5, 0.75]."""
    return factor ** sum(progress >= point for point in at)


@schedules.register
def one_cycle(
    progress: float,
    *,
    pct_start: Fraction = 0.3,
    div_factor: Positive = 25.0,
    final_div_factor: Positive = 1e4,
) -> float:
    """Up from 1 / `div_factor` to 1, then down to 1 / (`div_factor` * `final_div_factor`), both on a cosine.

    `pct_start` is the part of the run that goes up; `lr` is the peak (arXiv:1708.07120). Momentum is left alone, as in
    torch's `OneCycleLR(cycle_momentum=False)`.
    """
    start = 1.0 / div_factor
    if progress < pct_start:
        return _cosine(start, 1.0, progress / pct_start)
    return _cosine(1.0, start / final_div_factor, (progress - pct_start) / (1.0 - pct_start))


def _cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * progress))
