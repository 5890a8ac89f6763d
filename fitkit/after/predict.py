"""Predictions of a finished run for the rows of a file, written as CSV."""

from __future__ import annotations

import csv
import warnings
from pathlib import Path
from typing import Any

from torch import Tensor

from fitkit.after.finished import csv_settings, read_spec, read_x, refuse_code
from fitkit.errors import CheckpointError, Fault, FitkitError, Place, SpecError, listing, show
from fitkit.files import as_text
from fitkit.model import Model, load, load_line


def predict_file(folder: Path, data: Path, out: Path) -> int:
    """Write one CSV row a sample and return how many: row, prediction, and for classes the probability of each.

    Rows count from 0, in the order of the file. A CSV is encoded as in training; its other columns are let be. A class
    whose name a spreadsheet would compute (=, +, -, @ and more behind it) stands there behind an apostrophe, as text;
    a warning says so. Numbers, also negative ones, and single signs stay as they are.
    """
    if out.exists():
        raise SpecError(Fault("is there already; nothing is overwritten. Choose another name.", place=Place(str(out))))
    refuse_code(data)
    model = load(folder)
    if model.card["inputs"]["vocabulary"] is not None:
        raise FitkitError(
            f"{folder}: this run was trained on text: in Python {load_line(folder, own=False)}.predict(x)."
        )
    x = read_x(model, data, csv_settings(read_spec(folder))[1])
    try:
        header, rows = _rows(model, x, folder)
    except (RuntimeError, IndexError, ValueError) as error:  # the card is JSON that anybody may have written
        reason = (str(error).splitlines() or [""])[0]
        raise CheckpointError(f"{folder}: the model cannot compute these samples: {reason}.") from None
    try:
        with out.open("x", encoding="utf-8", newline="") as file:  # "x": a link that leads nowhere yet is not followed
            writer = csv.writer(file)
            writer.writerow(header)
            writer.writerows(rows)
    except OSError as error:
        raise CheckpointError(f"{out}: cannot be written: {error.strerror}.") from None
    return len(rows)


def _rows(model: Model, x: Tensor, folder: Path) -> tuple[list[str], list[list[Any]]]:
    if model.card["target"] == "values":
        values = model.predict(x)
        columns = values.reshape(len(values), -1)
        names = ["prediction"] if columns.shape[1] == 1 else [f"prediction_{i}" for i in range(columns.shape[1])]
        return ["row", *names], [[row, *line] for row, line in enumerate(columns.tolist())]
    outputs = model.outputs(x)
    probabilities = model.probabilities(outputs)
    if probabilities.ndim != 2:
        line = load_line(folder, own=False)
        raise FitkitError(f"{folder}: this model gives several classes a sample: in Python {line}.predict(x).")
    names = model.card["classes"] or [str(i) for i in range(probabilities.shape[1])]
    if len(names) != probabilities.shape[1]:
        raise CheckpointError(f"the card names {len(names)} classes, and the model has {probabilities.shape[1]}.")
    texts = [as_text(name) for name in names]
    if changed := [show(name) for name, text in zip(names, texts, strict=True) if name != text]:
        message = f"{listing(changed, 3)} would be a formula in a spreadsheet, so an apostrophe stands before it"
        warnings.warn(message, stacklevel=3)
    best = model.classes(outputs).tolist()
    rows = [[i, texts[k], *line] for i, (k, line) in enumerate(zip(best, probabilities.tolist(), strict=True))]
    return ["row", "prediction", *(f"p_{name}" for name in names)], rows
