"""The parts of a page that compares several runs: what they reached, how they got there, and what differs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fitkit import run_folder
from fitkit.after.compare import Comparison, compare
from fitkit.after.finished import direction
from fitkit.after.report import figures
from fitkit.after.report.gather import Run, gather
from fitkit.after.report.page import Child, Html, brief, facts, figure, join, note, paragraph, short, table, tag
from fitkit.after.report.sections import main_measure, measure, part_name, seconds, span, thinned
from fitkit.after.words import flow
from fitkit.changes import NOTHING, differing
from fitkit.errors import FitkitError
from fitkit.evaluation.contrast import Contrast
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


@dataclass(frozen=True)
class Runs:
    """Several runs, and what `fitkit.compare` says of them, or why it says nothing."""

    each: Sequence[Run]
    found: Comparison | None = None
    why: str = ""

    @property
    def estimates(self) -> list[Mapping[str, Estimate]]:
        """The measures of each run, none for a run that was not evaluated."""
        if self.found is not None:
            return [run.estimates for run in self.found.runs]
        return [{} if run.evaluation is None else run.evaluation.estimates for run in self.each]


def gather_runs(folders: Sequence[Path], part: str | None, root: Path | None) -> Runs:
    """Read run folders, and compare their models where that can be done, else evaluate each by itself."""
    for folder in folders:
        run_folder.refuse_folds(folder)
    read = [gather(folder, part, root, evaluate=False) for folder in folders]
    try:
        return Runs(read, compare(*folders, split=part or "val", root=root))
    except FitkitError as error:
        return Runs([gather(folder, part, root) for folder in folders], None, str(error).split("\n")[0])


def header(runs: Runs) -> Html:
    """Return title and verdict."""
    why = tag("p", "The runs are not tested against each other: ", short(runs.why, 600), class_="callout")
    return tag(
        "header",
        tag("p", "fitkit comparison", class_="kicker"),
        tag("h1", f"{len(runs.each)} runs"),
        tag("p", listed(runs.each), class_="byline"),
        tag("p", _ahead(runs) if runs.found is None else runs.found.verdict, class_="verdict"),
        why if runs.why else None,
    )


def _ahead(runs: Runs) -> str:
    """Say which run is ahead, for those that cannot be tested against each other."""
    found = [run.evaluation for run in runs.each if run.evaluation is not None]
    column = main_measure(found[0]) if found else ""
    if len(found) < len(runs.each):
        return "Not every run could be evaluated, so this shows what they wrote while training."
    if not all(column in one for one in found):
        return "The runs have no measure in common."
    lowest = direction(column) == "min"
    ranked = sorted(zip([one[column] for one in found], names(runs.each), strict=True), reverse=not lowest)
    return f"{ranked[0][1]} has the {'lowest' if lowest else 'highest'} {measure(column)}, {brief(ranked[0][0])}."


def listed(runs: Sequence[Run]) -> list[Html]:
    """Return the names of runs, each with its sign."""
    return [tag("span", key(place), name) for place, name in enumerate(names(runs))]


def key(place: int) -> Html:
    """Return the sign of a run in the figures."""
    dash = place // len(figures.RUNS) % len(figures.DASHES)
    return tag("i", class_=f"line run{place % len(figures.RUNS) + 1} dash{dash}")


def results(runs: Runs) -> Html:
    """Return the measures of each run with their intervals, the best value of each set off."""
    found, each = runs.estimates, runs.each
    rows: list[list[Child]] = []
    for column in dict.fromkeys(name for one in found for name in one):
        estimates = [one.get(column) for one in found]
        values = [e.value for e in estimates if e is not None and e.value == e.value]
        end = direction(column)
        best = None if not values or end is None else min(values) if end == "min" else max(values)
        cells = [
            "-" if e is None else [tag("b" if e.value == best else "span", brief(e.value)), _under(e)]
            for e in estimates
        ]
        rows.append([measure(column), *cells])
    rows.append(["best epoch", *(f"{run.best_epoch or '-'} of {len(run.history)}" for run in each)])
    rows.append(["time", *(seconds(run.history.seconds) if run.history.seconds else "-" for run in each)])
    rows.append(["status", *(run.status for run in each)])
    missing = [
        note(f"{name} is not evaluated: {short(run.missing, 400)}")
        for run, name in zip(each, names(each), strict=True)
        if run.missing
    ]
    return join(paragraph(_same_rows(each)), table(["", *listed(each)], rows, "Measures of each run"), missing)


def _under(found: Estimate) -> Html:
    return tag("small", span(found.low, found.high))


def contrasts(runs: Runs) -> Html | None:
    """Return how far each measure of each run lies from the first's, and whether that is more than noise."""
    if runs.found is None:
        return None
    said = names(runs.each)
    rows = []
    for column, found in runs.found.metrics.items():
        for name, one in zip(said[1:], found, strict=True):
            p = one.p if one.p_adjusted != one.p_adjusted else one.p_adjusted
            chance = "-" if p != p else f"{p:.3f}" if p >= 0.001 else f"{p:.0e}"
            moved = [_signed(one.difference), _between(one), chance]
            rows.append([f"{measure(column)}, {name}", *moved, one.method, one.outcome])
    holm = " With several runs p is corrected by Holm's method." if len(said) > 2 else ""
    above = paragraph(f"How far each measure lies above that of {said[0]}.{holm}")
    head = ["", "difference", "95 % interval", "p", "test", "than the first"]
    return join(above, table(head, rows, "Differences of measures"), [note(text) for text in runs.found.notes])


def _signed(value: float) -> str:
    return f"+{brief(value)}" if value > 0 else brief(value)


def _between(found: Contrast) -> str:
    return "-" if found.low != found.low else f"{_signed(found.low)} to {_signed(found.high)}"


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


def differences(runs: Runs) -> Html:
    """Return the keys of the resolved specs in which the runs differ, and what each says."""
    found = differing([{key: value for key, value in run.spec.items() if key != "name"} for run in runs.each])
    if not found:
        return paragraph("The resolved specs are equal but for their names.")
    rows = [[short(dotted, 80), *map(_said, values)] for dotted, values in found[:MOST_ROWS]]
    more = note(f"… and {len(found) - MOST_ROWS:,} more.") if len(found) > MOST_ROWS else None
    head = ["key of the resolved spec", *listed(runs.each)]
    return join(table(head, rows, "Differences of the specs", class_="specs"), more)


def _said(value: Any) -> Child:
    return "-" if value is NOTHING else tag("code", short(flow(value), 160))


def environments(given: Runs) -> Html:
    """Return what the runs ran on and the commands that made them."""
    rows, runs = [], given.each
    known: list[Mapping[str, Any]] = [run.environment for run in runs]
    for name in ("started", "fitkit", "torch", "device", "device_name", "threads", "precision", "compiled"):
        rows.append([name.replace("_", " "), *(short(str(one.get(name) or "-"), 60) for one in known)])
    commands = [
        (name, tag("code", short(str(run.environment.get("command", "-")))))
        for run, name in zip(runs, names(runs), strict=True)
    ]
    return join(table(["", *listed(runs)], rows, "Environments of the runs"), facts(commands))
