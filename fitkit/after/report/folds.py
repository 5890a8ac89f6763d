"""What a report says of a cross-validation: the values of all folds, their mean, spread and interval."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fitkit import files, run_folder
from fitkit.after.report.comparison import listed
from fitkit.after.report.gather import Run, evaluated, gather
from fitkit.after.report.page import Html, brief, join, note, short, table, tag
from fitkit.after.report.sections import STATUS, measure, span
from fitkit.errors import CheckpointError


def gather_folds(folder: Path, part: str | None, root: Path | None) -> tuple[Run, list[Run]]:
    """Read the folder of a cross-validation: its folds as one run, evaluated on the val rows of each, and each fold."""
    begun = [fold for fold in run_folder.fold_folders(folder) if (fold / run_folder.RESOLVED).exists()]
    if not begun:
        raise CheckpointError(f"{folder}: no fold of this cross-validation has begun.")
    folds = [gather(fold, None, root, evaluate=False) for fold in begun]
    outcomes, evaluation, missing = evaluated(folder, part, root)
    whole = dataclasses.replace(
        folds[0],
        folder=folder,
        status=run_folder.status(folder),
        given=run_folder.read_given(folder),
        part="val",
        outcomes=outcomes,
        evaluation=evaluation,
        missing=missing,
    )
    return whole, folds


@dataclasses.dataclass(frozen=True)
class Column:
    """The values of a column at the best epoch of each fold, their mean, standard deviation and 95 % interval."""

    each: Sequence[float]
    mean: float
    std: float
    interval: tuple[float, float]


def read_columns(folder: Path) -> dict[str, Column] | None:
    """Return what the folds came to, by column; None before all of them are finished."""
    path = folder / run_folder.FOLDS_JSON
    if not path.exists():
        return None
    found = files.read_json(path)
    try:
        return {
            name: Column(
                [_number(value) for value in each],
                _number(found["mean"][name]),
                _number(found["std"][name]),
                (_number(found["interval"][name][0]), _number(found["interval"][name][1])),
            )
            for name, each in found["columns"].items()
        }
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        raise CheckpointError(f"{path}: is damaged: it does not hold the values of folds.") from None


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)  # an infinity is a string


def header(whole: Run, folds: Sequence[Run]) -> Html:
    """Return title, status, and the mean over the folds first."""
    found = read_columns(whole.folder)
    verdict = f"{len(folds)} folds have begun; their mean is there when all of them are finished."
    if found:
        name = next((name for name in ("val_accuracy", "val_r2", "val_loss") if name in found), next(iter(found)))
        column = found[name]
        verdict = (
            f"{measure(name).capitalize()} is {brief(column.mean)} ± {brief(column.std)}, the mean and standard "
            f"deviation of {len(folds)} folds; the 95 % interval of the mean is {span(*column.interval)}."
        )
    status = tag("span", whole.status, class_=f"badge {whole.status}")
    began = str(whole.environment.get("started", ""))[:16].replace("T", " ")
    return tag(
        "header",
        tag("p", "fitkit cross-validation", class_="kicker"),
        tag("h1", short(whole.name, 80)),
        tag("p", status, tag("span", began), tag("span", str(whole.folder), class_="path"), class_="byline"),
        tag("p", verdict, class_="verdict"),
        tag("p", STATUS[whole.status], class_="callout") if whole.status != "finished" else None,
    )


def values(whole: Run, folds: Sequence[Run]) -> Html:
    """Return the value of each column at the best epoch of each fold, with mean, deviation and interval."""
    found = read_columns(whole.folder)
    if found is None:
        return note("Not all folds are finished.")
    rows = []
    for name, column in found.items():
        said = measure(name if name.startswith("val_") else f"training {name}")
        spread = brief(column.mean), brief(column.std), span(*column.interval)
        rows.append([said, *spread, *map(brief, column.each)])
    rows.append(["best epoch", "", "", "", *(str(fold.best_epoch or "-") for fold in folds)])
    why = (
        "Each fold counts at its best epoch. Intervals are Student's t of the mean over the folds, which share most of "
        "their training rows, so that they are rather too narrow."
    )
    head = ["", "mean", "sd", "95 % interval", *listed(folds)]
    return join(table(head, rows, "Values of each fold"), note(why))
