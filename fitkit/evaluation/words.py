"""An evaluation, a calibration or the worst examples as text for a terminal and as HTML for a notebook."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

from fitkit.errors import printable
from fitkit.evaluation.calibration import Calibration
from fitkit.evaluation.evaluation import Evaluation
from fitkit.evaluation.intervals import Estimate
from fitkit.evaluation.worst import Worst

MOST_SHOWN = 20  # classes whose confusion matrix is printed whole
MOST_ROWS = 50  # classes that are printed, the largest
WIDEST = 24  # letters of a class's name
MOST_LETTERS = 60  # of a sample
MOST_ERRORS = 10  # suspected label errors that are printed
PICTURE = 48  # pixels a side in HTML, at least

Tables = Sequence[tuple[str, list[list[str]]]]  # the title of each, and its rows, the header first


def number(value: float) -> str:
    """Return a number as a table shows it: four digits, "-" for one that is not there."""
    if not math.isfinite(value):
        return "-" if math.isnan(value) else str(value)
    return f"{value:.4f}" if 1e-3 <= abs(value) < 1e3 or value == 0 else f"{value:.4g}"


def span(low: float, high: float) -> str:
    """Return an interval as a table shows it."""
    return "not known" if math.isnan(low) or math.isnan(high) else f"{number(low)} to {number(high)}"


def signed(change: Estimate) -> str:
    """Return the interval of a change as a table shows it."""
    return "not known" if math.isnan(change.low) else f"{change.low:+.4f} to {change.high:+.4f}"


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
    title = f"{evaluation.part}: {evaluation.samples:,} sample{'s' * (evaluation.samples != 1)}"
    if evaluation.positions != evaluation.samples:
        title += f", {evaluation.positions:,} targets"
    measures = [["", "", "95 % interval", ""]]
    for name, e in evaluation.estimates.items():
        measures.append([name, number(e.value), span(e.low, e.high), e.method])
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


def calibration_in_words(found: Calibration) -> str:
    """Return the temperature, the measures before and after, and the reliability, as lines of text."""
    return text_of(_calibration_tables(found), [*found.notes, _decision(found)])


def calibration_in_html(found: Calibration) -> str:
    """Return the same as HTML tables."""
    return html_of(_calibration_tables(found), [*found.notes, _decision(found)])


def _decision(found: Calibration) -> str:
    """Return whether the temperature was saved, and why."""
    nothing = "The data do not show that this is better than no temperature (T = 1)"
    t, change, nll = found.temperature, found.held_out, found.change["nll"]
    stays = "" if found.previous is None else f" The earlier temperature {number(found.previous)} stays."
    if math.isnan(t.low):
        gone = "No temperature is kept, as is forced." if found.previous is not None else "No temperature was saved."
        return gone if found.saved else f"No temperature was saved.{stays}"
    if not change.value < 0:
        if found.saved:
            return f"{nothing}; it was saved as it was forced."
        return f"{nothing}, so it was not saved; --force (in Python force=True) saves it.{stays}"
    said = f"It was saved: held-out samples of {found.fitted_on} get a lower negative log-likelihood by it"
    said += f" ({change.value:+.4f}, {signed(change)}). "
    if t.low <= 1 <= t.high:
        said += "The temperature's interval holds 1, so more samples may show a smaller gain, or none. "
    if found.part != found.fitted_on and nll.value >= 0:
        said += f"Samples of {found.part} do not ({nll.value:+.4f}, {signed(nll)}); "
        said += f"{found.part} decides nothing, or it were no test any more."
    return said.rstrip()


def _calibration_tables(found: Calibration) -> list[tuple[str, list[list[str]]]]:
    t = found.temperature
    title = f"temperature {number(t.value)}"
    if t.value != 1:
        title += f" (95 % interval {span(t.low, t.high)}), fitted on {found.fitted_on}"
        if found.saved:
            title += ": the model is too sure" if t.low > 1 else ": the model is not sure enough" if t.high < 1 else ""
    if found.saved and found.previous is not None:
        title += f"; it was {number(found.previous)} before"
    title += f"\n{found.part}: {found.samples:,} samples"
    title += f", after by {found.folds}-fold cross-fit" if found.folds else ""
    table = [["", "before", "95 % interval", "after", "95 % interval", "change", "95 % interval"]]
    for name, before in found.before.items():
        pairs = [f"{number(e.value)}|{span(e.low, e.high)}" for e in (before, found.after[name])]
        change = found.change.get(name)
        pairs.append("none|" if change is None else f"{change.value:+.4f}|{signed(change)}")
        table.append([name, *(part for pair in pairs for part in pair.split("|"))])
    bins = [["", "n before", "confidence", "right", "n after", "confidence", "right"]]
    for one, other in zip(found.reliability_before.bins, found.reliability_after.bins, strict=True):
        if one.count or other.count:
            cells = [[f"{b.count:,}", number(b.confidence), number(b.accuracy)] for b in (one, other)]
            bins.append([f"{one.low:.2f} to {one.high:.2f}", *cells[0], *cells[1]])
    return [(title, table), (f"reliability, {found.reliability_before}", bins)]


def worst_in_words(found: Worst) -> str:
    """Return the examples and the suspected label errors as lines of text."""
    return text_of(_worst_tables(found), found.notes)


def worst_in_html(found: Worst) -> str:
    """Return the same as HTML tables, images as images."""
    (title, table), *more = _worst_tables(found, most=10 * MOST_LETTERS)
    rows = ["".join(f"<th>{html.escape(cell)}</th>" for cell in table[0])]
    for cells, example in zip(table[1:], found, strict=True):
        shown = [html.escape(cell) for cell in cells]
        if example.sample is not None and example.sample.pixels is not None:
            width = max(PICTURE, example.sample.pixels.shape[2])
            alternative = html.escape(f"sample of row {example.row}")
            source = example.sample.data_uri()
            shown[-1] = f'<img src="{source}" width="{width}" alt="{alternative}" style="image-rendering: pixelated">'
        rows.append("".join(f"<td>{cell}</td>" for cell in shown))
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f"<p>{html.escape(title)}</p><table>{body}</table>" + html_of(more, found.notes)


def _worst_tables(found: Worst, most: int = MOST_LETTERS) -> list[tuple[str, list[list[str]]]]:
    lines = any(example.line is not None for example in found)
    residuals = any(example.residual is not None for example in found)
    head = ["row", *(["line"] if lines else []), "target", "prediction", "residual" if residuals else "confidence"]
    logs = any(example.confidence is not None for example in found)
    table = [[*head, "-log p(target)" if logs else "loss", "sample"]]
    for e in found:
        figure = e.residual if residuals else e.confidence
        cells = [str(e.row), *([str(e.line)] if lines else []), shown(e.target), shown(e.prediction)]
        table.append(
            [*cells, number(math.nan if figure is None else figure), number(e.loss), shown(e.sample or "", most)]
        )
    width = max(len(row[-1]) for row in table)
    table = [[*row[:-1], row[-1].ljust(width)] for row in table]
    by = "residual" if residuals else "-log p(target)" if logs else "loss"
    tables = [(f"{found.part}: the {len(found)} of {found.samples:,} samples with the highest {by}", table)]
    if found.label_errors:
        errors = found.label_errors
        table = [["row", *(["line"] if lines else []), "label", "suggested", "confidence", "in the label"]]
        for error in errors[:MOST_ERRORS]:
            cells = [str(error.row), *([str(error.line)] if lines else []), short(error.given), short(error.suggested)]
            table.append([*cells, number(error.confidence), number(error.given_confidence)])
        more = f", the first {MOST_ERRORS}; all of them: --label-errors FILE.csv" if len(errors) > MOST_ERRORS else ""
        tables.append((f"{len(errors):,} suspected label error{'s'[: len(errors) != 1]}{more}", table))
    return tables


def shown(value: object, most: int = WIDEST) -> str:
    """Return a target, a prediction or a sample as a cell of a table: one line, cut where it is long."""
    text = number(value) if isinstance(value, float) else str(value)
    if isinstance(value, list):
        text = " ".join(number(item) if isinstance(item, float) else str(item) for item in value)
    text = printable(text).replace("\n", "\\n")
    return text if len(text) <= most else f"{text[: most - 1]}…"
