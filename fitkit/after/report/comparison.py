"""The parts of a page that compares several runs: what they reached, how they got there, and what differs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fitkit.after.report import figures
from fitkit.after.report.gather import Run, direction
from fitkit.after.report.page import Child, Html, brief, facts, figure, join, note, paragraph, short, table, tag
from fitkit.after.report.sections import main_measure, measure, part_name, seconds, span, thinned
from fitkit.after.words import flow
from fitkit.changes import NOTHING
from fitkit.evaluation.intervals import Estimate

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
    found = [(run.evaluation, name) for run, name in zip(runs, names(runs), strict=True) if run.evaluation is not None]
    verdict = "Not every run could be evaluated, so this compares what they wrote while training."
    column = main_measure(found[0][0]) if found else ""
    if len(found) == len(runs) and all(column in one for one, _ in found):
        lowest = direction(column) == "min"
        found.sort(key=lambda pair: pair[0][column], reverse=not lowest)
        (first, winner), (second, _) = found[:2]
        low, high = first.interval(column)
        verdict = (
            f"{winner} has the {'lowest' if lowest else 'highest'} {measure(column)}: {brief(first[column])}, 95 % "
            f"interval {span(low, high)}. The next one, {brief(second[column])}, is "
            f"{'within' if low <= second[column] <= high else 'outside'} that interval."
        )
    return tag(
        "header",
        tag("p", "fitkit comparison", class_="kicker"),
        tag("h1", f"{len(runs)} runs"),
        tag("p", listed(runs), class_="byline"),
        tag("p", verdict, class_="verdict"),
    )


def listed(runs: Sequence[Run]) -> list[Html]:
    """Return the names of runs, each with its sign."""
    return [tag("span", key(place), name) for place, name in enumerate(names(runs))]


def key(place: int) -> Html:
    """Return the sign of a run in the figures."""
    dash = place // len(figures.RUNS) % len(figures.DASHES)
    return tag("i", class_=f"line run{place % len(figures.RUNS) + 1} dash{dash}")


def results(runs: Sequence[Run]) -> Html:
    """Return the measures of each run with their intervals, the best value of each set off."""
    found = [run.evaluation for run in runs]
    columns = list(dict.fromkeys(name for one in found for name in one or ()))
    rows: list[list[Child]] = []
    for column in columns:
        estimates = [None if one is None else one.estimates.get(column) for one in found]
        values = [e.value for e in estimates if e is not None and e.value == e.value]
        end = direction(column)
        best = None if not values or end is None else min(values) if end == "min" else max(values)
        cells = [
            "-" if e is None else [tag("b" if e.value == best else "span", brief(e.value)), _under(e)]
            for e in estimates
        ]
        rows.append([measure(column), *cells])
    rows.append(["best epoch", *(f"{run.best_epoch or '-'} of {len(run.history)}" for run in runs)])
    rows.append(["time", *(seconds(run.history.seconds) if run.history.seconds else "-" for run in runs)])
    rows.append(["status", *(run.status for run in runs)])
    missing = [
        note(f"{name} is not evaluated: {short(run.missing, 400)}")
        for run, name in zip(runs, names(runs), strict=True)
        if run.missing
    ]
    return join(paragraph(_same_rows(runs)), table(["", *listed(runs)], rows, "Measures of each run"), missing)


def _under(found: Estimate) -> Html:
    return tag("small", span(found.low, found.high))


def _same_rows(runs: Sequence[Run]) -> str:
    part = runs[0].part
    sums = {run.environment.get(f"data_{part}") for run in runs}
    small = "Small figures are 95 % intervals."
    if len(sums) == 1 and None not in sums:
        return f"All runs have the same {part_name(part)} samples. {small}"
    return f"The runs do not have the same {part_name(part)} samples: part of any difference is theirs. {small}"


def curves(runs: Sequence[Run]) -> Html:
    """Return the curves of all runs, a figure a measure."""
    found: list[Html] = []
    measures = list(dict.fromkeys(name for run in runs for name in run.measures))
    for place, name in enumerate(column for base in measures for column in (f"val_{base}", base)):
        lines = [(said, thinned(run.points(name), run.best_epoch)) for run, said in zip(runs, names(runs), strict=True)]
        if any(points for _, points in lines):
            ends = [f"{said} {brief(points[-1][1])}" for said, points in lines if points]
            words = f"In the last epoch: {', '.join(ends)}."
            title = measure(name if name.startswith("val_") else f"training {name}")
            found.append(figure(figures.overlaid(f"curve{place}", title, lines, words), title, words))
    legend = tag("p", listed(runs), class_="legend")
    return join(legend, tag("div", found, class_="grid")) if found else note("No epoch has ended yet.")


def differences(runs: Sequence[Run]) -> Html:
    """Return the keys of the resolved specs in which the runs differ, and what each says."""
    found = list(_differing([{key: value for key, value in run.spec.items() if key != "name"} for run in runs], ""))
    if not found:
        return paragraph("The resolved specs are equal but for their names.")
    rows = [[short(dotted, 80), *map(_said, values)] for dotted, values in found[:MOST_ROWS]]
    more = note(f"… and {len(found) - MOST_ROWS:,} more.") if len(found) > MOST_ROWS else None
    head = ["key of the resolved spec", *listed(runs)]
    return join(table(head, rows, "Differences of the specs", class_="specs"), more)


def _differing(values: Sequence[Any], key: str) -> Iterator[tuple[str, Sequence[Any]]]:
    """Yield the dotted keys at which trees differ, and their values there; a component of another name is one."""
    if all(value == values[0] and type(value) is type(values[0]) for value in values):
        return
    if all(isinstance(value, Mapping) for value in values):
        names = list(dict.fromkeys(name for value in values for name in value))
        if not key or len(names) == 1 or any(len(value) > 1 for value in values):
            for name in names:
                below = [value.get(name, NOTHING) for value in values]
                yield from _differing(below, f"{key}.{name}" if key else str(name))
            return
    if all(isinstance(value, list) for value in values) and len({len(value) for value in values}) == 1:
        for place, pieces in enumerate(zip(*values, strict=True)):
            yield from _differing(pieces, f"{key}[{place}]")
        return
    yield key, values


def _said(value: Any) -> Child:
    return "-" if value is NOTHING else tag("code", short(flow(value), 160))


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
    return join(table(["", *listed(runs)], rows, "Environments of the runs"), facts(commands))
