"""Reading a finished run: what it was asked, and files of samples in the form that its model takes."""

from __future__ import annotations

import csv
import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fitkit import files, run_folder
from fitkit.builder import check_tree
from fitkit.builder.tables import TABLES
from fitkit.cross_validation import CrossValidation
from fitkit.errors import CheckpointError, DataError, SpecError
from fitkit.history import Direction, History
from fitkit.model import Model, features
from fitkit.parts import array_file, csv_table
from fitkit.spec import reader
from fitkit.spec.reader import Node
from fitkit.spec.spec import Spec

RunLike = Path | str | History | CrossValidation
RUN = (str, os.PathLike, History, CrossValidation)  # what names one run in Python


def folder_of(run: object, command: str) -> Path:
    """Return the folder of a run that Python named by its path, or by the History that came of it.

    Raises SpecError for a History that was not written to a folder, and for anything else.
    """
    if isinstance(run, History | CrossValidation):
        if run.run is None:
            kind = type(run).__name__
            raise SpecError(f"this {kind} has no run folder: fit(…, out=FOLDER), then {command} the folders.")
        run = run.run
    if not isinstance(run, str | os.PathLike):
        raise SpecError(
            f"{command} takes run folders, or what fit(…, out=FOLDER) returned, not a {type(run).__name__}."
        )
    return Path(run)


def read_spec(folder: Path, root: Path | None = None) -> Spec:
    """Return the resolved spec of a run folder; its paths start at `root` and may not leave it.

    Without a root that is the working directory, where paths start in a run that was started there.
    """
    path = folder / run_folder.RESOLVED
    if not path.exists():
        raise CheckpointError(f"{folder}: this is not a run folder: there is no {run_folder.RESOLVED} in it.")
    try:
        text = run_folder.read_resolved(folder)
        return check_tree(_rooted(reader.read_text(text, str(path)), root or Path.cwd()))
    except SpecError as error:
        hint = (
            " Name the folder that holds the run's data with --root DIR."
            if "leaves the spec's folder" in str(error)
            else ""
        )
        raise CheckpointError(f"{path}: does not describe this run: {error}{hint}") from None


def _rooted(node: Node, folder: Path) -> Node:
    value = node.value
    if isinstance(value, dict):
        value = {key: _rooted(item, folder) for key, item in value.items()}
    elif isinstance(value, list):
        value = [_rooted(item, folder) for item in value]
    return dataclasses.replace(node, value=value, folder=folder)


def csv_settings(spec: Spec) -> tuple[list[str] | None, str]:
    """Return the target columns (None: the last) and the delimiter with which a run read its CSV."""
    if spec.data is None or spec.data.name != "csv":
        return None, ","
    target = spec.data.get("target")
    return [target] if isinstance(target, str) else target, str(spec.data.get("delimiter"))


def refuse_code(data: Path) -> None:
    """Raise DataError for a kind of file that fitkit opens nowhere; the message says how to convert it."""
    if reason := files.why_not(data):
        raise DataError(f"{data}: {reason}")


def read_x(model: Model, data: Path, delimiter: str = ",") -> Tensor:
    """Return the samples of a file as the model takes them, (N, ...)."""
    suffix, columns = data.suffix.lower(), features(model.card)
    refuse_code(data)
    if columns is not None:
        if suffix != ".csv":
            raise DataError(f"{data}: this run was trained on a table: give a .csv file with its columns.")
        return csv_table.encode(str(data), columns, delimiter)
    if suffix not in (".npy", ".npz", ".safetensors"):
        raise DataError(f"{data}: expects a .npy, .npz or .safetensors file of samples (x).")
    return array_file.read_x(str(data), "x")


def rows_so_far(folder: Path, spec: Mapping[str, Any]) -> History:
    """Return the epochs that a run wrote one by one; its history as a whole is written when it ends.

    Raises CheckpointError when the file is missing or damaged.
    """
    try:
        header, *rows = csv.reader(run_folder.read_rows(folder).splitlines(), strict=True)
        if header[:1] != ["epoch"] or not all(name.isprintable() for name in header):
            raise ValueError("its first line does not name the columns of a history")
        columns = header[1:]
        history = History(columns, {name: found for name in columns if (found := direction(name))}, spec)
        for row in rows:
            cells = dict(zip(header, row, strict=True))
            history.append({name: float(cells[name] or "nan") for name in columns})
    except (ValueError, csv.Error) as error:
        raise CheckpointError(f"{folder / run_folder.HISTORY_CSV}: is damaged: {error}.") from None
    return history


def direction(column: str) -> Direction | None:
    """Return which end of a measure is the good one, where it is known."""
    name = column.removeprefix("val_")
    if name == "loss":
        return "min"
    entry = TABLES["metrics"].get(name)
    return None if entry is None else "max" if entry.facts["higher_is_better"] else "min"
