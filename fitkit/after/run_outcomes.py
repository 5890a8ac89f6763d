"""What a finished run gives for the samples of one of its splits, or of a file like the one that it was trained on."""

from __future__ import annotations

import dataclasses
import json
import math
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fitkit import files, run_folder
from fitkit.after.finished import csv_settings, read_spec, read_x, refuse_code
from fitkit.builder import assemble
from fitkit.builder.card import check_card
from fitkit.builder.tables import TABLES
from fitkit.engine import weights
from fitkit.engine.batches import Batches
from fitkit.errors import CheckpointError, DataError, SpecError, listing, printable
from fitkit.evaluation.outcomes import Outcomes, merged, take_outcomes
from fitkit.model import Model, features, load, load_line
from fitkit.parts import array_file, csv_table
from fitkit.session import fingerprint
from fitkit.spec.component import Component
from fitkit.spec.options import FitOptions
from fitkit.spec.spec import Spec

LEDGER = "test_looks.json"  # when the test split was looked at: each look makes it less of a test


def read_outcomes(folder: Path, part: str = "val", root: Path | None = None, *, command: str) -> Outcomes:
    """Return a run's outcomes on one of its splits; where that is the test split, `command` goes into its ledger.

    The data is read and split again, which gives the same rows: they depend on data and seed alone. Of the folder of a
    cross-validation, the val rows of all folds are returned, each as the fold gives it that was not trained on it.
    """
    run_folder.refuse_links(folder)
    if folds := run_folder.fold_folders(folder):
        return _all_folds(folder, folds, part, root, command)
    spec = read_spec(folder, root)
    options = FitOptions(batch_size=spec.fit.batch_size, precision=spec.fit.precision)  # no compiler, no workers
    spec = dataclasses.replace(spec, callbacks=(), fit=options)
    if spec.model is None or spec.data is None or spec.data.name == "arrays":
        line = f"{load_line(folder, own=spec.model is None)}.evaluate((x, y))"
        raise SpecError(f"{folder}: its model or data was given in Python. Measure it there, as by {line}.")
    path = folder / run_folder.WEIGHTS
    state, transform, card = weights.load(path, links=False)
    check_card(card, transform, path)
    try:
        trainer, prepared = assemble(spec, None, None, None)
    except DataError as error:
        if "no such file" not in str(error):
            raise
        hint = "The paths of this run start where it was fitted: go there, or name that folder with --root DIR."
        raise DataError(f"{error} {hint}") from None
    _refuse_other_data(folder, prepared.parts)
    if part not in prepared.parts:
        raise SpecError(f"{folder}: this run has no {part} split, only {listing(prepared.parts)}.")
    weights.put(trainer.model, state, path)
    if trainer.objective.transform is not None:
        weights.put(trainer.objective.transform, transform, path)
    [loss] = trainer.card["spec"]["loss"]
    known = {**trainer.card, "temperature": card.get("temperature")}
    batches, facts = prepared.parts[part], TABLES["losses"][loss].facts
    outcomes = take_outcomes(trainer.model, trainer.objective, batches, facts, part=part, card=known)
    outcomes = dataclasses.replace(outcomes, held_out=part != "train")
    if (data := prepared.data) is not None:
        own = prepared.spec.splits is not None and prepared.spec.splits.name == "given" and data.split is not None
        first = int((data.split or {}).get(part, [0])[0]) if own else 0  # rows of x_val count from 0
        outcomes = dataclasses.replace(outcomes, image=data.image, rows=outcomes.rows - first)
    if part == "test":
        _note_look(folder, command)
    return outcomes


def _refuse_other_data(folder: Path, parts: Mapping[str, Batches]) -> None:
    """Raise DataError where the parts are not those that the run had: rows of train may stand in val now."""
    if not (folder / run_folder.ENV).exists():
        return
    then = run_folder.read_environment(folder)
    known = {name: value for name, value in then.items() if isinstance(value, str)}
    changed = [name for name, now in fingerprint(parts).items() if known.get(name, now) != now]
    if changed:
        others = "is another" if len(changed) == 1 else "are others"
        raise DataError(
            f"{folder}: its data, or how it is split, is not what it was trained with: {listing(changed)} in "
            f"{run_folder.ENV} {others}, and rows of train may be in val now. Put its data back, or fit it again."
        )


def _all_folds(folder: Path, folds: list[Path], part: str, root: Path | None, command: str) -> Outcomes:
    if part != "val":
        raise SpecError(f"{folder}: all folds together have val alone: for {part} name one, such as {folds[0]}.")
    if run_folder.status(folder) != "finished":
        raise SpecError(f"{folder}: this cross-validation is not finished: go on with it by --resume.")
    splits = _same_folds(folder, folds, root)
    if "repeats" in splits.entry.facts["folds"] and splits.get("repeats") > 1:
        raise SpecError(
            f"{folder}: its rows are repeated, so they are not independent: name a fold, such as {folds[0]}."
        )
    return merged([read_outcomes(fold, "val", root, command=command) for fold in folds], f"val of {len(folds)} folds")


def _same_folds(folder: Path, folds: list[Path], root: Path | None) -> Component:
    """Return the splits of a cross-validation; CheckpointError unless its folders are all its folds, each once."""
    first: list[Any] = []
    count = len(folds)
    for number, fold in enumerate(folds, 1):
        spec = read_spec(fold, root)
        splits = spec.splits
        if splits is None or "folds" not in splits.entry.facts or splits.get("fold") != number:
            raise CheckpointError(f"{fold}: this is not fold {number} of a cross-validation.")
        asked = spec.resolved()
        [arguments] = asked["splits"].values()
        del arguments["fold"]
        # of the loss the name: "balanced" weights are those of each fold's own rows
        same = [*(asked[key] for key in ("seed", "data", "splits")), *asked["loss"]]
        first = first or same
        if same != first:
            raise CheckpointError(f"{fold}: this is a fold of another cross-validation than {folds[0]}.")
        count = math.prod(splits.get(name) for name in splits.entry.facts["folds"])
    if len(folds) != count:
        raise CheckpointError(f"{folder}: holds {len(folds)} of the {count} folds of its cross-validation.")
    assert splits is not None  # there is one fold, or nobody asks
    return splits


def looks(folder: Path) -> list[dict[str, str]]:
    """Return when and by which command the test split was looked at; CheckpointError where the ledger is damaged."""
    path = folder / LEDGER
    try:
        found: Any = files.read_json(path) if path.exists() else []
    except CheckpointError:
        found = None
    if not isinstance(found, list) or not all(isinstance(look, dict) for look in found):
        raise CheckpointError(f"{path}: is damaged, so nobody knows how often the test split was looked at.")
    return [{key: printable(str(look.get(key)))[:100] for key in ("time", "command")} for look in found]


def _note_look(folder: Path, command: str) -> None:
    found = [*looks(folder), {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "command": command}]
    run_folder.write_text(folder / LEDGER, json.dumps(found, indent=2) + "\n")


def say_looks(folder: Path) -> str:
    """Return the line that tells how often the test split was looked at, and by what."""
    found = looks(folder)
    if len(found) < 2:
        return f"the test split of {folder} was looked at for the first time."
    by = sorted({look["command"] for look in found})
    times = f"{len(found)} times now ({listing(by)}; first {found[0]['time']})"
    return f"the test split of {folder} was looked at {times}; each look makes it less of a test."


def say_unfinished(folder: Path) -> str:
    """Return the line that tells that a run did not come to its end; nothing for one that did."""
    if (status := run_folder.status(folder)) == "finished":
        return ""
    return f"{folder}: this run is {status}, not finished: these are its best weights so far."


def file_outcomes(folder: Path, data: Path, *, command: str = "evaluate") -> Outcomes:
    """Return a run's outcomes on all rows of a file: a CSV with the target, or an .npz or .safetensors with x and y.

    The file that the run was trained on is said to be that, and its test rows count as looked at.
    """
    refuse_code(data)
    model = load(folder)
    spec = read_spec(folder)
    outcomes = _of_file(model, spec, data)
    own = spec.data.get("path") if spec.data is not None else None
    if isinstance(own, str) and Path(own).resolve() == data.resolve():
        others = f"fitkit evaluate {folder} --split val measures rows that it was not trained on"
        warnings.warn(f"{data}: is the file that this run was trained on; {others}", stacklevel=2)
        if "data_test" in run_folder.read_environment(folder):
            run_folder.refuse_links(folder)
            _note_look(folder, f"{command} DATA")
    return outcomes


def _of_file(model: Model, spec: Spec, data: Path) -> Outcomes:
    suffix = data.suffix.lower()
    if suffix == ".csv":
        columns = features(model.card)
        if columns is None or spec.data is None:
            raise DataError(
                f"{data}: this run was not trained on a table. Give an .npz or .safetensors file with x and y."
            )
        target, delimiter = csv_settings(spec)
        table = csv_table.read_table(str(data), delimiter)
        pair: Any = (read_x(model, data, delimiter), _target(table, target, model.card))
        return model.outcomes(pair, part=str(data))
    if suffix in (".npz", ".safetensors"):
        path = str(data)
        pairs = (
            array_file.read_npz(path, "x", "y") if suffix == ".npz" else array_file.read_safetensors(path, "x", "y")[0]
        )
        if list(pairs) != [""]:
            raise DataError(f"{data}: holds several parts. Give a file with one x and one y.")
        return model.outcomes(pairs[""], part=str(data))
    raise DataError(f"{data}: expects a .csv, .npz or .safetensors file.")


def _target(table: csv_table.CsvTable, target: list[str] | None, card: dict[str, Any]) -> Any:
    names = target or [list(table.columns)[-1]]
    table.require(names, "the target")
    if card["target"] == "values":
        return csv_table.targets(table, names, "values")[0]
    return csv_table.known_classes(table, names[0], card["classes"])
