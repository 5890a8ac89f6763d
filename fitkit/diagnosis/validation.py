"""Rules about what the validation part can tell, and about what the model predicts for it."""

from __future__ import annotations

import math

from fitkit.diagnosis import patch
from fitkit.diagnosis.evidence import Evidence
from fitkit.diagnosis.finding import Finding, counted
from fitkit.diagnosis.trend import standard_error, wilson
from fitkit.errors import listing, show

FEW_ROWS = 30
LEAST = 3  # rows of a class that is missed
SWAMPED = 0.8  # of the rows in one class: the loss is small for who never predicts another
WIDE = 0.03  # half an interval of accuracy from which on it is worth a word


def rare_class_never_predicted(run: Evidence) -> Finding | None:
    """Find classes that are never predicted where one class has most of the rows: all else then follows from that."""
    return class_never_predicted(run) if (run.chance("val_accuracy") or 0.0) >= SWAMPED else None


def class_never_predicted(run: Evidence) -> Finding | None:
    """Find classes that validation rows have and the model never gives."""
    found = run.predictions
    if found is None or len(found.true) != len(found.predicted):
        return None
    counts = enumerate(zip(found.true, found.predicted, strict=True))
    missing = [i for i, (true, given) in counts if true >= LEAST and not given]
    if not missing:
        return None
    names = found.names if len(found.names) == len(found.true) else tuple(map(str, range(len(found.true))))
    words = [f"{show(names[i])} ({counted(found.true[i], 'row')})" for i in missing]
    text = f"The model predicts {'a class' if len(missing) == 1 else 'classes'} never: {listing(words)}."
    advice = "Look at the classes' weights and counts: give each the same weight in the loss, or more rows."
    return Finding("class_never_predicted", "warning", text, advice, patch.balanced(run))


def constant_predictions(run: Evidence) -> Finding | None:
    """Find a model whose output does not depend on its input."""
    found = run.predictions
    if found is None or found.spread is None or (run.rows or 2) < 2:
        return None
    scale = 1.0 if found.true else found.target_spread or 0.0
    if found.spread > 1e-3 * scale:
        return None
    text = f"The model gives the same output for every row: its standard deviation over the rows is {found.spread:.2g}."
    advice = "Look for dead units (ReLU after a large negative bias or a huge step), saturated ones, or a zero input."
    return Finding("constant_predictions", "warning", text, advice, patch.usual_lr(run))


def no_better_than_largest_class(run: Evidence) -> Finding | None:
    """Find an accuracy that is high only because one class is."""
    accuracy, largest, rows = run.curve("val_accuracy"), run.chance("val_accuracy"), run.rows
    if accuracy is None or largest is None or rows is None or largest < 0.6:
        return None
    right = accuracy.at(run.best_epoch or 0) or accuracy.end
    if right - largest > standard_error(largest, rows):
        return None
    text = (
        f"val_accuracy is {right:.3g}, and {largest:.3g} of the rows are of the largest class: it tells nothing more."
    )
    advice = "Weigh the classes equally, and measure what sees the small ones: recall a class, F1, AUROC."
    return Finding("no_better_than_largest_class", "warning", text, advice, patch.balanced(run))


def validation_too_small(run: Evidence) -> Finding | None:
    """Find a validation part of so few rows that its numbers are mostly luck."""
    rows = run.rows
    if rows is None or run.val_loss is None or rows >= FEW_ROWS:
        return None
    text = f"The validation part has {counted(rows, 'row')}"
    accuracy = run.curve("val_accuracy")
    if accuracy is not None:
        right = accuracy.at(run.best_epoch or 0) or accuracy.end
        low, high = wilson(right, rows)
        text += f": an accuracy of {right:.3g} may as well be anything from {low:.2f} to {high:.2f} (95 %)"
    advice = "Validate on more rows, or on every row once by cross-validation (splits: kfold)."
    return Finding("validation_too_small", "warning", f"{text}.", advice, patch.more_validation(run))


def noisy_validation(run: Evidence) -> Finding | None:
    """Find a validation curve whose epochs cannot be told apart."""
    val, loss = run.val_loss, run.loss
    if val is None or loss is None or len(val) < 6:
        return None
    tail = val.tail(0.5)
    advice = "Trust no single epoch: validate on more rows, let lr fall to 0, or average the weights (EMA)."
    fix = patch.more_validation(run) or patch.cosine(run)
    if tail.noise > max(0.05 * run.scale, 0.15 * abs(tail.end), 3 * loss.tail(0.5).noise):
        text = (
            f"val_loss scatters by ±{tail.noise:.2g} from epoch to epoch around {tail.end:.3g}, the training loss by "
            f"±{loss.tail(0.5).noise:.2g}."
        )
        return Finding("noisy_validation", "warning", text, advice, fix)
    accuracy, rows = run.curve("val_accuracy"), run.rows
    if accuracy is None or rows is None:
        return None
    late = accuracy.tail(0.5)
    low, high = wilson(late.end, rows)
    apart = max(late.values) - min(late.values)
    if apart == 0 or high - low < max(apart, 2 * WIDE):
        return None
    text = (
        f"val_accuracy differs by {apart:.3f} between the last {len(late)} epochs, and its 95 % interval with {rows:,} "
        f"rows is {high - low:.3f} wide ({low:.3f} to {high:.3f}): none of these epochs is known to be better."
    )
    return Finding("noisy_validation", "info", text, advice, patch.more_validation(run))


def half_interval(value: float, rows: int | None) -> str:
    """Return " (95 %: low to high)" of an accuracy, empty where the rows are not known."""
    if not rows or not math.isfinite(value):
        return ""
    low, high = wilson(value, rows)
    return f" (95 %: {low:.3f} to {high:.3f})"
