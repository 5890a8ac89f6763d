"""A CSV file as a table of text, and its columns as tensors; every fault names the line and the column.

    CSV text  --read_table-->  CsvTable  --features, encode_table, targets-->  tensors

A column is numbers when at least half of its filled cells are; any other is text. Numbers become float32.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from fitkit.data import Feature, Target
from fitkit.errors import DataError, listing, nearest, show
from fitkit.files import too_much
from fitkit.parts.input_file import read_text

MOST_CATEGORIES = 100
MOST_COLUMNS, MOST_LETTERS = 100_000, 1_000  # of a header, and of one name in it
TEXT_BYTES, CELL_BYTES, ROW_BYTES = 8, 80, 100  # of memory for a character, a cell and a line, while they are read
ENCODED_SHARE = 0.25  # of the available memory that the encoded table may take
MOST_NUMBERED_CLASSES = 20  # whole numbers with more distinct values than this are taken for values
LARGEST = torch.finfo(torch.float32).max
MOST_ROUNDING = 1e-3  # of a column's standard deviation that float32 may round away


@dataclass(frozen=True)
class CsvTable:
    """The cells of a CSV file as text, stripped of blanks, by column; `lines` is each row's line in the file."""

    path: str
    columns: dict[str, list[str]]
    lines: list[int]

    def fault(self, row: int, column: str, message: str) -> DataError:
        """Return the error for one cell."""
        return DataError(f'{self.path}:{self.lines[row]}: column "{column}": {message}')

    def column_fault(self, column: str, message: str) -> DataError:
        """Return the error for a whole column."""
        return DataError(f'{self.path}: column "{column}": {message}')

    def require(self, names: Iterable[str], role: str) -> None:
        """Raise a `DataError` for the first name that is no column; `role` says what the name was wanted for."""
        for name in names:
            if name not in self.columns:
                near = nearest(name, self.columns)
                meant = f" Did you mean {show(near)}?" if near else ""
                raise DataError(
                    f"{self.path}: there is no column {show(name)} ({role}).{meant} "
                    f"The columns are {listing(self.columns)}."
                )


def read_table(path: str, delimiter: str = ",") -> CsvTable:
    """Read a UTF-8 CSV file with a header line; blank lines are left out."""
    if len(delimiter) != 1 or delimiter in '"\r\n':
        raise ValueError(f"delimiter {show(delimiter)} is not one character")
    text = read_text(path, bytes_each=TEXT_BYTES)
    ends = text.count("\n") + text.count("\r")
    cells = text.count(delimiter) + ends
    if fault := too_much(TEXT_BYTES * len(text) + CELL_BYTES * cells + ROW_BYTES * ends):
        raise DataError(f"{path}: some {cells:,} cells, which {fault}. Take fewer rows or columns, or save it as .npz.")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows, lines, first = [], [], 1
    try:
        for row in reader:
            if any(cell.strip() for cell in row) or len(row) > 1:
                rows.append([cell.strip() for cell in row])
                lines.append(first)
            first = reader.line_num + 1  # a quoted cell may hold line ends: a row is named by its first line
    except csv.Error as error:
        raise DataError(f"{path}:{first}: this row cannot be read as CSV: {error}.") from error
    if not rows:
        raise DataError(f"{path}: the file is empty.")
    header = _header(path, rows[0], lines[0], delimiter)
    if len(header) > MOST_COLUMNS:
        raise DataError(f"{path}: {len(header):,} columns, and at most {MOST_COLUMNS:,} are read. Save it as .npz.")
    for row, line in zip(rows, lines, strict=True):
        if len(row) != len(header):
            raise DataError(f"{path}:{line}: {len(row)} fields, where the header has {len(header)}: {listing(header)}.")
    if len(rows) == 1:
        raise DataError(f"{path}: there is a header but no row below it.")
    return CsvTable(path, {name: [row[i] for row in rows[1:]] for i, name in enumerate(header)}, lines[1:])


def _header(path: str, header: list[str], line: int, delimiter: str) -> list[str]:
    place = f"{path}:{line}"
    other = next((mark for mark in ",;\t|" if mark in header[0] and mark != delimiter), None)
    if len(header) == 1 and other:
        raise DataError(
            f"{place}: no {show(delimiter)} in the header, but {show(other)}. Say delimiter: {show(other)}."
        )
    if all(_number(cell) is not None for cell in header):
        raise DataError(f"{place}: the first line holds only numbers. Put a line with the columns' names above it.")
    first: dict[str, int] = {}
    for i, name in enumerate(header):
        if not name:
            hint = " pandas writes its row numbers so: save with to_csv(path, index=False)." if i == 0 else ""
            raise DataError(f"{place}: column {i + 1} has no name in the header.{hint}")
        if len(name) > MOST_LETTERS:
            raise DataError(f"{place}: column {i + 1} has a name of {len(name):,} characters. Give it a shorter one.")
        if first.setdefault(name, i) != i:
            raise DataError(f"{place}: columns {first[name] + 1} and {i + 1} are both named {show(name)}.")
    return header


def features(table: CsvTable, names: Sequence[str]) -> tuple[Feature, ...]:
    """Decide how each named column enters x: as a number, or as one 0/1 column for each of its texts, sorted."""
    found = []
    for name in names:
        if holds_numbers(table, name):
            _refuse_coarse(table, name, numbers(table, name))
            found.append(Feature(name))
            continue
        _refuse_empty(table, name)
        categories = tuple(sorted(set(table.columns[name])))
        if len(categories) > MOST_CATEGORIES:
            raise table.column_fault(
                name,
                f"{len(categories)} different texts, such as {show(categories[0])}, and at most {MOST_CATEGORIES} "
                f"can be one-hot encoded. Name it under ignore, or group its texts.",
            )
        found.append(Feature(name, categories))
    return tuple(found)


def encode_table(table: CsvTable, features: Sequence[Feature]) -> Tensor:
    """Return the table's rows as the features say, float32 (N, D), D counting one column for each category."""
    table.require((feature.name for feature in features), "a feature")
    widths = [1 if feature.categories is None else len(feature.categories) for feature in features]
    _refuse_wide(table, features, widths)
    x = torch.empty(len(table.lines), sum(widths))
    for feature, part in zip(features, torch.split(x, widths, dim=1), strict=True):
        part.copy_(_encode(table, feature))
    return x


def _refuse_wide(table: CsvTable, features: Sequence[Feature], widths: Sequence[int]) -> None:
    rows, columns = len(table.lines), sum(widths)
    if fault := too_much(4 * rows * columns, ENCODED_SHARE):
        widest = features[widths.index(max(widths))]
        texts = "no column of text is among them" if widest.categories is None else ""
        texts = texts or f"column {show(widest.name)} has the most texts, {len(widest.categories or ())}"
        raise DataError(
            f"{table.path}: {rows:,} rows become {columns:,} columns of numbers, which {fault}; {texts}. "
            f"Name columns under ignore, group their texts, or take fewer rows."
        )


def encode(path: str, features: Sequence[Feature], delimiter: str = ",") -> Tensor:
    """Read a CSV file for prediction: float32 (N, D), encoded as in training; columns that are no feature are let be.

    A `DataError` names the missing column, or the line, column and value of a cell that training did not know.
    """
    return encode_table(read_table(path, delimiter), features)


def _encode(table: CsvTable, feature: Feature) -> Tensor:  # -> (N, columns of this feature)
    if feature.categories is None:
        return numbers(table, feature.name).float().unsqueeze(1)
    _refuse_empty(table, feature.name)
    number = {category: i for i, category in enumerate(feature.categories)}
    cells = table.columns[feature.name]
    unseen = [row for row, cell in enumerate(cells) if cell not in number]
    if unseen:
        raise table.fault(
            unseen[0],
            feature.name,
            f"{show(cells[unseen[0]])} is not among the texts of the training data: {listing(feature.categories)}.",
        )
    return one_hot(torch.tensor([number[cell] for cell in cells]), len(number)).float()


def holds_numbers(table: CsvTable, name: str) -> bool:
    """Tell whether at least half of the column's filled cells are numbers."""
    filled = [_number(cell) is not None for cell in table.columns[name] if cell]
    return bool(filled) and 2 * sum(filled) >= len(filled)


def numbers(table: CsvTable, name: str) -> Tensor:
    """Return a column as float64 (N,); an empty cell, a text, a NaN or an infinity is a `DataError`."""
    _refuse_empty(table, name)
    cells = table.columns[name]
    parsed = [_number(cell) for cell in cells]
    _refuse(
        table,
        name,
        lambda row: parsed[row] is None,
        "is text among numbers. Write numbers only, or leave the column out.",
    )
    values = [value for value in parsed if value is not None]
    _refuse(
        table,
        name,
        lambda row: not abs(values[row]) <= LARGEST,  # holds for NaN too
        "is no finite float32 number. Fill it in, or leave the row out.",
    )
    return torch.tensor(values, dtype=torch.float64)


def class_numbers(table: CsvTable, name: str) -> tuple[Tensor, tuple[str, ...]]:
    """Return a column as class numbers, int64 (N,), and the names of the classes in sorted order.

    Where every cell is a number the order is that of numbers, and "1" and "1.0" are the same class.
    """
    _refuse_empty(table, name)
    cells = table.columns[name]
    if all(_number(cell) is not None for cell in cells):
        values = numbers(table, name).tolist()
        order = sorted(set(values))
        names = tuple(str(int(value)) if value.is_integer() else repr(value) for value in order)
        number = {value: i for i, value in enumerate(order)}
        return torch.tensor([number[value] for value in values]), names
    names = tuple(sorted(set(cells)))
    by_name = {text: i for i, text in enumerate(names)}
    return torch.tensor([by_name[cell] for cell in cells]), names


def targets(
    table: CsvTable, names: Sequence[str], task: Literal["auto", "classes", "values"]
) -> tuple[Tensor, Target, tuple[str, ...] | None]:
    """Return y, what it is, and the names of its classes: int64 (N,) classes, or float32 values, (N,) or (N, K).

    With "auto", text is classes, and so are whole numbers with at most 20 distinct values that occur twice on average.
    """
    if len(names) > 1:
        if task == "classes":
            raise DataError(f"{table.path}: classes are read from one target column. Name one, or say task: values.")
        return torch.stack([_values(table, name) for name in names], dim=1).float(), "values", None
    name = names[0]
    rows = len(table.lines)
    if task == "values" or (task == "auto" and holds_numbers(table, name)):
        values = _values(table, name)
        distinct = len(torch.unique(values))
        few = distinct <= MOST_NUMBERED_CLASSES and 2 * distinct <= rows
        if task == "values" or not few or (values != values.round()).any():
            return values.float(), "values", None
    y, classes = class_numbers(table, name)
    if len(classes) == 1:
        raise _constant(table, name)
    if task == "auto" and len(classes) == rows:
        raise table.column_fault(
            name, "each row has a text of its own, so it cannot be learned as a target. Say target: and another column."
        )
    return y, "classes", classes


def _values(table: CsvTable, name: str) -> Tensor:  # -> (N,) float64
    values = numbers(table, name)
    if (values == values[0]).all():
        raise _constant(table, name)
    return values


def _constant(table: CsvTable, name: str) -> DataError:
    return table.column_fault(
        name, f"every row has {show(table.columns[name][0])}: as a target it leaves nothing to learn."
    )


def _number(cell: str) -> float | None:
    if "_" in cell:  # Python reads 1_000 as a number; no other reader of CSV does
        return None
    try:
        return float(cell)
    except ValueError:
        return None


def _refuse_empty(table: CsvTable, name: str) -> None:
    cells = table.columns[name]
    _refuse(table, name, lambda row: not cells[row], "is empty. Fill it in, or leave the row out.")


def _refuse(table: CsvTable, name: str, wrong: Callable[[int], bool], message: str) -> None:
    rows = [row for row in range(len(table.lines)) if wrong(row)]
    if rows:
        count = f" ({len(rows)} such cells in all)" if len(rows) > 1 else ""
        cell = table.columns[name][rows[0]]
        raise table.fault(rows[0], name, f"{show(cell) if cell else 'this cell'}{count} {message}")


def _refuse_coarse(table: CsvTable, name: str, values: Tensor) -> None:
    # A time stamp in seconds keeps steps of 128 s in float32: the model would see a staircase.
    rounding = (values.float().double() - values).abs().max()
    if rounding > MOST_ROUNDING * values.std(correction=0) > 0:
        raise table.column_fault(
            name,
            f"its numbers lie too close together, around {values.mean():.6g}, for float32 to tell them apart. "
            f"Subtract the smallest from all, or name it under ignore.",
        )


def known_classes(table: CsvTable, name: str, classes: Sequence[str]) -> Tensor:
    """Return a column as the class numbers of training, int64 (N,); a class that training did not know is a DataError.

    As in training, "1" and "1.0" are the same class where every class is a number.
    """
    _refuse_empty(table, name)
    numeric = [_number(known) for known in classes]
    by_name: dict[Any, int] = {known: i for i, known in enumerate(numeric if None not in numeric else classes)}
    cells: list[Any] = [_number(c) if None not in numeric else c for c in table.columns[name]]
    for row, cell in enumerate(cells):
        if cell not in by_name:
            message = f"{show(table.columns[name][row])} is no class of the training data: {listing(classes)}."
            raise table.fault(row, name, message)
    return torch.tensor([by_name[cell] for cell in cells])
