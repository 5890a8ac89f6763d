"""Rules that compare training with validation: what was learnt, and whether it holds for rows that were not seen."""

from __future__ import annotations

import math

from fitkit.diagnosis import patch
from fitkit.diagnosis.evidence import Evidence
from fitkit.diagnosis.finding import Finding, Severity, counted
from fitkit.diagnosis.optimization import CHANCE, falling, share
from fitkit.diagnosis.trend import standard_error


def no_signal(run: Evidence) -> Finding | None:
    """Find a training loss that falls below a constant prediction's while the validation loss never does."""
    loss, val, chance = run.loss, run.val_loss, run.chance("val_loss")
    if loss is None or val is None or chance is None or len(val) < 3:
        return None
    learnt = loss.end < CHANCE * (run.chance("loss") or chance) and val.end - loss.end > 0.03 * chance
    if val.lowest < 0.93 * chance or not learnt:
        return None
    text = (
        f"Next to nothing of what was learnt holds for new rows: the training loss fell to {loss.end:.3g}, but "
        f"val_loss is {val.lowest:.3g} at its best, and a constant prediction has {chance:.3g}."
    )
    advice = "See that targets belong to their rows (shuffled labels look like this), and that inputs tell about them."
    return Finding("no_signal", "warning", text, advice)


def overfitting(run: Evidence) -> Finding | None:
    """Find a validation loss that rises while the training loss falls, or scores far apart."""
    loss, val = run.loss, run.val_loss
    if loss is None or val is None or len(val) < 3:
        return None
    fixes = (*patch.early_stopping(run), *patch.more_decay(run), *patch.more_dropout(run))
    advice = "More regularization (weight decay, dropout, augmentation), a smaller model, or more training data."
    epoch = val.epochs[val.best]
    rise, begin = val.end - val.lowest, loss.at(epoch)
    if begin is not None and begin > 0 and len(val) - val.best > 2:
        fall = (begin - loss.end) / begin
        if rise > max(0.05 * run.scale, 0.1 * abs(val.lowest), 3 * val.noise) and fall > 0.1:
            text = (
                f"From epoch {epoch} of {run.epochs} on: val_loss +{share(rise, abs(val.lowest))} ({val.lowest:.3g} to "
                f"{val.end:.3g}) while loss −{100 * fall:.0f} % ({begin:.3g} to {loss.end:.3g})."
            )
            return Finding("overfitting", "warning", text, advice, fixes)
    return _gap(run, advice)


def _gap(run: Evidence, advice: str) -> Finding | None:
    """Find scores that are much better for training rows than for others, in the best epoch or the last."""
    loss, val, scale = run.loss, run.val_loss, run.scale
    assert loss is not None and val is not None
    for epoch in (run.best_epoch or val.epochs[val.best], val.epochs[-1]):
        train, held = loss.at(epoch), val.at(epoch)
        if train is not None and held is not None and held - train > 0.15 * scale and train < 0.5 * held:
            break
    else:
        return None
    text = f"Training rows are fitted far better than new ones: loss {train:.3g}, val_loss {held:.3g} in epoch {epoch}"
    accuracy, val_accuracy = run.curve("accuracy"), run.curve("val_accuracy")
    if accuracy is not None and val_accuracy is not None:
        own, new = accuracy.at(epoch), val_accuracy.at(epoch)
        if own is None or new is None or own - new < max(0.1, 3 * standard_error(new, run.rows or 100)):
            return None
        text += f", accuracy {own:.3g} and {new:.3g}"
    rows = run.samples.get("train")
    text += f", with {counted(rows, 'training row')}." if rows else "."
    return Finding("overfitting", "warning", text, advice, (*patch.more_decay(run), *patch.more_dropout(run)))


def underfitting(run: Evidence) -> Finding | None:
    """Find a training loss that stays high and falls no more, while validation is no worse."""
    loss, val, chance = run.loss, run.val_loss, run.chance("loss")
    if loss is None or chance is None or chance <= 0 or len(loss) < 5:
        return None
    smoothing = run.number("loss", "label_smoothing") or 0.0
    explained = 1 - loss.end / chance
    gap = (val.end - loss.end) / chance if val is not None else 0.0
    if explained >= 0.65 or gap > 0.2 or smoothing > 0 or falling(loss) * len(loss) > 0.15 * chance:
        return None
    below = share(chance - loss.end, chance)
    text = f"The training loss stays at {loss.end:.3g}, only {below} below a constant prediction"
    accuracy = run.curve("accuracy")
    if explained >= 0.25:
        if accuracy is None:
            return None
        guessed = 1 / max(run.classes or 2, 2)
        if (accuracy.end - guessed) / (1 - guessed) < 0.45:  # right less often than not, beyond what guessing gives
            text += f", with an accuracy of {accuracy.end:.3g}"
        elif loss.end > _calibrated(accuracy.end, run):
            text += f", and higher than its accuracy of {accuracy.end:.3g} needs: the outputs are held small"
        else:
            return None
    if val is not None:
        text += f"; val_loss is {val.end:.3g}, so it is not overfitting"
    decay, dropout = patch.less_decay(run), patch.less_dropout(run)
    why = ["a lower weight decay"] * bool(decay) + ["less dropout"] * bool(dropout)
    advice = f"Give the model more room: {', '.join([*why, 'more or wider layers, or other features'])}."
    if not why:
        advice += " Or the inputs tell no more than this about the target."
    return Finding("underfitting", "warning", f"{text}.", advice, decay or dropout or patch.wider(run))


def _calibrated(accuracy: float, run: Evidence) -> float:
    """Return the cross entropy of one that is right with this share, knows it, and spreads the rest evenly."""
    classes = max(run.classes or 2, 2)
    share = min(max(accuracy, 1 / classes), 1 - 1e-6)
    return -share * math.log(share) - (1 - share) * math.log((1 - share) / (classes - 1))


def train_worse_than_val(run: Evidence) -> Finding | None:
    """Find a training loss that stays above the validation loss, and not because it is a mean over a falling epoch.

    The training loss of the epoch after is compared, which begins with the weights that were validated.
    """
    loss, val, scale = run.loss, run.val_loss, run.scale
    if loss is None or val is None or len(val) < 4 or (run.number("loss", "label_smoothing") or 0) > 0:
        return None
    tail = val.tail(0.5)
    pairs = [(loss.at(epoch + 1) or loss.end, value) for epoch, value in zip(tail.epochs, tail.values, strict=True)]
    train = sum(own for own, _ in pairs) / len(pairs)
    held = sum(value for _, value in pairs) / len(pairs)
    if held <= 0 or train - held < 0.05 * scale or train < 1.25 * held:
        return None
    drawn = 2 * held / math.sqrt(run.rows or 100)  # the standard error of a mean of losses, which have long tails
    if train - held < 4 * drawn:
        return None
    dropout = patch.dropout_of(run)
    severity: Severity = "warning" if train - held > 0.12 * scale and train > 1.4 * held else "info"
    cause = f" The dropout is {dropout:g}." if dropout else ""
    text = (
        f"Training rows are fitted worse than new ones: loss {train:.3g}, val_loss {held:.3g} on average over the last "
        f"half of the run.{cause}"
    )
    advice = (
        "Dropout or augmentation makes training harder than it need be: lower it."
        if dropout
        else "Without dropout or augmentation, look whether validation rows are in the training part, or easier."
    )
    return Finding("train_worse_than_val", severity, text, advice, patch.less_dropout(run))


def leak(run: Evidence) -> Finding | None:
    """Find a validation score that is too good to be true."""
    val, chance, rows = run.val_loss, run.chance("val_loss"), run.rows or 0
    if val is None or chance is None or chance <= 0 or val.lowest > 0.0015 * chance or rows < 30:
        return None
    text = f"val_loss is {val.lowest:.2g}, {share(val.lowest, chance)} of a constant prediction's {chance:.3g}"
    accuracy = run.curve("val_accuracy")
    if accuracy is not None:
        right = max(accuracy.values)
        if right < 1:
            return None
        text += f", and all of {rows:,} rows were right from epoch {accuracy.epochs[accuracy.values.index(right)]} on"
    advice = (
        "That is too good for most data: look for a column that gives the target away, and for validation rows that "
        "are in the training part too."
    )
    return Finding("leak", "warning", f"{text}.", advice)
