"""Loss and metrics of a finished run, on one of its splits or on a file like the one that was trained on."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

from fitkit import files, run_folder
from fitkit.after.finished import csv_settings, read_spec, read_x, refuse_code
from fitkit.builder import assemble
from fitkit.engine import weights
from fitkit.errors import CheckpointError, DataError, SpecError, listing
from fitkit.model import features, load
from fitkit.parts import array_file, csv_table
from fitkit.spec.options import FitOptions

LEDGER = "test_looks.json"  # when the test split was looked at: each look makes it less of a test


def evaluate_split(folder: Path, split: str, root: Path | None = None) -> tuple[dict[str, float], int]:
    """Return loss and metrics on a split, and how often the test split was looked at by now (0 for the others).

    The data is read and split again, which gives the same rows: they depend on data and seed alone.
    """
    run_folder.refuse_links(folder)
    spec = read_spec(folder, root)
    options = FitOptions(batch_size=spec.fit.batch_size, precision=spec.fit.precision)  # no compiler, no workers
    spec = dataclasses.replace(spec, callbacks=(), fit=options)
    if spec.model is None or spec.data is None or spec.data.name == "arrays":
        raise SpecError(f"{folder}: its model or data was given in Python: use fitkit.load(…).evaluate((x, y)).")
    path = folder / run_folder.WEIGHTS
    state, transform, _ = weights.load(path, links=False)
    trainer, prepared = assemble(spec, None, None, None)
    if split not in prepared.parts:
        raise SpecError(f"{folder}: this run has no {split} split, only {listing(prepared.parts)}.")
    weights.put(trainer.model, state, path)
    if trainer.objective.transform is not None:
        weights.put(trainer.objective.transform, transform, path)
    values = dict(trainer.evaluate(prepared.parts[split]))
    return values, _note_look(folder) if split == "test" else 0


def _note_look(folder: Path) -> int:
    path = folder / LEDGER
    try:
        looks: Any = files.read_json(path) if path.exists() else []
    except CheckpointError:
        looks = None
    if not isinstance(looks, list) or not all(isinstance(look, dict) for look in looks):
        raise CheckpointError(f"{path}: is damaged, so nobody knows how often the test split was looked at.")
    looks = [{"time": str(look.get("time")), "command": "evaluate --split test"} for look in looks]
    looks.append({"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "command": "evaluate --split test"})
    run_folder.write_text(path, json.dumps(looks, indent=2) + "\n")
    return len(looks)


def evaluate_file(folder: Path, data: Path) -> dict[str, float]:
    """Return loss and metrics on all rows of a file: a CSV with the target, or an .npz or .safetensors with x and y."""
    refuse_code(data)
    model = load(folder)
    spec = read_spec(folder)
    suffix = data.suffix.lower()
    if suffix == ".csv":
        columns = features(model.card)
        if columns is None or spec.data is None:
            raise DataError(
                f"{data}: this run was not trained on a table. Give an .npz or .safetensors file with x and y."
            )
        target, delimiter = csv_settings(spec)
        table = csv_table.read_table(str(data), delimiter)
        return model.evaluate((read_x(model, data, delimiter), _target(table, target, model.card)))
    if suffix in (".npz", ".safetensors"):
        path = str(data)
        pairs = (
            array_file.read_npz(path, "x", "y") if suffix == ".npz" else array_file.read_safetensors(path, "x", "y")[0]
        )
        if list(pairs) != [""]:
            raise DataError(f"{data}: holds several parts. Give a file with one x and one y.")
        return model.evaluate(pairs[""])
    raise DataError(f"{data}: expects a .csv, .npz or .safetensors file.")


def _target(table: csv_table.CsvTable, target: list[str] | None, card: dict[str, Any]) -> Any:
    names = target or [list(table.columns)[-1]]
    table.require(names, "the target")
    if card["target"] == "values":
        return csv_table.targets(table, names, "values")[0]
    return csv_table.known_classes(table, names[0], card["classes"])
