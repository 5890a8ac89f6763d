"""The diagnosis of a run folder: its history, and what the model predicts for the validation part."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from torch import Tensor

from fitkit import run_folder
from fitkit.after.run_outcomes import read_outcomes
from fitkit.diagnosis import Diagnosis, Predictions
from fitkit.errors import FAILED, CheckpointError, FitkitError, SpecError
from fitkit.evaluation.outcomes import Outcomes
from fitkit.history import History

NEEDS_PREDICTIONS = "whether some class is never predicted, or all rows get the same output"


def diagnose(run: History | Path | str, *, root: Path | str | None = None) -> Diagnosis:
    """Return what the numbers of a run say about it, in words, with spec patches to try.

    Args:
        run: a History, or a run folder, whose validation part is predicted too where data and model can be had.
        root: where the paths of the run's data start; the working directory unless given.

    Raises CheckpointError for a folder that holds no run, or one that is unfinished or damaged, and SpecError for that
    of a cross-validation, whose folds are runs.
    """
    if isinstance(run, History):
        return run.diagnose()
    folder = Path(run)
    run_folder.refuse_links(folder)
    if folds := run_folder.fold_folders(folder):
        raise SpecError(f"{folder}: every fold of a cross-validation has a diagnosis: name one, such as {folds[0]}.")
    history = _read(folder)
    if history.stopped.startswith(FAILED) or not (folder / run_folder.WEIGHTS).is_file() or "val_loss" not in history:
        return history.diagnose()
    try:
        outcomes = read_outcomes(folder, "val", None if root is None else Path(root), command="diagnose")
    except FitkitError as error:
        diagnosis = history.diagnose()
        reason = str(error).split("\n")[0]
        cannot_tell = (*diagnosis.cannot_tell, f"{NEEDS_PREDICTIONS}: {reason}")
        return dataclasses.replace(diagnosis, cannot_tell=cannot_tell)
    return history.diagnose(predictions(outcomes))


def _read(folder: Path) -> History:
    """Return the history of a run that has ended, whatever way."""
    if not (folder / run_folder.RESOLVED).is_file():
        raise CheckpointError(f"{folder}: this is not a run folder: there is no {run_folder.RESOLVED} in it.")
    status = run_folder.status(folder)
    if status == "running":
        raise CheckpointError(
            f"{folder}: this run is still going on, or was killed: there is no history to read yet. If it was killed, "
            "go on with it: fitkit fit SPEC --out FOLDER --resume."
        )
    history = run_folder.read_history(folder)
    if status == "failed" and not history.stopped.startswith(FAILED):  # of an earlier version, or the disk was full
        history.stopped = f"{FAILED}{history.stopped or 'its error was not noted.'}"
    return history


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
