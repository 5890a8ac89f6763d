"""What a report says of how a run came about: its data, where the time went, how to do it again, and its spec."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from fitkit.after.report import figures
from fitkit.after.report.gather import Run
from fitkit.after.report.page import Html, code, facts, figure, join, named, note, paragraph, short, table, tag
from fitkit.after.report.sections import part_name, seconds, thinned
from fitkit.after.words import flow

MOST_CLASSES = 50  # that are listed
MOST_ROWS = 100  # findings, changes and looks


def data(run: Run) -> Html:
    """Return source, splits, class counts and what the check of the data found."""
    asked = [
        (name, flow(run.spec[key])) for name, key in (("source", "data"), ("splits", "splits")) if run.spec.get(key)
    ]
    where = facts((name, tag("code", short(text))) for name, text in asked)
    check = run.data_check
    if check is None:
        return join(
            where, note("This run folder holds no check of its data, so the sizes of its splits are not known.")
        )
    counts = check.get("classes") or {}
    names = list(dict.fromkeys(name for numbers in counts.values() for name in numbers))
    head = ["", *(part_name(part) for part in check["parts"])]
    rows = [["samples", *("unknown" if size is None else f"{int(size):,}" for size in check["parts"].values())]]
    total = {name: sum(int(numbers.get(name, 0)) for numbers in counts.values()) for name in names}
    shown = sorted(names, key=lambda name: -total[name])[:MOST_CLASSES] if len(names) > MOST_CLASSES else names
    for name in shown:
        each = (counts.get(part, {}) for part in check["parts"])
        rows.append([f"of class {named(name)}", *(f"{int(numbers.get(name, 0)):,}" for numbers in each)])
    cut = note(f"The {len(shown)} most frequent of {len(names):,} classes.") if len(shown) < len(names) else None
    return join(where, table(head, rows, "Samples of each split"), cut, _findings(check))


def _findings(check: Mapping[str, Any]) -> Html:
    items = [
        tag("li", tag("span", short(found["level"], 20), class_=f"badge {found['level']}"), " ",
            short(f"{found['sentence']}. {found['advice']}", 800))
        for found in check["findings"][:MOST_ROWS]
    ]  # fmt: skip
    skipped = "; ".join(f"{what}: {why}" for what, why in check["not_checked"].items())
    return join(
        tag("h3", "Check of the data"),
        tag("ul", items, class_="findings") if items else paragraph("Nothing was found."),
        note("Not checked: ", short(skipped, 1000), ".") if skipped else None,
    )


def timing(run: Run) -> Html:
    """Return where the seconds went, as far as the folder tells."""
    each = run.points("epoch_seconds")
    if not each:
        return note("No epoch has ended yet.")
    values = [value for _, value in each]
    start = max(0.0, values[0] - statistics.median(values[1:])) if len(values) > 2 else 0.0
    epochs = sum(values) - start
    compiled = " and compiling" if run.environment.get("compiled") else ""
    found = [
        ("epochs: training and validation", epochs),
        (f"what the first epoch took beyond a usual one: warming up{compiled}", start),
        ("between epochs: files, checkpoints, callbacks", max(0.0, run.history.seconds - epochs - start)),
    ]
    words = f"Median {seconds(statistics.median(values))}, from {seconds(min(values))} to {seconds(max(values))}."
    plot = figure(figures.line("times", "Seconds of each epoch", thinned(each), words), "seconds of each epoch", words)
    more = [
        ("optimizer steps", f"{int(run.summary.get('steps') or 0):,}"),
        ("skipped steps", f"{run.history.skipped_steps:,}"),  # whose gradients were not finite
        ("peak memory", f"{run.history.peak_memory_mb or 0:,.0f} MB"),
    ]
    return join(_shares(found), facts(pair for pair in more if pair[1][0] != "0"), tag("div", plot, class_="grid"))


def _shares(found: list[tuple[str, float]]) -> Html:
    whole = sum(value for _, value in found)
    shares = [(place, what, value, value / whole) for place, (what, value) in enumerate(found) if value > 0]
    bar = tag(
        "div",
        (tag("span", style=f"width:{100 * share:.2f}%", class_=f"piece{place}") for place, _, _, share in shares),
        class_="bar",
        role="img",
        aria_label="; ".join(f"{what}: {seconds(value)}, {share:.0%}" for _, what, value, share in shares),
    )
    rows = [
        [join(tag("i", class_=f"key piece{place}"), what), seconds(value), f"{share:.0%}"]
        for place, what, value, share in shares
    ]
    return join(bar, table(["where", "time", "share"], rows, "Where the time went"))


def reproduce(run: Run) -> Html:
    """Return the command that made the run, what it ran on, and what a resumed run was asked otherwise."""
    known = run.environment
    shown = [("seed", str(run.spec.get("seed", 0)))]
    for key, value in known.items():
        if key not in ("command", "changes") and not key.startswith("data_"):
            shown.append((key.replace("_", " "), "none" if value in ("", None) else str(value)))
    sums = [
        (f"{part_name(key.removeprefix('data_'))} data", tag("code", short(str(value), 64)))
        for key, value in known.items()
        if key.startswith("data_")
    ]
    made = code(short(str(known.get("command", "its command was not noted")), 2000), "command")
    say = paragraph("The same numbers need the same seed, data, versions, threads and precision:")
    of_data = (tag("h3", "Data (SHA-256)"), facts(sums)) if sums else None
    environment = facts((short(name, 60), short(value)) for name, value in shown)
    return join(made, say, tag("h3", "Environment"), environment, of_data, _changed(known.get("changes")))


def _changed(changes: Any) -> Html | None:
    if not changes:
        return None
    keys = ("when", "step", "key", "then", "now")
    rows = [[short(str(change.get(key, "-")), 80) for key in keys] for change in changes[-MOST_ROWS:]]
    return join(tag("h3", "Changed on the way"), table(keys, rows, "What the run was asked when it was resumed"))


def test_looks(run: Run) -> Html:
    """Return the ledger of looks at the test split."""
    if not run.looks:
        return paragraph("The test split was not looked at yet.")
    times = "once" if len(run.looks) == 1 else f"{len(run.looks):,} times: each look makes it less of a test"
    rows = [[look["time"], look["command"]] for look in run.looks[-MOST_ROWS:]]
    return join(
        paragraph(f"The test split was looked at {times}."), table(["when", "by"], rows, "Looks at the test split")
    )


def spec(run: Run) -> Html:
    """Return the spec as it was given, which is what differs from the defaults, and with all of them."""
    given = None
    if run.given is not None:
        given = join(tag("h3", "As given"), note("What it does not say is a default."), code(run.given.rstrip()))
    return join(given, tag("h3", "Resolved"), note("Every default filled in."), code(run.resolved.rstrip()))
