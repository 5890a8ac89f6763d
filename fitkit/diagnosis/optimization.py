"""Rules about how the training loss moves: whether it is minimised at all, too fast, too slowly, or not any more.

A rule is a pure function of the evidence that returns a finding or None. Changes of a loss are measured in shares of
the loss of the best constant prediction, so that one threshold serves cross entropies and squared errors alike.
"""

from __future__ import annotations

import math
import re

from fitkit.diagnosis import patch
from fitkit.diagnosis.evidence import Evidence, usable
from fitkit.diagnosis.finding import Finding, Severity, counted
from fitkit.diagnosis.trend import Curve
from fitkit.errors import FAILED

LIMITS = ("all ", "max_")  # how `History.stopped` begins when a limit of `fit:` ended the run
FEW_EPOCHS = 4  # with fewer no trend can be told
LEAST_EPOCHS = 5  # with fewer no run is said to get nowhere: the first epochs bring an output to where the targets are
CHANCE = 0.97  # of a constant prediction's loss: what is not below has learnt next to nothing


def share(value: float, scale: float) -> str:
    """Return a part of a scale as text, in percent."""
    return f"{100 * value / scale:.3g} %"


def lr_text(run: Evidence) -> str:
    """Return the learning rate as the spec has it, as text; empty where it is not known."""
    lr = run.number("optimizer", "lr")
    return f" (lr {lr:g})" if lr else ""


def failure(run: Evidence) -> Finding | None:
    """Find that training ended with an error."""
    if not run.stopped.startswith(FAILED):
        return None
    reason = run.stopped.removeprefix(FAILED)
    if not re.search(r"\b(nan|inf|infinity|never finite)\b", reason, re.IGNORECASE):
        return Finding(
            "failure", "error", f"Training failed after {counted(run.epochs, 'epoch')}: {reason}", "See the reason."
        )
    text = f"Training diverged after {counted(run.epochs, 'whole epoch')}{lr_text(run)}: {reason}"
    advice = "Make smaller steps, clip the gradient, and see that inputs and targets are scaled."
    return Finding("divergence", "error", text, advice, patch.calmer(run))


def divergence(run: Evidence) -> Finding | None:
    """Find a training loss that is not finite, or ends far above what it had reached and what a constant gives."""
    broken = [e for e, v in enumerate(run.columns.get("loss", ()), 1) if not usable(v)]
    curve = run.loss
    advice = "Make smaller steps: a lower lr, a warm-up, or a clipped gradient (fit.clip_norm: 1.0)."
    if broken:
        count = counted(len(broken), "epoch")
        text = f"The training loss is not finite in {count}, first in epoch {broken[0]}{lr_text(run)}."
        return Finding("divergence", "error", text, advice, patch.calmer(run))
    if curve is None or len(curve) < 3:
        return None
    low = min(curve.values)
    if curve.end < max(3 * low, low + 0.5 * run.scale) or curve.values.index(low) == len(curve) - 1:
        return None
    text = (
        f"The training loss rose from {low:.3g} in epoch {curve.epochs[curve.values.index(low)]} to {curve.end:.3g} "
        f"at the end{lr_text(run)}."
    )
    return Finding("divergence", "error", text, advice, patch.calmer(run))


def learning_rate_too_high(run: Evidence) -> Finding | None:
    """Find a training loss that jumps: up again and again, or in its first epochs far over a constant prediction's."""
    curve, scale = run.loss, run.scale
    if curve is None:
        return None
    advice = "Lower lr, or warm it up (schedule: {cosine: {warmup: 0.1}}). Inputs that are not scaled look the same."
    early = max(curve.values[:3])
    start = max(
        run.chance("loss") or 0.0, math.log(max(run.classes or 1, 1))
    )  # a model that does not prefer any class yet
    if start and run.classifies and early > 1.5 * start:
        text = (
            f"The training loss was {early:.3g} in epoch {curve.epochs[curve.values.index(early)]}, where guessing "
            f"has {start:.3g}: the first steps threw the weights far off{lr_text(run)}."
        )
        fixes = (*patch.scaled_inputs(run), *patch.calmer(run))
        return Finding("learning_rate_too_high", "warning", text, advice, fixes)
    if len(curve) < 5:
        return None
    rest = Curve(curve.epochs[1:], curve.values[1:])
    rises = sum(b > a + 0.02 * scale for a, b in zip(rest.values, rest.values[1:], strict=False))
    if rises < 2 or rest.climbs < 0.3 * scale or rest.climbs < 0.5 * (max(rest.values) - min(rest.values)):
        return None
    text = (
        f"The training loss jumps: it rose in {rises} of {len(rest)} epochs by more than 2 % of a constant "
        f"prediction's, {rest.climbs:.3g} in all, and ends at {curve.end:.3g}{lr_text(run)}."
    )
    return Finding("learning_rate_too_high", "warning", text, advice, patch.calmer(run))


def falling(curve: Curve, part: float = 0.4) -> float:
    """Return by how much a curve falls an epoch in its last part, 0 unless that is more than its noise."""
    tail = curve.tail(part)
    slope, error = tail.slope
    if len(tail) < 3:
        return max(0.0, -slope)
    return -slope if slope < -2.5 * error else 0.0


def still_falling(run: Evidence) -> tuple[float, float] | None:
    """Return how much a training loss above that of a constant prediction falls an epoch, and how many more it takes
    to 30 % of it.

    None unless it falls by more than its noise and another run as long would be seen: the outputs are still on their
    way to the targets, and nothing can be said yet of a model that does not learn.
    """
    curve, chance = run.loss, run.chance("loss")
    if curve is None or chance is None or chance <= 0 or len(curve) < 2 or curve.values[-1] < CHANCE * chance:
        return None
    fall = falling(curve) or (falling(curve, 1.0) if len(curve) < 2 * LEAST_EPOCHS else 0.0)
    return (fall, (curve.end - 0.3 * chance) / fall) if fall * len(curve) > 0.01 * chance else None


def pace(run: Evidence) -> tuple[float, float] | None:
    """Return how much the training loss falls an epoch, and how many more it takes to 30 % of chance's.

    The fall is that of the middle of the run, where a schedule has not yet taken the learning rate away, and None when
    nothing falls there, or a tenth of the chance's loss would not be gained in as many epochs again.
    """
    curve = run.loss
    if curve is None or len(curve) < 3:
        return None
    half = Curve(curve.epochs[len(curve) // 4 :], curve.values[len(curve) // 4 :])
    middle = Curve(half.epochs[: max(3, len(half) * 2 // 3)], half.values[: max(3, len(half) * 2 // 3)])
    fall = falling(middle, 1.0)
    goal = 0.3 * (run.chance("loss") or curve.first)
    return (fall, (curve.end - goal) / fall) if fall > 0 else None


def slow(run: Evidence) -> tuple[float, float] | None:
    """Return `pace` where both losses have hardly come down, went down steadily, and need as long again at least."""
    found, curve = pace(run), run.loss
    if found is None or curve is None or len(curve) < 5:
        return None
    chance = run.chance("loss") or curve.first
    if curve.end < 0.6 * chance or curve.first > 1.2 * chance or found[1] < len(curve):
        return None
    val = run.val_loss
    if val is not None and (val.first - val.end < 0.5 * (curve.first - curve.end) or curve.end > 1.25 * val.end):
        return None  # what is learnt does not hold for other rows, or training is made harder than need be
    third = max(2, len(curve) // 3)
    early = (curve.first - curve.values[third - 1]) / (third - 1)  # a loss that has levelled off was faster before
    steady = found[0] > 0.3 * early and found[0] * len(curve) > 0.02 * chance
    return found if steady and not _levelled_off(run) else None


def _levelled_off(run: Evidence) -> bool:
    """Tell whether the last third of a run gained little for its learning rate, beside the third before it.

    A schedule takes the learning rate away: what is compared is the fall divided by the sum of the rates. Rates that
    have come to nothing tell nothing by what is gained with them, and those epochs are left out.
    """
    curve, rates = run.loss, run.columns.get("lr", ())
    if curve is None or len(curve) < 9 or len(rates) < curve.epochs[-1] or not all(map(usable, rates)):
        return False
    top = max(rates)
    if top <= 0 or min(rates) > 0.5 * top:  # no schedule to speak of: the slopes were compared
        return False
    kept = [i for i, epoch in enumerate(curve.epochs) if rates[epoch - 1] > 0.02 * top]
    third = len(kept) // 3
    if third < 2:
        return False
    first, middle, last = (kept[i] for i in (-1 - 2 * third, -1 - third, -1))
    gains = []
    for a, b in ((first, middle), (middle, last)):
        spent = sum(rates[curve.epochs[i] - 1] for i in range(a + 1, b + 1))
        gains.append((curve.values[a] - curve.values[b]) / spent)
    return gains[1] < 0.4 * gains[0]


def batch_too_large(run: Evidence) -> Finding | None:
    """Find a run that makes so few steps an epoch that it gets nowhere."""
    steps, curve, found = run.steps_per_epoch, run.loss, slow(run)
    if steps is None or curve is None or steps > 4 or found is None:
        return None
    fix = patch.smaller_batches(run)
    if not fix:
        return None
    text = (
        f"An epoch is {'one step' if steps == 1 else f'{steps} steps'} of {run.samples['train']:,} rows, the whole run "
        f"{steps * run.epochs:,}, and the training loss went only from {curve.first:.3g} to {curve.end:.3g}."
    )
    return Finding("batch_too_large", "warning", text, "Take smaller batches: more steps an epoch.", fix)


def learning_rate_too_low(run: Evidence) -> Finding | None:
    """Find a training loss that falls steadily, and so slowly that another run as long would not bring it down."""
    curve, found = run.loss, slow(run) or _on_its_way(run)
    if curve is None or found is None:
        return None
    fall, more = found
    rates = run.curve("lr")
    scheduled = rates is not None and rates.values[-1] < 0.5 * max(rates.values)
    lr = lr_text(run)
    if rates is not None and scheduled:
        lr += f", which the schedule had brought to {rates.values[-1]:.2g} in the last,"
    text = (
        f"The training loss fell slowly, from {curve.first:.3g} to {curve.end:.3g} in {counted(len(curve), 'epoch')}"
        f"{lr}: at {fall:.2g} an epoch it needs {more:.0f} more to come to 30 % of a constant "
        "prediction's."
    )
    return Finding("learning_rate_too_low", "warning", text, "Raise lr.", patch.raised_lr(run, more / len(curve)))


def _on_its_way(run: Evidence) -> tuple[float, float] | None:
    """Return `still_falling` where as many epochs again are not enough, or a callback would not give them."""
    found, curve = still_falling(run), run.loss
    if found is None or curve is None or len(curve) < LEAST_EPOCHS or curve.first > 1.2 * (run.chance("loss") or 0.0):
        return None
    return found if found[1] >= len(curve) or not run.stopped.startswith(LIMITS) else None


def not_learning(run: Evidence) -> Finding | None:
    """Find a training loss that does not come below that of a constant prediction."""
    curve, chance = run.loss, run.chance("loss")
    if curve is None or chance is None or chance <= 0 or len(curve) < LEAST_EPOCHS:
        return None
    if curve.lowest < CHANCE * chance or still_falling(run):
        return None
    text = (
        f"The training loss does not get below that of a constant prediction: {curve.end:.4g} after "
        f"{counted(run.epochs, 'epoch')}, {chance:.4g} for the constant."
    )
    advice = (
        "The model does not see its inputs, or cannot use them: look for dead or saturated units, a wrong lr, inputs "
        "that are not scaled, and targets that do not belong to their rows."
    )
    return Finding("not_learning", "warning", text, advice, patch.usual_lr(run))


def target_not_scaled(run: Evidence) -> Finding | None:
    """Find a regression that is still above a constant prediction, because its targets are large numbers."""
    curve, chance = run.loss, run.chance("loss")
    if curve is None or chance is None or run.classifies or chance < 100 or curve.end < 0.9 * chance:
        return None
    found, factor, limited = still_falling(run), 10.0, run.stopped.startswith(LIMITS)
    if len(curve) < LEAST_EPOCHS or (found and found[1] < len(curve) and limited):  # then train longer
        return None
    if found:
        factor = found[1] / len(curve)
    text = (
        f"The training loss is {curve.end:.3g} after {counted(run.epochs, 'epoch')}, that of a constant "
        f"prediction {chance:.3g}: the targets are so large that the model has not even come to their mean."
    )
    advice = "Scale the target (to mean 0, standard deviation 1), or raise lr."
    return Finding("target_not_scaled", "warning", text, advice, patch.raised_lr(run, factor))


def plateau(run: Evidence) -> Finding | None:
    """Find a loss that stands still for half the run or more: since the learning rate was taken away, or by itself."""
    curve, rates = run.loss, run.curve("lr")
    if curve is None or len(curve) < 8:
        return None
    near = max(min(0.01 * run.scale, 0.05 * abs(curve.end)), 2 * curve.tail(0.5).noise)
    levels = [i for i, value in enumerate(curve.smooth) if value - curve.end > near]
    still = levels[-1] + 1 if levels else 0  # the first index from which the loss stays where it ends
    if len(curve) - still < 0.5 * len(curve) or still == 0:
        return None
    epoch, top = curve.epochs[still], max(rates.values) if rates else 0.0
    late = rates.at(min(curve.epochs[-1], epoch + 1)) if rates else None
    fell = (curve.values[0] - curve.end) > 0.1 * run.scale
    text = f"The training loss has stood at {curve.end:.3g} since epoch {epoch} of {run.epochs}"
    if top and late is not None and late < 0.02 * top and fell:
        text += f", when the schedule had brought lr from {top:.3g} down to {late:.2g}."
        advice = "Let the learning rate fall later, or over the whole run."
        return Finding("plateau", "warning", text, advice, patch.cosine(run))
    if run.stopped.startswith("val_"):
        return None
    advice = "Nothing changed for half of the run: it could be shorter, or its lr could fall from there on."
    return Finding("plateau", "info", f"{text}.", advice, patch.cosine(run))


def train_longer(run: Evidence) -> Finding | None:
    """Find a run that was still getting better when it ended."""
    curve = run.val_loss or run.loss
    limited = run.stopped.startswith(LIMITS)  # else a callback found that it was enough
    if curve is None or len(curve) < 2 or not limited or not (fix := patch.longer(run)):
        return None
    column = "val_loss" if run.val_loss is not None else "loss"
    last = curve.values[-1] <= min(curve.values)
    fall = falling(curve)
    epochs = max(1, round(0.25 * len(curve)))
    gain = fall * epochs  # what another quarter of the run would bring at this pace
    above = still_falling(run)
    if not last and gain < 0.02 * run.scale and above is None:
        return None
    enough = gain > 0.03 * run.scale and gain > 0.08 * abs(curve.end)
    much = (enough or above is not None) and run.epochs >= FEW_EPOCHS
    if not much and not last:
        return None
    text = (
        f"The best epoch is the last, {curve.epochs[-1]}: {column} {curve.values[-1]:.4g}"
        if last
        else (f"{column} still falls at the end, {curve.values[-1]:.4g} in epoch {curve.epochs[-1]}")
        if fall > 0
        else f"{column} is {curve.values[-1]:.4g} in epoch {curve.epochs[-1]}, the last"
    )
    begin = abs(curve.tail(0.4).first)  # of the part in which the fall was measured
    text += f", and falls by {share(fall, begin)} an epoch." if fall > 0 and begin and len(curve) >= FEW_EPOCHS else "."
    if much and above and run.loss:
        text += (
            f" The training loss still falls, from {run.loss.first:.4g} to {run.loss.values[-1]:.4g}, and has not come "
            f"below a constant prediction's {run.chance('loss'):.4g} yet."
        )
    severity: Severity = "warning" if much else "info"
    advice = "Train longer: the run ended before the model was done." if much else "A longer run may be better still."
    return Finding("train_longer", severity, text, advice, fix)
