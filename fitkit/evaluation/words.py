"""An evaluation as text for a terminal and as HTML for a notebook."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

from fitkit.errors import printable
from fitkit.evaluation.evaluation import Evaluation

MOST_SHOWN = 20  # classes whose confusion matrix is printed whole
MOST_ROWS = 50  # classes that are printed, the largest
WIDEST = 24  # letters of a class's name

Tables = Sequence[tuple[str, list[list[str]]]]  # the title of each, and its rows, the header first


def number(value: float) -> str:
    """Return a number as a table shows it: four digits, "-" for one that is not there."""
    if not math.isfinite(value):
        return "-" if math.isnan(value) else str(value)
    return f"{value:.4f}" if 1e-3 <= abs(value) < 1e3 or value == 0 else f"{value:.4g}"


def in_words(evaluation: Evaluation) -> str:
    """Return measures with their intervals, the classes and confusions, or the residuals, as lines of text."""
    return text_of(_tables(evaluation), evaluation.notes)


def in_html(evaluation: Evaluation) -> str:
    """Return the same as HTML tables."""
    return html_of(_tables(evaluation), evaluation.notes)


def text_of(tables: Tables, notes: Sequence[str]) -> str:
    """Return titled tables and the notes under them as lines of text."""
    blocks = [[printable(title), *aligned(table)] for title, table in tables]
    blocks += [[printable(note) for note in notes]] if notes else []
    return "\n\n".join("\n".join(block) for block in blocks)


def html_of(tables: Tables, notes: Sequence[str]) -> str:
    """Return the same as HTML."""
    parts = []
    for title, table in tables:
        rows = ["".join(f"<th>{html.escape(cell)}</th>" for cell in table[0])]
        rows += ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in table[1:]]
        body = "".join(f"<tr>{row}</tr>" for row in rows)
        parts.append(f"<p>{html.escape(title)}</p><table>{body}</table>")
    return "".join(parts) + "".join(f"<p>{html.escape(note)}</p>" for note in notes)


def _tables(evaluation: Evaluation) -> Tables:
    title = f"{evaluation.part}: {evaluation.samples:,} samples"
    if evaluation.positions != evaluation.samples:
        title += f", {evaluation.positions:,} targets"
    measures = [["", "", "95 % interval", ""]]
    for name, e in evaluation.estimates.items():
        measures.append([name, number(e.value), f"{number(e.low)} to {number(e.high)}", e.method])
    tables = [(title, measures)]
    if evaluation.classes is not None:
        tables.append(("by class", _class_table(evaluation)))
        tables.append(_confusions(evaluation))
    if evaluation.residuals is not None:
        found = evaluation.residuals
        table = [["mean", "sd", *(f"{100 * q:g} %" for q in found.quantiles)]]
        table.append([number(v) for v in (found.mean, found.standard_deviation, *found.quantiles.values())])
        tables.append(("prediction minus target", table))
    return [(title, table) for title, table in tables if len(table) > 1]


def _class_table(evaluation: Evaluation) -> list[list[str]]:
    assert evaluation.classes is not None
    rows = [row for row in evaluation.classes if row.support or row.predicted]
    if len(rows) > MOST_ROWS:
        rows = sorted(rows, key=lambda row: -row.support)[:MOST_ROWS]
    ranked = any(not math.isnan(row.auroc) for row in rows)
    table = [["class", "precision", "recall", "f1", *(["auroc", "average_precision"] if ranked else []), "support"]]
    for row in rows:
        areas = (row.auroc, row.average_precision) if ranked else ()
        values = (row.precision, row.recall, row.f1, *areas)
        table.append([short(row.name), *map(number, values), f"{row.support:,}"])
    return table


def _confusions(evaluation: Evaluation) -> tuple[str, list[list[str]]]:
    if evaluation.confusion is None or evaluation.classes is None:
        return "", []
    counts, names = evaluation.confusion.tolist(), [short(row.name) for row in evaluation.classes]
    if len(names) <= MOST_SHOWN:
        table = [["", *names], *([name, *map(str, row)] for name, row in zip(names, counts, strict=True))]
        return "confusions: a row a target, a column a prediction", table
    pairs = [(counts[i][j], i, j) for i in range(len(names)) for j in range(len(names)) if i != j and counts[i][j]]
    worst = sorted(pairs, reverse=True)[:MOST_SHOWN]
    table = [["target", "taken for", "times"], *([names[i], names[j], f"{times:,}"] for times, i, j in worst)]
    return "most frequent confusions", table


def short(name: str) -> str:
    """Return a class's name as a table shows it."""
    name = printable(name)
    return name if len(name) <= WIDEST else f"{name[: WIDEST - 1]}…"


def aligned(table: Sequence[Sequence[str]]) -> list[str]:
    """Return the rows of a table as lines: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for row in table:
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(["  " + row[0].ljust(widths[0]), *cells]).rstrip())
    return lines
