"""The parts of the report on one run: each a function from what was gathered to HTML, or None where it has no place."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from fitkit.after.report import figures
from fitkit.after.report.gather import Run
from fitkit.after.report.page import Child, Html, code, facts, figure, join, note, paragraph, short, table, tag
from fitkit.evaluation.evaluation import Evaluation
from fitkit.evaluation.words import number

STATUS = {
    "finished": "This run is finished.",
    "running": "This run is still going on, or was killed: this is what it has written so far.",
    "interrupted": "This run was interrupted: this is what it had come to. It can be gone on with.",
    "failed": "This run failed: this is what it had come to.",
}
PARTS = {"train": "training", "val": "validation", "test": "test"}
FIRST = ("accuracy", "r2", "root_mean_squared_error", "f1", "mean_absolute_error")  # what a headline names, if measured
MOST_POINTS = 2000  # of a curve


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
    return f"{number(low)} to {number(high)}"


def part_name(part: str) -> str:
    """Return what the prose calls a part of the data."""
    return PARTS.get(part, part)


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
        row = (best or epochs) - 1
        return f"{column} is {number(run.history.history[column][row])} at {where}."
    name = main_measure(run.evaluation)
    found = run.evaluation.estimates[name]
    return (
        f"On {run.evaluation.samples:,} {part_name(run.part)} samples, {name} is {number(found.value)}; its 95 % "
        f"interval is {span(found.low, found.high)}. The weights are those of {where}."
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
        warned,
        tiles(run),
    )


def tiles(run: Run) -> Html:
    """Return the most important numbers."""
    found: list[tuple[str, str, str]] = []
    if run.evaluation is not None:
        names = dict.fromkeys([main_measure(run.evaluation), "loss", "auroc", "mean_absolute_error"])
        for name in [name for name in names if name in run.evaluation][:3]:
            e = run.evaluation.estimates[name]
            found.append((f"{part_name(run.part)} {name}", number(e.value), f"95 %: {span(e.low, e.high)}"))
    elif len(run.history):
        for column in [name for name in ("val_accuracy", "val_loss", "loss") if name in run.history][:2]:
            value = run.history.history[column][(run.best_epoch or len(run.history)) - 1]
            found.append((column, number(value), "at the best epoch"))
    if run.best_epoch:
        stopped = str(run.summary.get("stopped") or "")
        found.append(("best epoch", f"{run.best_epoch} of {len(run.history)}", stopped))
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
            drawing = figures.curves(f"curve{place}", short(name, 40), lines, caption, best=best, log=log)
            found.append(figure(drawing, short(name, 40) + (", logarithmic scale" if log else ""), caption))
    rates = thinned(run.points("lr"))
    if rates:
        values = [value for _, value in rates]
        words = f"From {values[0]:.3g} over at most {max(values):.3g} to {values[-1]:.3g}, as the last step of an epoch used it."
        found.append(figure(figures.line("rate", "Learning rate by epoch", rates, words), "learning rate", words))
    windows = [figures.trend([0.0] * len(run.history))[1]] if len(run.history) >= 8 else []
    smooth = "".join(
        f" Strong lines are the trend, a moving average over {k} epochs; faint ones the epochs." for k in windows
    )
    mark = f"The dashed line marks epoch {best}, the best one." if best else "No epoch was chosen as the best one."
    return join(paragraph(f"{mark}{smooth}"), tag("div", found, class_="grid"))


def _told(part: str, points: Sequence[tuple[int, float]], best: int | None) -> str:
    (first, begin), (last, end) = points[0], points[-1]
    at = next((value for epoch, value in points if epoch == best), None)
    middle = "" if at is None or best in (first, last) else f", {number(at)} in epoch {best}"
    if first == last:
        return f"{part.capitalize()}: {number(begin)} in epoch {first}."
    return f"{part.capitalize()}: {number(begin)} in epoch {first}{middle}, {number(end)} in epoch {last}."


def evaluation(run: Run) -> Html:
    """Return all measures with their intervals, or why there are none."""
    found = run.evaluation
    if found is None:
        reason = paragraph(
            "The model was not evaluated for this report: ", tag("span", short(run.missing, 600)), class_="callout"
        )
        return join(
            reason,
            note(
                "So there are no intervals, classes, confusions or residuals below; the rest is what the run folder holds."
            ),
        )
    rows = [[short(name, 40), number(e.value), span(e.low, e.high), e.method] for name, e in found.estimates.items()]
    whose = "the weights of the best epoch" if run.best_epoch else "the weights that are kept"
    what = f"{found.samples:,} {part_name(run.part)} samples, {whose}."
    if found.positions != found.samples:
        what = f"{found.positions:,} targets in {what}"
    methods = "Intervals say how far a measure would move with other samples of the same kind: Wilson's for a share, else the bootstrap over samples."
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
    cloud = f"{len(pairs):,} predictions from {number(min(ys))} to {number(max(ys))} for targets from {number(min(xs))} to {number(max(xs))}.{few} On the dashed line both are equal."
    inside = ", ".join(f"{100 * q:g} %: {number(value)}" for q, value in found.quantiles.items())
    spread = f"Mean {number(found.mean)}, standard deviation {number(found.standard_deviation)}. Quantiles: {inside}."
    return tag(
        "div",
        figure(figures.cloud("cloud", xs, ys, cloud), "prediction over target", cloud),
        figure(figures.histogram("residuals-plot", errors, spread), "prediction minus target", spread),
        class_="grid",
    )


def data(run: Run) -> Html:
    """Return splits, class counts and what the check of the data found."""
    parts: list[Child] = []
    source = run.spec.get("data")
    asked = [("source", _one_line(source)), ("splits", _one_line(run.spec.get("splits")))]
    parts.append(facts([(name, tag("code", short(text))) for name, text in asked if text]))
    check = run.data_check
    if check is None:
        parts.append(
            note("This run folder holds no check of its data, so sizes and classes of all splits are not known.")
        )
        if run.evaluation is not None and run.evaluation.classes is not None:
            counts = ", ".join(f"{short(row.name, 24)} {row.support:,}" for row in run.evaluation.classes[:50])
            parts.append(paragraph(f"Classes of the {part_name(run.part)} split: {counts}."))
        return join(parts)
    sizes = [
        (part_name(str(part)), "unknown" if size is None else f"{int(size):,}") for part, size in check["parts"].items()
    ]
    parts.append(table(["split", "samples"], sizes, "Samples of each split", class_="narrow"))
    if check.get("classes"):
        parts.append(_class_counts(check["classes"]))
    found = check.get("findings", [])
    parts.append(tag("h3", "Check of the data"))
    items = [
        tag(
            "li",
            tag("span", item["level"], class_=f"badge {item['level']}"),
            " ",
            tag("b", short(item["sentence"], 600), "."),
            " ",
            short(item["advice"], 600),
        )
        for item in found[:100]
    ]
    parts.append(tag("ul", items, class_="findings") if items else paragraph("Nothing was found."))
    skipped = [f"{what}: {why}" for what, why in check.get("not_checked", {}).items()]
    if skipped:
        parts.append(note("Not checked: ", short("; ".join(skipped), 1000), "."))
    return join(parts)


def _class_counts(classes: Mapping[str, Mapping[str, int]]) -> Html:
    names = list(dict.fromkeys(name for counts in classes.values() for name in counts))
    total = {name: sum(counts.get(name, 0) for counts in classes.values()) for name in names}
    shown = sorted(names, key=lambda name: -total[name])[:50] if len(names) > 50 else names
    rows = []
    for name in shown:
        cells = [f"{int(counts.get(name, 0)):,}" for counts in classes.values()]
        rows.append([short(name, 40), *cells])
    cut = note(f"The 50 most frequent of {len(names):,} classes.") if len(shown) < len(names) else None
    return join(
        tag("h3", "Classes"), table(["class", *map(part_name, classes)], rows, "Samples of each class by split"), cut
    )


def _one_line(value: Any) -> str:
    from fitkit.after.words import flow

    return "" if value is None else flow(value)


def timing(run: Run) -> Html:
    """Return where the seconds went, as far as the folder tells."""
    each = run.points("epoch_seconds")
    if not each:
        return note("No epoch has ended yet.")
    usual = statistics.median(value for _, value in each[1:]) if len(each) > 2 else math.inf
    start = max(0.0, each[0][1] - usual)
    epochs = sum(value for _, value in each) - start
    rest = max(0.0, run.history.seconds - epochs - start)
    compiled = " and compiling" if run.environment.get("compiled") else ""
    found = [
        (f"first epoch beyond a usual one: warming up{compiled}", start),
        ("epochs: training and validation", epochs),
        ("between epochs: files, checkpoints, callbacks", rest),
    ]
    whole = sum(value for _, value in found) or 1.0
    shares = [(what, value, value / whole) for what, value in found]
    bar = tag(
        "div",
        (tag("span", style=f"width:{100 * share:.2f}%", class_=f"piece{i}") for i, (_, _, share) in enumerate(shares)),
        class_="bar",
        role="img",
        aria_label="; ".join(f"{what}: {seconds(value)}, {share:.0%}" for what, value, share in shares),
    )
    rows = [
        [join(tag("i", class_=f"key piece{i}"), what), seconds(value), f"{share:.0%}"]
        for i, (what, value, share) in enumerate(shares)
    ]
    values = [value for _, value in each]
    middle = statistics.median(values)
    words = f"Median {seconds(middle)}, from {seconds(min(values))} to {seconds(max(values))}."
    plot = figure(figures.line("times", "Seconds of each epoch", thinned(each), words), "seconds of each epoch", words)
    more = []
    if run.history.peak_memory_mb:
        more.append(("peak memory", f"{run.history.peak_memory_mb:,.0f} MB"))
    if run.summary.get("steps"):
        more.append(("optimizer steps", f"{int(run.summary['steps']):,}"))
    if run.history.skipped_steps:
        more.append(("skipped steps", f"{run.history.skipped_steps:,}: their gradients were not finite"))
    return join(
        bar,
        table(["where", "time", "share"], rows, "Where the time went"),
        facts(more),
        tag("div", plot, class_="grid"),
    )


def environment(run: Run) -> Html:
    """Return versions, device and precision."""
    known = {
        key: value
        for key, value in run.environment.items()
        if key not in ("command", "changes") and not key.startswith("data_")
    }
    return facts(
        (key.replace("_", " "), short("none" if value in ("", None) else str(value))) for key, value in known.items()
    )


def spec(run: Run) -> Html:
    """Return the spec as it was given, which is what differs from the defaults, and with all of them."""
    given = None
    if run.given is not None:
        given = join(tag("h3", "As given"), note("What it does not say is a default."), code(run.given.rstrip()))
    return join(given, tag("h3", "Resolved"), note("Every default filled in."), code(run.resolved.rstrip()))


def reproduce(run: Run) -> Html:
    """Return the command that made the run, and what else must be equal."""
    known = run.environment
    needed = [
        (name, str(known[name])) for name in ("fitkit", "torch", "python", "threads", "precision") if known.get(name)
    ]
    needed.append(("seed", str(run.spec.get("seed", 0))))
    sums = [
        (f"data, {part_name(key[5:])}", tag("code", short(str(value), 64)))
        for key, value in known.items()
        if key.startswith("data_")
    ]
    changes = known.get("changes")
    changed = None
    if isinstance(changes, list) and changes:
        rows = [
            [
                short(str(c.get("when")), 30),
                short(str(c.get("step")), 12),
                short(str(c.get("key")), 80),
                short(str(c.get("then")), 80),
                short(str(c.get("now")), 80),
            ]
            for c in changes[:100]
            if isinstance(c, dict)
        ]
        changed = join(
            tag("h3", "Changed on the way"),
            table(["when", "step", "key", "then", "now"], rows, "What a resumed run was asked otherwise"),
        )
    return join(
        code(str(known.get("command", "unknown"))),
        paragraph("The same numbers need the same of these, too:"),
        facts(needed),
        note("SHA-256 of what it ran on:") if sums else None,
        facts(sums),
        changed,
    )


def test_looks(run: Run) -> Html:
    """Return the ledger of looks at the test split."""
    if not run.looks:
        return paragraph("Nobody has looked at the test split yet.")
    count = len(run.looks)
    times = "once" if count == 1 else f"{count:,} times"
    rows = [[look["time"], look["command"]] for look in run.looks[-100:]]
    warned = "" if count == 1 else " Each look makes it less of a test."
    return join(
        paragraph(f"The test split was looked at {times}.{warned}"),
        table(["when", "by"], rows, "Looks at the test split"),
    )
