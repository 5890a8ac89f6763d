"""The parts of a page that compares several runs: what they reached, how they got there, and what differs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fitkit.after.report import figures
from fitkit.after.report.gather import Run
from fitkit.after.report.page import Child, Html, facts, figure, join, note, paragraph, short, table, tag
from fitkit.after.report.sections import main_measure, part_name, seconds, span, thinned
from fitkit.changes import NOTHING, changes
from fitkit.evaluation.words import number

NAME = 40  # letters of a run's name
MOST_ROWS = 200  # differences that are listed


def names(runs: Sequence[Run]) -> list[str]:
    """Return what tells the runs apart: the names of their folders, or the paths where those are equal."""
    found = [run.folder.name for run in runs]
    return [
        short(name if len(set(found)) == len(found) else str(run.folder), NAME)
        for name, run in zip(found, runs, strict=True)
    ]


def header(runs: Sequence[Run]) -> Html:
    """Return title and, where all runs were evaluated, which of them is ahead."""
    measured = [
        (run.evaluation, name) for run, name in zip(runs, names(runs), strict=True) if run.evaluation is not None
    ]
    verdict = "Not every run could be evaluated, so this compares what they wrote while training."
    if len(measured) == len(runs):
        column = main_measure(measured[0][0])
        if all(column in found for found, _ in measured):
            lower = (
                runs[0].history.directions.get(f"val_{column}") == "min" or column.endswith("error") or column == "loss"
            )
            ranked = sorted(measured, key=lambda pair: pair[0][column], reverse=not lower)
            (first, winner), (second, _) = ranked[0], ranked[1]
            low, high = first.interval(column)
            inside = "within" if low <= second[column] <= high else "outside"
            verdict = (
                f"{winner} has the {'lowest' if lower else 'highest'} {column}: {number(first[column])}, 95 % interval "
                f"{span(low, high)}. The next one, {number(second[column])}, is {inside} that interval."
            )
    return tag(
        "header",
        tag("p", "fitkit comparison", class_="kicker"),
        tag("h1", f"{len(runs)} runs"),
        tag("p", _list(names(runs)), class_="byline"),
        tag("p", verdict, class_="verdict"),
    )


def _list(found: Sequence[str]) -> Html:
    return join(tag("span", key(place), name) for place, name in enumerate(found))


def key(place: int) -> Html:
    """Return the sign of a run in the figures."""
    return tag(
        "i", class_=f"key run{place % len(figures.RUNS) + 1} dash{place // len(figures.RUNS) % len(figures.DASHES)}"
    )


def results(runs: Sequence[Run]) -> Html:
    """Return the measures of each run with their intervals."""
    shown = [run for run in runs if run.evaluation is not None]
    columns = list(dict.fromkeys(name for run in shown for name in run.evaluation or ()))
    rows: list[list[Child]] = []
    for place, (run, name) in enumerate(zip(runs, names(runs), strict=True)):
        cells: list[Child] = []
        for column in columns:
            e = None if run.evaluation is None else run.evaluation.estimates.get(column)
            cells.append("-" if e is None else join(number(e.value), tag("small", span(e.low, e.high))))
        epochs = f"{run.best_epoch or '-'} of {len(run.history)}"
        time = seconds(run.history.seconds) if run.history.seconds else "-"
        rows.append([join(key(place), name), run.status, *cells, epochs, time])
    head = ["run", "status", *(short(column, NAME) for column in columns), "best epoch", "time"]
    missing = [
        note(f"{name}: not evaluated: {short(run.missing, 400)}")
        for run, name in zip(runs, names(runs), strict=True)
        if run.missing
    ]
    return join(paragraph(_same_rows(runs)), table(head, rows, "Measures of each run"), missing)


def _same_rows(runs: Sequence[Run]) -> str:
    part = runs[0].part
    sums = {run.environment.get(f"data_{part}") for run in runs}
    if len(sums) == 1 and None not in sums:
        return f"All runs have the same {part_name(part)} samples. Small figures are 95 % intervals."
    return f"The runs do not have the same {part_name(part)} samples, so part of any difference is theirs. Small figures are 95 % intervals."


def curves(runs: Sequence[Run]) -> Html:
    """Return the curves of all runs, a figure a measure."""
    found: list[Html] = []
    measures = list(dict.fromkeys(name for run in runs for name in run.measures))
    for place, name in enumerate(column for measure in measures for column in (f"val_{measure}", measure)):
        lines = [(said, thinned(run.points(name), run.best_epoch)) for run, said in zip(runs, names(runs), strict=True)]
        if any(points for _, points in lines):
            ends = [f"{said} {number(points[-1][1])}" for said, points in lines if points]
            words = f"In the last epoch: {', '.join(ends)}."
            found.append(
                figure(figures.overlaid(f"curve{place}", short(name, NAME), lines, words), short(name, NAME), words)
            )
    legend = tag("p", _list(names(runs)), class_="legend")
    return join(legend, tag("div", found, class_="grid")) if found else note("No epoch has ended yet.")


def differences(runs: Sequence[Run]) -> Html:
    """Return the keys of the resolved specs in which any run differs from the first."""
    plain = [{key: value for key, value in run.spec.items() if key != "name"} for run in runs]
    found: dict[str, dict[int, Any]] = {}
    for place, other in enumerate(plain[1:], 1):
        for change in changes(plain[0], other):
            found.setdefault(change.key, {0: change.then})[place] = change.now
    if not found:
        return paragraph("The resolved specs are equal but for their names.")
    rows = []
    for dotted, values in list(found.items())[:MOST_ROWS]:
        rows.append([short(dotted, 80), *(_said(values.get(place, values[0])) for place in range(len(runs)))])
    more = note(f"… and {len(found) - MOST_ROWS:,} more.") if len(found) > MOST_ROWS else None
    return join(table(["key of the resolved spec", *names(runs)], rows, "Differences of the specs"), more)


def _said(value: Any) -> Child:
    return "-" if value is NOTHING else tag("code", short(json.dumps(value, ensure_ascii=False), 120))


def environments(runs: Sequence[Run]) -> Html:
    """Return what the runs ran on and the commands that made them."""
    rows = []
    known: list[Mapping[str, Any]] = [run.environment for run in runs]
    for name in ("started", "fitkit", "torch", "device", "device_name", "threads", "precision", "compiled"):
        rows.append([name.replace("_", " "), *(short(str(one.get(name) or "-"), 60) for one in known)])
    commands = [
        (name, tag("code", short(str(run.environment.get("command", "-")))))
        for run, name in zip(runs, names(runs), strict=True)
    ]
    return join(table(["", *names(runs)], rows, "Environments of the runs"), facts(commands))
