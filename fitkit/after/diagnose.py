"""The diagnosis of a run folder: its history, and what the model predicts for the validation part."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fitkit import run_folder
from fitkit.after.finished import rows_so_far
from fitkit.after.run_outcomes import read_outcomes
from fitkit.diagnosis import Diagnosis, Predictions
from fitkit.diagnosis.finding import counted
from fitkit.errors import FAILED, CheckpointError, FitkitError, SpecError
from fitkit.evaluation.outcomes import Outcomes
from fitkit.history import History
from fitkit.spec import reader

NEEDS_PREDICTIONS = "whether some class is never predicted, or all rows get the same output"


def diagnose(run: History | Path | str, *, root: Path | str | None = None) -> Diagnosis:
    """Return what the numbers of a run say about it, in words, with spec patches to try.

    Args:
        run: a History, or a run folder, whose validation part is predicted too where data and model can be had.
        root: where the paths of the run's data start; the working directory unless given.

    What an interrupted run had come to is diagnosed, and `cannot_tell` says so. Raises CheckpointError for a folder
    that holds no run, or one that still goes on or is damaged, and SpecError for that of a cross-validation, whose
    folds are runs.
    """
    if isinstance(run, History):
        return run.diagnose()
    folder = Path(run)
    run_folder.refuse_links(folder)
    if folds := run_folder.fold_folders(folder):
        raise SpecError(f"{folder}: every fold of a cross-validation has a diagnosis: name one, such as {folds[0]}.")
    history, unfinished = _read(folder)
    found = _diagnosed(history, folder, None if root is None else Path(root))
    return dataclasses.replace(found, cannot_tell=(*unfinished, *found.cannot_tell))


def _diagnosed(history: History, folder: Path, root: Path | None) -> Diagnosis:
    if history.stopped.startswith(FAILED) or not (folder / run_folder.WEIGHTS).is_file() or "val_loss" not in history:
        return history.diagnose()
    try:
        outcomes = read_outcomes(folder, "val", root, command="diagnose")
    except FitkitError as error:
        diagnosis = history.diagnose()
        reason = str(error).split("\n")[0]
        cannot_tell = (*diagnosis.cannot_tell, f"{NEEDS_PREDICTIONS}: {reason}")
        return dataclasses.replace(diagnosis, cannot_tell=cannot_tell)
    return history.diagnose(predictions(outcomes))


def _read(folder: Path) -> tuple[History, tuple[str, ...]]:
    """Return the history of a run that has ended, whatever way, and what cannot be told where that was too early."""
    if not (folder / run_folder.RESOLVED).is_file():
        raise CheckpointError(f"{folder}: this is not a run folder: there is no {run_folder.RESOLVED} in it.")
    status = run_folder.status(folder)
    summarized = (folder / run_folder.SUMMARY).exists()
    whole, rows = (folder / run_folder.HISTORY_JSON).exists(), (folder / run_folder.HISTORY_CSV).exists()
    if status == "running" and (summarized or not (whole or rows)):
        there = f"its rows so far are in {run_folder.HISTORY_CSV}" if rows else "there is no history to read yet"
        raise CheckpointError(
            f"{folder}: this run is still going on, or was killed: {there}. If it was killed, go on with it: "
            "fitkit fit SPEC --out FOLDER --resume."
        )
    history = run_folder.read_history(folder) if whole or summarized else rows_so_far(folder, _spec(folder))
    if status == "running":
        ends = f"how the run ended: there is no {run_folder.SUMMARY}, which says it. It has {_done(history)}."
        return history, (ends,)
    if status == "interrupted":
        more = "go on with it: fitkit fit SPEC --out FOLDER --resume."
        return history, (f"how the run would have ended: it was interrupted after {_done(history)}; {more}",)
    if status == "failed" and not history.stopped.startswith(FAILED):  # of an earlier version, or the disk was full
        history.stopped = f"{FAILED}{history.stopped or 'its error was not noted.'}"
    return history, ()


def _done(history: History) -> str:
    """Return how many epochs were finished, and of how many where the spec says so."""
    fit = history.spec.get("fit") if isinstance(history.spec, Mapping) else None
    asked = fit.get("epochs") if isinstance(fit, Mapping) else None
    known = isinstance(asked, int) and not isinstance(asked, bool) and asked > len(history)
    return f"{len(history):,} of {asked:,} epochs" if known else counted(len(history), "epoch")


def _spec(folder: Path) -> dict[str, Any]:
    try:
        spec = reader.read_text(run_folder.read_resolved(folder), str(folder / run_folder.RESOLVED)).plain()
    except SpecError as error:
        raise CheckpointError(f"{folder / run_folder.RESOLVED}: is damaged: {error}") from None
    return spec if isinstance(spec, dict) else {}


def predictions(outcomes: Outcomes) -> Predictions:
    """Return the few numbers of a part's outcomes that the rules of the diagnosis look at."""
    if outcomes.kind == "values":
        return Predictions(spread=_spread(outcomes.predicted), target_spread=_spread(outcomes.targets))
    scores = outcomes.probabilities() if outcomes.can_be_probabilities else outcomes.outputs
    if not outcomes.one_each:  # words of a text: most are too rare to be ever the likeliest
        return Predictions(spread=_spread(scores), target_spread=1.0)
    count = outcomes.class_count
    return Predictions(
        true=tuple(outcomes.targets.bincount(minlength=count).tolist()),
        predicted=tuple(outcomes.predicted.bincount(minlength=count).tolist()),
        names=tuple(outcomes.class_names),
        spread=_spread(scores),
    )


def _spread(values: Tensor) -> float | None:
    """Return the largest standard deviation over the samples (M, ...) of a number of each; None for one sample."""
    return float(values.double().reshape(len(values), -1).std(0).max()) if len(values) > 1 else None
