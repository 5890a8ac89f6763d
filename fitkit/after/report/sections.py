"""What a report says of a run's quality: the result first, its curves, its evaluation, its residuals.

Each part of a report is a function from what was gathered to HTML, or to None where it has no place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from fitkit.after.report import figures, verdict
from fitkit.after.report.gather import Run
from fitkit.after.report.page import Child, Html, brief, figure, join, note, paragraph, short, table, tag
from fitkit.evaluation.evaluation import Evaluation

STATUS = {
    "finished": "This run is finished.",
    "running": "This run is still going on, or was killed: this is what it has written so far.",
    "interrupted": "This run was interrupted: this is what it had come to. It can be gone on with.",
    "failed": "This run failed: this is what it had come to.",
}
PARTS = {"train": "training", "val": "validation", "test": "test"}
FIRST = ("accuracy", "r2", "root_mean_squared_error", "f1", "mean_absolute_error")  # what a headline names, if measured
MOST_POINTS = 2000  # of a curve
METHODS = (
    "Intervals say how far a measure would move with other samples of the same kind: Wilson's for a share of "
    "independent samples, else the bootstrap over samples."
)
WITHOUT = "So there are no intervals, classes, confusions or residuals; what follows is what the run folder holds."


def seconds(value: float) -> str:
    """Return a time as people say it."""
    if value < 10:
        return f"{value:.3g} s" if value >= 0.001 else f"{1000 * value:.2g} ms"
    if value < 120:
        return f"{value:.0f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest} s" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def span(low: float, high: float) -> str:
    """Return an interval in words."""
    return f"{brief(low)} to {brief(high)}"


def part_name(part: str) -> str:
    """Return what the prose calls a part of the data."""
    return PARTS.get(part, part)


def measure(name: str) -> str:
    """Return the name of a column or metric as words."""
    name = f"validation {name.removeprefix('val_')}" if name.startswith("val_") else name
    return short(name.replace("_", " "), 40)


def main_measure(evaluation: Evaluation) -> str:
    """Return the name of the measure that a headline gives."""
    return next((name for name in (*FIRST, *evaluation.estimates) if name in evaluation), "loss")


def headline(run: Run) -> str:
    """Return the result in one sentence."""
    epochs, best = len(run.history), run.best_epoch
    if not epochs:
        return "No epoch has ended yet."
    where = f"epoch {best} of {epochs}" if best else f"{epochs} epochs"
    if run.evaluation is None:
        column = next((name for name in ("val_accuracy", "val_loss", "loss") if name in run.history), "loss")
        epoch = best or epochs
        value = brief(run.history.history[column][epoch - 1])
        return f"{measure(column).capitalize()} is {value} in epoch {epoch} of {epochs}."
    name = main_measure(run.evaluation)
    found = run.evaluation.estimates[name]
    return (
        f"On {run.evaluation.samples:,} {part_name(run.part)} samples, {measure(name)} is {brief(found.value)}; its "
        f"95 % interval is {span(found.low, found.high)}. The weights are those of {where}."
    )


def header(run: Run) -> Html:
    """Return title, status and the result first."""
    began = str(run.environment.get("started", ""))[:16].replace("T", " ")
    status = tag("span", run.status, class_=f"badge {run.status}")
    line = [status, tag("span", began), tag("span", str(run.folder), class_="path")]
    warned = tag("p", STATUS[run.status], class_="callout") if run.status != "finished" else None
    return tag(
        "header",
        tag("p", "fitkit report", class_="kicker"),
        tag("h1", short(run.name, 80)),
        tag("p", line, class_="byline"),
        tag("p", headline(run), class_="verdict"),
        verdict.line(run),
        warned,
        tiles(run),
    )


def tiles(run: Run) -> Html:
    """Return the most important numbers."""
    found: list[tuple[str, str, Child]] = []
    if run.evaluation is not None:
        names = dict.fromkeys([main_measure(run.evaluation), "loss", "auroc", "mean_absolute_error"])
        for name in [name for name in names if name in run.evaluation][:3]:
            e = run.evaluation.estimates[name]
            found.append(
                (
                    f"{part_name(run.part)} {measure(name)}",
                    brief(e.value),
                    ["95 % interval", tag("br"), span(e.low, e.high)],
                )
            )
    elif len(run.history):
        for column in [name for name in ("val_accuracy", "val_loss", "loss") if name in run.history][:2]:
            value = run.history.history[column][(run.best_epoch or len(run.history)) - 1]
            found.append(
                (measure(column), brief(value), "in the best epoch" if run.best_epoch else "in the last epoch")
            )
    if run.best_epoch:
        by = f"by {measure(run.history.monitor)}" if run.history.monitor else None
        found.append(("best epoch", f"{run.best_epoch} of {len(run.history)}", by))
    total = run.history.seconds or sum(value for _, value in run.points("epoch_seconds"))
    if total:
        found.append(("time", seconds(total), str(run.environment.get("device", ""))))
    items = (tag("div", tag("dt", a), tag("dd", tag("b", b), tag("small", c))) for a, b, c in found)
    return tag("dl", items, class_="tiles")


def thinned(points: Sequence[tuple[int, float]], keep: int | None = None) -> list[tuple[int, float]]:
    """Return points such as a figure can show: evenly fewer where there are many, always with epoch `keep`."""
    step = -(-len(points) // MOST_POINTS)
    return [point for i, point in enumerate(points) if i % step == 0 or point[0] == keep or i == len(points) - 1]


def training(run: Run) -> Html:
    """Return the curves of all measures, and the learning rate."""
    if not len(run.history):
        return note("No epoch has ended yet, so there are no curves.")
    found, best = [], run.best_epoch
    for place, name in enumerate(run.measures):
        lines = {"training": run.points(name), "validation": run.points(f"val_{name}")}
        lines = {part: thinned(points, best) for part, points in lines.items() if points}
        if lines:
            caption = " ".join(_told(part, points, best) for part, points in lines.items())
            log = name == "loss" and figures.wide_range([v for points in lines.values() for _, v in points])
            drawing = figures.curves(f"curve{place}", measure(name), lines, caption, best=best, log=log)
            found.append(figure(drawing, measure(name) + (", logarithmic scale" if log else ""), caption))
    rates = thinned(run.points("lr"))
    if rates:
        values = [value for _, value in rates]
        words = f"{values[0]:.3g} in the first epoch, at most {max(values):.3g}, {values[-1]:.3g} in the last."
        found.append(figure(figures.line("rate", "Learning rate by epoch", rates, words), "learning rate", words))
    smooth = ""
    if len(run.history) >= figures.FEWEST:
        smooth = (
            " Strong lines are the trend, a running median over a tenth of the epochs, at least three; faint ones, "
        )
        smooth += "single epochs."
    mark = f"The dashed line marks epoch {best}, the best one." if best else "No epoch was chosen as the best one."
    ended = f" The fit ended: {short(run.history.stopped, 400)}." if run.history.stopped else ""
    return join(paragraph(f"{mark}{smooth}{ended}"), tag("div", found, class_="grid"))


def _told(part: str, points: Sequence[tuple[int, float]], best: int | None) -> str:
    (first, begin), (last, end) = points[0], points[-1]
    at = next((value for epoch, value in points if epoch == best), None)
    middle = "" if at is None or best in (first, last) else f", {brief(at)} in epoch {best}"
    if first == last:
        return f"{part.capitalize()}: {brief(begin)} in epoch {first}."
    return f"{part.capitalize()}: {brief(begin)} in epoch {first}{middle}, {brief(end)} in epoch {last}."


def evaluation(run: Run) -> Html:
    """Return all measures with their intervals, or why there are none."""
    found = run.evaluation
    if found is None:
        reason = paragraph(
            "The model was not evaluated for this report: ", tag("span", short(run.missing, 600)), class_="callout"
        )
        return join(
            reason,
            note(WITHOUT),
        )
    rows = [[measure(name), brief(e.value), span(e.low, e.high), e.method] for name, e in found.estimates.items()]
    whose = "the weights of the best epoch" if run.best_epoch else "the weights that are kept"
    what = f"{found.samples:,} {part_name(run.part)} samples, {whose}."
    if found.positions != found.samples:
        what = f"{found.positions:,} targets in {what}"
    methods = METHODS
    notes = [note(f"Note: {text}.") for text in found.notes]
    return join(
        paragraph(what),
        table(["measure", "value", "95 % interval", "method"], rows, "Measures with intervals"),
        note(methods),
        notes,
    )


def residuals(run: Run) -> Html | None:
    """Return predictions over targets and the histogram of their differences, for values."""
    if run.evaluation is None or run.outcomes is None or run.evaluation.residuals is None:
        return None
    found = run.evaluation.residuals
    predicted, targets = run.outcomes.predicted.double().flatten(), run.outcomes.targets.double().flatten()
    step = -(-len(targets) // figures.MOST_POINTS)
    pairs = [
        (t, p)
        for t, p in zip(targets[::step].tolist(), predicted[::step].tolist(), strict=True)
        if math.isfinite(t + p)
    ]
    if not pairs:
        return note("No prediction is finite.")
    xs, ys = [t for t, _ in pairs], [p for _, p in pairs]
    errors = [p - t for t, p in pairs]
    few = f" {len(pairs):,} of {len(targets):,} are drawn, evenly chosen." if step > 1 else ""
    ends = f"from {brief(min(ys))} to {brief(max(ys))} for targets from {brief(min(xs))} to {brief(max(xs))}"
    cloud = f"{len(pairs):,} predictions {ends}.{few} On the dashed line both are equal."
    inside = ", ".join(f"{100 * q:g} %: {brief(value)}" for q, value in found.quantiles.items())
    spread = f"Mean {brief(found.mean)}, standard deviation {brief(found.standard_deviation)}. Quantiles: {inside}."
    return tag(
        "div",
        figure(figures.cloud("cloud", xs, ys, cloud), "prediction over target", cloud),
        figure(figures.histogram("residuals-plot", errors, spread), "prediction minus target", spread),
        class_="grid",
    )
