"""Predictions of a finished run for the rows of a file, written as CSV."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from torch import Tensor

from fitkit import run_folder
from fitkit.errors import DataError, Fault, FitkitError, Place, SpecError
from fitkit.model import Model, features, load
from fitkit.parts import array_file, csv_table
from fitkit.spec.spec import Spec


def predict_file(folder: Path, data: Path, out: Path) -> int:
    """Write one CSV row a sample and return how many: row, prediction, and for classes the probability of each.

    Rows count from 0, in the order of the file. A CSV is encoded as in training; its other columns are let be.
    """
    if out.exists():
        raise SpecError(Fault("is there already; nothing is overwritten. Choose another name.", place=Place(str(out))))
    model = load(folder)
    if model.card["inputs"]["vocabulary"] is not None:
        raise FitkitError(f"{folder}: this run was trained on text; use fitkit.load(…) in Python.")
    delimiter = ","
    if data.suffix.lower() == ".csv" and (folder / run_folder.RESOLVED).is_file():
        from fitkit.after.evaluate import read_spec

        delimiter = csv_settings(read_spec(folder))[1]
    x = read_x(model, data, delimiter)
    header, rows = _rows(model, x)
    with out.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
    return len(rows)


def csv_settings(spec: Spec) -> tuple[list[str] | None, str]:
    """Return the target columns (None: the last) and the delimiter with which a run read its CSV."""
    if spec.data is None or spec.data.name != "csv":
        return None, ","
    target = spec.data.get("target")
    return [target] if isinstance(target, str) else target, str(spec.data.get("delimiter"))


def read_x(model: Model, data: Path, delimiter: str = ",") -> Tensor:
    """Return the samples of a file as the model takes them, (N, ...)."""
    suffix, columns = data.suffix.lower(), features(model.card)
    if columns is not None:
        if suffix != ".csv":
            raise DataError(f"{data}: this run was trained on a table: give a .csv file with its columns.")
        return csv_table.encode(str(data), columns, delimiter)
    if suffix not in (".npy", ".npz", ".safetensors"):
        raise DataError(f"{data}: expects a .npy, .npz or .safetensors file of samples (x).")
    return array_file.read_x(str(data), "x")


def _rows(model: Model, x: Tensor) -> tuple[list[str], list[list[Any]]]:
    if model.card["target"] == "values":
        values = model.predict(x)
        columns = values.reshape(len(values), -1)
        names = ["prediction"] if columns.shape[1] == 1 else [f"prediction_{i}" for i in range(columns.shape[1])]
        return ["row", *names], [[row, *line] for row, line in enumerate(columns.tolist())]
    probabilities = model.predict_proba(x)
    if probabilities.ndim != 2:
        raise FitkitError("predict writes one class a sample; this model gives several. Use fitkit.load(…) in Python.")
    names = model.card["classes"] or [str(i) for i in range(probabilities.shape[1])]
    best = probabilities.argmax(1).tolist()
    rows = [[i, names[k], *line] for i, (k, line) in enumerate(zip(best, probabilities.tolist(), strict=True))]
    return ["row", "prediction", *(f"p_{name}" for name in names)], rows
