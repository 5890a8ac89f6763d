"""Diagnosis in words: what the numbers of a run say about it, and what to change.

    evidence  --rules-->  findings  --ranked, without what others explain-->  Diagnosis

Everything here is a pure function of plain numbers and imports the standard library only. Rules stand in three files:
how the training loss moves, training against validation, and what the validation part can tell.
"""

from __future__ import annotations

from collections.abc import Callable

from fitkit.diagnosis import generalization, optimization, validation
from fitkit.diagnosis.evidence import Evidence, Predictions
from fitkit.diagnosis.finding import Diagnosis, Finding

__all__ = ["Diagnosis", "Evidence", "Finding", "Predictions", "diagnose"]

EVERYTHING = "*"

# The rules in the order of rank, and what is not said beside their findings, since it follows from them.
RULES: list[tuple[Callable[[Evidence], Finding | None], tuple[str, ...]]] = [
    (optimization.failure, (EVERYTHING,)),
    (optimization.divergence, (EVERYTHING,)),
    (optimization.learning_rate_too_high, (EVERYTHING,)),
    (optimization.target_not_scaled, (EVERYTHING,)),
    (optimization.batch_too_large, (EVERYTHING,)),
    (optimization.learning_rate_too_low, (EVERYTHING,)),
    (validation.rare_class_never_predicted, (EVERYTHING,)),
    (validation.constant_predictions, (EVERYTHING,)),
    (optimization.not_learning, (EVERYTHING,)),
    (generalization.no_signal, (EVERYTHING,)),
    (generalization.leak, ("plateau", "noisy_validation", "train_longer")),
    (validation.no_better_than_largest_class, ("underfitting", "plateau", "train_longer")),
    (generalization.overfitting, ("underfitting", "plateau", "train_longer", "noisy_validation")),
    (generalization.train_worse_than_val, ()),
    (optimization.plateau, ("underfitting", "train_longer")),
    (generalization.underfitting, ("plateau", "train_longer", "class_never_predicted")),
    (validation.class_never_predicted, ("plateau",)),
    (optimization.train_longer, ()),
    (validation.validation_too_small, ("noisy_validation",)),
    (validation.noisy_validation, ()),
]
ALWAYS = ("validation_too_small",)  # true beside everything
RANK = ("error", "warning", "info")


def diagnose(run: Evidence) -> Diagnosis:
    """Return the diagnosis of a run: findings by severity and then by rank, and the verdict."""
    findings: list[Finding] = []
    explained: set[str] = set()
    for rule, follows in RULES:
        found = rule(run)
        if found is None or found.name in explained or (EVERYTHING in explained and found.name not in ALWAYS):
            continue
        findings.append(found)
        if found.severity != "info":
            explained.update(follows)
    findings.sort(key=lambda finding: RANK.index(finding.severity))
    return Diagnosis(tuple(findings), _verdict(run, findings), _cannot_tell(run))


def _verdict(run: Evidence, findings: list[Finding]) -> str:
    if findings and findings[0].severity != "info":
        others = sum(finding.severity != "info" for finding in findings) - 1
        more = f" ({others} more finding{'s' if others > 1 else ''})" if others else ""
        text = findings[0].text
        return f"{findings[0].title}: {text[0].lower()}{text[1:]}{more}"
    if run.epochs == 0:
        return "nothing to tell: no epoch was finished."
    words = []
    val, loss, chance = run.val_loss, run.loss, run.chance("val_loss")
    epoch = run.best_epoch or (val.epochs[val.best] if val else run.epochs)
    for column in ("val_loss", "val_accuracy", "val_r2"):
        curve = run.curve(column)
        if curve is not None and epoch in curve.epochs:
            value = curve.values[curve.epochs.index(epoch)]
            tail = validation.half_interval(value, run.rows) if column == "val_accuracy" else ""
            if column == "val_loss" and chance:
                side = "below" if value <= chance else "above"
                tail = f", {optimization.share(abs(chance - value), chance)} {side} a constant prediction"
            words.append(f"{column} {value:.4g}{tail}")
    end = f"loss {loss.values[-1]:.4g}" if loss is not None else ""
    if end and (epoch == run.epochs or not words):  # one epoch has all of it
        words, end, epoch = [*words, end], "", run.epochs
    said = f"{'; '.join(words)} in epoch {epoch} of {run.epochs}{f'; {end} in the last' if end else ''}"
    return f"too early to tell: {said}." if run.epochs < optimization.FEW_EPOCHS else f"looks healthy: {said}."


def _cannot_tell(run: Evidence) -> tuple[str, ...]:
    cannot_tell = []
    if 0 < run.epochs < optimization.FEW_EPOCHS:
        there = f"there is {run.epochs}" if run.epochs == 1 else f"there are {run.epochs}"
        cannot_tell.append(
            f"trends, such as overfitting or a plateau: {optimization.FEW_EPOCHS} epochs are needed, and {there}."
        )
    if run.val_loss is None and run.epochs:
        cannot_tell.append("overfitting, and whether anything holds for new rows: nothing was validated.")
    if run.epochs and not run.baseline:
        cannot_tell.append(
            "whether the model is better than a constant prediction: the history does not hold that number."
        )
    return tuple(cannot_tell)
