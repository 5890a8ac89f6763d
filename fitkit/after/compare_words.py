"""A comparison of runs as text for a terminal and as HTML for a notebook, and its verdict."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from fitkit.after.compare import ComparedRun, Comparison
from fitkit.changes import NOTHING
from fitkit.errors import listing, printable
from fitkit.evaluation.contrast import Contrast
from fitkit.evaluation.words import Tables, html_of, number, short, span, text_of

MOST_VALUE = 40  # letters of a value in the table of differences
MOST_LAYERS = 4  # that are named of a model
MARKS = {"better": " +", "worse": " -", "same": " =", "cannot be told": "  "}


def in_words(comparison: Comparison) -> str:
    """Return the tables, the verdict and the notes as lines of text."""
    text = text_of(_tables(comparison), [comparison.verdict])
    return "\n\n".join([text, "\n".join(map(printable, comparison.notes))] if comparison.notes else [text])


def in_html(comparison: Comparison) -> str:
    """Return the same as HTML."""
    return html_of(_tables(comparison), [comparison.verdict, *comparison.notes])


def _tables(comparison: Comparison) -> Tables:
    tables = [(f"{len(comparison.runs)} runs", _run_table(comparison.runs))]
    differences = _difference_table(comparison)
    if len(differences) > 1:
        tables.append(("what differs", differences))
    if comparison.groups is not None or len(comparison.runs) > 2:
        marks = "" if comparison.groups else ": + better, - worse than the first"
        tables.append((f"{comparison.part}, best epoch of each run{marks}", _value_table(comparison)))
    if comparison.groups is None and len(comparison.runs) > 2:
        title = f"{comparison.headline}, each run against {_name(comparison.runs[0])}"
        tables.append((title, _headline_table(comparison)))
    else:
        tables.append(_metric_table(comparison))
    return tables


def _run_table(runs: Sequence[ComparedRun]) -> list[list[str]]:
    table = [["", "seed", "epochs", "best", "seconds", "peak MB", "parameters", "rows"]]
    for run in runs:
        counts = [_count(value) for value in (run.seed, run.epochs, run.best_epoch)]
        table.append(
            [
                _name(run),
                *counts,
                _count(run.seconds and round(run.seconds, 1)),
                _count(run.peak_memory_mb and round(run.peak_memory_mb)),
                _count(run.parameters),
                _count(run.samples),
            ]
        )
    return table


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int | float) else "-"


def _name(run: ComparedRun) -> str:
    return short(run.label)


def _difference_table(comparison: Comparison) -> list[list[str]]:
    """Return a row a key: a column a run, or a side of the comparison where runs are seeds of one spec."""
    sides = [[run] for run in comparison.runs] if comparison.groups is None else _sides(comparison)
    rows = [(printable(d.key), [_said(v) for v in d.values]) for d in comparison.differences if d.where != "data"]
    if data := [d for d in comparison.differences if d.where == "data"]:
        names = listing(d.key.removeprefix("data_") for d in data)
        rows.append(
            (
                f"rows of {names}",
                [" ".join(_said(v)[:6] for v in run) for run in zip(*(d.values for d in data), strict=True)],
            )
        )
    table = [["", *(_side_name(side) for side in sides)]]
    for key, values in rows:
        left = iter(values)
        cells = [", ".join(dict.fromkeys(next(left) for _ in side)) for side in sides]
        if len(set(cells)) > 1:
            table.append([key, *cells])
    return table


def _said(value: Any) -> str:
    """Return a value of a spec in a few letters: a model as its layers' names, a component as its name or as JSON."""
    if value is NOTHING:
        return "-"
    if isinstance(value, list) and value and all(isinstance(item, Mapping | str) for item in value):
        names = [item if isinstance(item, str) else next(iter(item), "") for item in value]
        cut = ", …" if len(names) > MOST_LAYERS else ""
        text = f"{len(names)}: {', '.join(names[:MOST_LAYERS])}{cut}"
    else:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = printable(text)
    return text if len(text) <= MOST_VALUE else f"{text[: MOST_VALUE - 1]}…"


def _value_table(comparison: Comparison) -> list[list[str]]:
    """Return a row a run, and of runs that were compared with the first the mark of the outcome."""
    table = [["", *comparison.metrics]]
    for i, run in enumerate(comparison.runs):
        row = [_name(run)]
        for name, contrasts in comparison.metrics.items():
            mark = MARKS[contrasts[i - 1].outcome] if i and comparison.groups is None else ""
            row.append(number(run.estimates[name].value) + (mark or ("" if comparison.groups else "  ")))
        table.append(row)
    return table


def _headline_table(comparison: Comparison) -> list[list[str]]:
    name, contrasts = comparison.headline, comparison.metrics[comparison.headline]
    table = [["", name, "95 % interval", "difference", "95 % interval", "p", "p (Holm)", "test", ""]]
    for run, found in zip(comparison.runs, [None, *contrasts], strict=True):
        own = run.estimates[name]
        row = [_name(run), number(own.value), span(own.low, own.high)]
        if found is None:
            table.append([*row, *[""] * 6])
            continue
        row += [_signed(found.difference), _range(found), _p(found.p), _p(found.p_adjusted)]
        table.append([*row, found.method, found.outcome])
    return table


def _metric_table(comparison: Comparison) -> tuple[str, list[list[str]]]:
    """Return a row a metric, of two runs or two groups of them."""
    first, second = _sides(comparison)
    names = [_side_name(side) for side in (first, second)]
    table = [["", *names, "difference", "95 % interval", "p", "test", ""]]
    for name, [found] in comparison.metrics.items():
        values = [number(fmean(run.estimates[name].value for run in side)) for side in (first, second)]
        row = [name, *values, _signed(found.difference), _range(found), _p(found.p), found.method]
        table.append([*row, found.outcome])
    title = f"{comparison.part}, best epoch: {names[1]} minus {names[0]}"
    return (title if comparison.groups is None else f"means: {names[1]} minus {names[0]}"), table


def _sides(comparison: Comparison) -> tuple[Sequence[ComparedRun], Sequence[ComparedRun]]:
    cut = 1 if comparison.groups is None else comparison.groups[0]
    return comparison.runs[:cut], comparison.runs[cut:]


def _side_name(side: Sequence[ComparedRun]) -> str:
    return _name(side[0]) if len(side) == 1 else f"{_name(side[0])} … {_name(side[-1])}"


def _signed(value: float) -> str:
    return number(value) if not value > 0 else f"+{number(value)}"


def _range(found: Contrast) -> str:
    return "-" if math.isnan(found.low) else f"{_signed(found.low)} to {_signed(found.high)}"


def _p(p: float) -> str:
    if math.isnan(p):
        return "-"
    return f"{p:.3f}" if p >= 0.001 else f"{p:.0e}"


def verdict(comparison: Comparison) -> str:
    """Return what can be said of the headline metric."""
    contrasts = comparison.metrics[comparison.headline]
    if comparison.groups is not None:
        return _over_seeds(comparison, contrasts[0])
    if comparison.only_seeds:
        return _only_seeds(comparison)
    if len(contrasts) > 1:
        return _several(comparison, contrasts)
    return _pair(comparison, contrasts[0])


def _pair(comparison: Comparison, found: Contrast) -> str:
    first, second = comparison.runs
    values = " against ".join(number(run.estimates[found.metric].value) for run in (second, first))
    rows = listing(dict.fromkeys(f"{run.samples:,}" for run in (first, second)))
    names = f"{_name(second)} is", f"than {_name(first)}"
    if found.same:
        value = number(first.estimates[found.metric].value)
        return f"{_name(second)} and {_name(first)} are the same in {found.metric} on each of the {rows} rows: {value}."
    if math.isnan(found.p):
        return f"{found.metric} has no value with which {_name(second)} and {_name(first)} could be compared."
    said = f"{_amount(found, *names)} ({values}; 95 % interval of the difference {_ends(found)})"
    if found.outcome != "cannot be told":
        return f"{said}, which is more than noise at n = {rows} ({found.method}, p = {_p(found.p)})."
    said += f", which cannot be told from noise at n = {rows} ({found.method}, p = {_p(found.p)})."
    return said + _rows(found, rows)


def _amount(found: Contrast, is_: str, than: str) -> str:
    if found.difference == 0:
        return f"{is_} no better {than} in {found.metric}"
    word = "better" if (found.difference > 0) == found.higher_is_better else "worse"
    size = abs(found.difference)
    if found.share:
        return f"{is_} {_points(size)} points {word} {than} in {found.metric}"
    return f"{is_} {word} {than} in {found.metric} by {number(size)}"


def _points(share: float) -> str:
    return f"{100 * share:.1f}" if abs(share) >= 0.001 or not share else f"{100 * share:.2g}"


def _ends(found: Contrast) -> str:
    if found.share:
        return f"{_points(found.low)} to {_points(found.high)} points"
    return span(found.low, found.high)


def _rows(found: Contrast, rows: str) -> str:
    """Say how many rows would tell; of no difference none would."""
    if not math.isfinite(found.needed):
        return ""
    count = math.ceil(found.needed)
    digits = max(0, len(str(count)) - 2)
    about = math.ceil(count / 10**digits) * 10**digits
    times = found.needed / int(rows.split(", ")[0].replace(",", ""))
    often = f"{times:.1f}" if times < 10 else f"{times:,.0f}"
    return f" If it is the true difference, about {about:,} rows, {often} times as many, would show it in 4 of 5 cases."


def _only_seeds(comparison: Comparison) -> str:
    name = comparison.headline
    values = [run.estimates[name].value for run in comparison.runs]
    text = f"The same experiment with {len(values)} seeds: {name} {listing(map(number, values), 6)} (mean "
    text += f"{number(fmean(values))}, sd {number(stdev(values))})"
    contrasts = comparison.metrics[name]
    if len(contrasts) == 1 and not math.isnan(contrasts[0].p):
        found = contrasts[0]
        away = f"{_points(abs(found.difference))} points" if found.share else number(abs(found.difference))
        text += f", {away} apart (95 % interval {_ends(found)}; {found.method}, p = {_p(found.p)})"
    text += ". This is the noise of seeds (initial weights, order of the rows, and the split where it is drawn), and "
    text += "no run is a better spec than another."
    return text + (" Two seeds say little of how large it is: fit three or more." if len(values) == 2 else "")


def _several(comparison: Comparison, contrasts: Sequence[Contrast]) -> str:
    first, *others = comparison.runs
    parts = []
    for outcome in ("better", "worse", "cannot be told", "same"):
        chosen = [(run, found) for run, found in zip(others, contrasts, strict=True) if found.outcome == outcome]
        if chosen:
            parts.append(f"{outcome}: {listing(f'{_name(run)} ({_by(found)})' for run, found in chosen)}")
    tests = f"Holm's correction over {len(others)} tests"
    return f"Against {_name(first)} in {comparison.headline} ({tests}): {'; '.join(parts)}."


def _by(found: Contrast) -> str:
    sign = "+" if found.difference > 0 else ""
    return f"{sign}{_points(found.difference)} points" if found.share else _signed(found.difference)


def _over_seeds(comparison: Comparison, found: Contrast) -> str:
    first, second = _sides(comparison)
    each = []
    for side in (second, first):
        values = [run.estimates[found.metric].value for run in side]
        each.append(f"{number(fmean(values))} ± {number(stdev(values))}")
    names = f"{_side_name(second)} are", f"than {_side_name(first)}"
    said = f"mean ± sd of {len(second)} and {len(first)} seeds: {' against '.join(each)}"
    if found.same:
        return f"{names[0]} the same as {_side_name(first)} in {found.metric} with every seed ({said})."
    if math.isnan(found.p):
        return (
            f"{names[0]} {found.metric} is {said}; every seed gives the same, so that nothing is known of their noise."
        )
    said = f"{_amount(found, *names)} ({said}; 95 % interval of the difference {_ends(found)})"
    if found.outcome != "cannot be told":
        return f"{said}, which is more than the noise of seeds ({found.method}, p = {_p(found.p)})."
    text = f"{said}, which cannot be told from the noise of seeds ({found.method}, p = {_p(found.p)})."
    if math.isinf(found.needed):
        return f"{text} No number of seeds would show so small a difference on this data: more rows would."
    if math.isnan(found.needed):
        return text
    return (
        f"{text} If that is the true difference, about {found.needed:,.0f} seeds a side would show it in 4 of 5 cases."
    )
