"""The worst examples of a finished run, and the CSV files of them and of suspected label errors."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fitkit import run_folder
from fitkit.after.finished import csv_settings, read_spec
from fitkit.after.run_outcomes import file_outcomes, read_outcomes
from fitkit.errors import CheckpointError, DataError, Fault, Place, SpecError, show
from fitkit.evaluation.worst import Worst, worst
from fitkit.files import as_text
from fitkit.parts import csv_table


def worst_of_run(folder: Path, part: str = "val", root: Path | None = None, *, count: int = 20) -> Worst:
    """Return the worst examples of one of a run's splits; a look at the test split goes into its ledger."""
    check_count(count)
    run_folder.refuse_links(folder)
    spec = read_spec((run_folder.fold_folders(folder) or [folder])[0], root)
    found = worst(read_outcomes(folder, part, root, command=f"worst --split {part}"), count)
    if spec.data is None or spec.data.name != "csv":
        return found
    return found.with_lines(csv_table.read_table(str(spec.data.get("path")), csv_settings(spec)[1]).lines)


def worst_of_file(folder: Path, data: Path, *, count: int = 20) -> Worst:
    """Return the worst examples of a file like the one that a run was trained on."""
    check_count(count)
    found = worst(file_outcomes(folder, data, command="worst"), count)
    if data.suffix.lower() != ".csv":
        return found
    return found.with_lines(csv_table.read_table(str(data), csv_settings(read_spec(folder))[1]).lines)


def check_count(count: int) -> None:
    """Raise SpecError for a number of examples that is none."""
    if count < 1:
        raise SpecError(f"--count {count}: ask for at least one.")


def refuse_taken(*files: Path | None) -> None:
    """Raise SpecError when a file is there already, is named twice, or has no folder to be in."""
    named = [file for file in files if file is not None]
    for file in named:
        if file.exists() or file.is_symlink():
            raise SpecError(Fault("is there already; nothing is overwritten. Choose another name.", str(file)))
        if not file.parent.is_dir():
            message = f"there is no folder {show(str(file.parent))}. Make it first."
            raise SpecError(Fault(message, place=Place(str(file))))
    if len({file.absolute() for file in named}) < len(named):
        raise SpecError(f"{named[0]}: two files of this name are asked for. Name them differently.")


def write_examples(found: Worst, out: Path) -> None:
    """Write one CSV row an example: row, line, target, prediction, confidence, residual, loss, then what it is.

    Columns that no example fills are left out. Texts that a spreadsheet would compute stand behind an apostrophe.
    """
    plain = [_row(example.to_json()) for example in found]
    names = list(dict.fromkeys(name for row in plain for name, value in row.items() if value is not None))
    _write(out, names, ([row.get(name) for name in names] for row in plain))


def _row(example: dict[str, Any]) -> dict[str, Any]:
    sample = example.pop("sample") or {}
    cells = {"text": sample["text"]} if "text" in sample else sample.get("row", {})
    return example | {f"x_{name}" if name in example else name: value for name, value in cells.items()}


def write_label_errors(found: Worst, out: Path) -> None:
    """Write one CSV row a suspected label error, the surest first: row, line, given, suggested and both confidences."""
    if found.label_errors is None:
        raise DataError(f"{found.part}: label errors are found where a sample has one class, with probabilities.")
    names = ["row", "line", "given", "suggested", "confidence", "given_confidence"]
    plain = [dataclasses.asdict(error) for error in found.label_errors]
    if not any(row["line"] for row in plain):
        names.remove("line")
    _write(out, names, ([row[name] for name in names] for row in plain))


def _write(out: Path, names: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    try:
        with out.open("x", encoding="utf-8", newline="") as file:  # "x": a link that leads nowhere yet is not followed
            writer = csv.writer(file)
            writer.writerow([as_text(name) for name in names])
            writer.writerows([[_cell(value) for value in row] for row in rows])
    except OSError as error:
        raise CheckpointError(f"{out}: cannot be written: {error.strerror}.") from None


def _cell(value: Any) -> Any:
    if isinstance(value, list):
        value = " ".join(map(str, value))
    return as_text(value) if isinstance(value, str) else value
