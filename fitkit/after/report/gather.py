"""What a report is made of: everything that a run folder holds, and what its model gives for one part of the data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fitkit import files, run_folder
from fitkit.after.finished import rows_so_far
from fitkit.after.run_outcomes import looks, read_outcomes
from fitkit.builder.card import check_card
from fitkit.engine import weights
from fitkit.errors import CheckpointError, FitkitError, SpecError
from fitkit.evaluation.evaluation import Evaluation
from fitkit.evaluation.evaluation import evaluate as measured
from fitkit.evaluation.outcomes import Outcomes
from fitkit.history import History
from fitkit.spec import reader

TIMES = ("lr", "epoch_seconds")  # columns that measure no quality


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run folder as it was read, whether its run is finished or not."""

    folder: Path
    name: str
    status: str  # "running" (or killed), "interrupted", "failed" or "finished"
    history: History
    summary: Mapping[str, Any]
    environment: Mapping[str, Any]
    given: str | None  # the spec as it was written
    resolved: str  # with every default filled in
    spec: Mapping[str, Any]  # the same as plain data
    part: str  # that was evaluated
    outcomes: Outcomes | None
    evaluation: Evaluation | None
    missing: str  # why there is no evaluation
    looks: Sequence[Mapping[str, str]]  # at the test split
    data_check: Mapping[str, Any] | None

    @property
    def best_epoch(self) -> int | None:
        """The epoch whose weights are kept, as far as the folder tells."""
        if self.history.best_epoch or not len(self.history):
            return self.history.best_epoch
        column = "val_loss" if "val_loss" in self.history else "loss"
        finite = [
            (value, e) for value, e in zip(self.history[column], self.history.epoch, strict=True) if value == value
        ]
        return min(finite)[1] if finite else None

    @property
    def measures(self) -> list[str]:
        """The names of what was measured on train and val alike, without "val_"."""
        columns = [name for name in self.history.columns if name not in TIMES]
        return list(dict.fromkeys(name.removeprefix("val_") for name in columns))

    def points(self, column: str) -> list[tuple[int, float]]:
        """Return (epoch, value) of a column where it was measured and finite."""
        values = self.history.history.get(column, [])
        return [(e, v) for e, v in zip(self.history.epoch, values, strict=False) if math.isfinite(v)]


def gather(folder: Path, part: str | None, root: Path | None, *, evaluate: bool = True) -> Run:
    """Read a run folder and `evaluate` its model on a part, "val" unless one is named.

    A named part that cannot be had raises what `read_outcomes` raises; else the reason is kept as `missing`. Raises
    CheckpointError for a folder that holds no run or a damaged one.
    """
    run_folder.refuse_links(folder)
    if not (folder / run_folder.RESOLVED).exists():
        raise CheckpointError(f"{folder}: this is not a run folder: there is no {run_folder.RESOLVED} in it.")
    resolved = run_folder.read_resolved(folder)
    try:
        spec = reader.read_text(resolved, str(folder / run_folder.RESOLVED)).plain()
    except SpecError as error:
        raise CheckpointError(f"{folder / run_folder.RESOLVED}: is damaged: {error}") from None
    if not isinstance(spec, dict):
        raise CheckpointError(f"{folder / run_folder.RESOLVED}: is damaged: it holds no spec.")
    status = run_folder.status(folder)
    summary = files.read_json(folder / run_folder.SUMMARY) if (folder / run_folder.SUMMARY).exists() else {}
    if status != "running":
        history = run_folder.read_history(folder)
    elif (folder / run_folder.HISTORY_CSV).exists():
        history = rows_so_far(folder, spec)
    else:
        history = History(["loss"], {"loss": "min"}, spec)
    outcomes, evaluation, missing = evaluated(folder, part, root) if evaluate else (None, None, "")
    return Run(
        folder=folder,
        name=str(spec.get("name", folder.name)),
        status=status,
        history=history,
        summary=summary,
        environment=run_folder.read_environment(folder),
        given=run_folder.read_given(folder),
        resolved=resolved,
        spec=spec,
        part=part or "val",
        outcomes=outcomes,
        evaluation=evaluation,
        missing=missing,
        looks=looks(folder),
        data_check=run_folder.read_data_check(folder),
    )


def evaluated(folder: Path, part: str | None, root: Path | None) -> tuple[Outcomes | None, Evaluation | None, str]:
    """Return what a run's model gives for a part, and its evaluation, or why they cannot be had."""
    try:
        outcomes = read_outcomes(folder, part or "val", root, command=f"report --split {part or 'val'}")
        return outcomes, measured(outcomes), ""
    except FitkitError as error:
        if part is not None:
            raise
        path = folder / run_folder.WEIGHTS
        if path.exists():  # damaged ones are no question of what else is at hand
            _, transform, card = weights.load(path, links=False)
            check_card(card, transform, path)
        return None, None, str(error).split("\n")[0]
