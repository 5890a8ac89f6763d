"""Predictions of a finished run for the rows of a file, written as CSV."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from torch import Tensor

from fitkit.after.finished import csv_settings, read_spec, read_x
from fitkit.errors import Fault, FitkitError, Place, SpecError
from fitkit.model import Model, load


def predict_file(folder: Path, data: Path, out: Path) -> int:
    """Write one CSV row a sample and return how many: row, prediction, and for classes the probability of each.

    Rows count from 0, in the order of the file. A CSV is encoded as in training; its other columns are let be.
    """
    if out.exists():
        raise SpecError(Fault("is there already; nothing is overwritten. Choose another name.", place=Place(str(out))))
    model = load(folder)
    if model.card["inputs"]["vocabulary"] is not None:
        raise FitkitError(f"{folder}: this run was trained on text; use fitkit.load(…) in Python.")
    x = read_x(model, data, csv_settings(read_spec(folder))[1])
    header, rows = _rows(model, x)
    with out.open("x", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
    return len(rows)


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
