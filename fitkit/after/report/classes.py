"""What a report says of classes: each one's figures, and which are taken for which."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fitkit.after.report.gather import Run
from fitkit.after.report.page import Child, Html, brief, join, named, note, paragraph, scrolling, table, tag
from fitkit.evaluation.evaluation import ClassRow

MOST_MATRIX = 20  # classes whose confusion matrix is shown whole
MOST_ROWS = 50  # classes in a table, and pairs of them


def by_class(run: Run) -> Html | None:
    """Return precision, recall and F1 of each class; of many classes those with the lowest F1."""
    if run.evaluation is None or run.evaluation.classes is None:
        return None
    rows = [row for row in run.evaluation.classes if row.support or row.predicted]
    cut = None
    if len(rows) > MOST_ROWS:
        cut = note(
            f"The {MOST_ROWS} of {len(rows):,} classes with the lowest F1; those with few samples vary by chance."
        )
        rows = sorted(rows, key=lambda row: (row.f1, -row.support))[:MOST_ROWS]
    ranked = any(not math.isnan(row.auroc) for row in rows)
    head = ["class", "precision", "recall", "F1", *(["AUROC", "average precision"] if ranked else []), "samples"]
    return join(cut, table(head, [_row(row, ranked) for row in rows], "Precision, recall and F1 of each class"))


def _row(row: ClassRow, ranked: bool) -> list[Child]:
    areas = [brief(row.auroc), brief(row.average_precision)] if ranked else []
    return [named(row.name), brief(row.precision), brief(row.recall), _bar(row.f1), *areas, f"{row.support:,}"]


def _bar(share: float) -> Html:
    """Return a share with a bar behind it."""
    width = 0 if math.isnan(share) else 100 * share
    return tag("span", tag("span", brief(share)), class_="share", style=f"--share:{width:.1f}%")


def confusions(run: Run) -> Html | None:
    """Return the confusion matrix of up to twenty classes, and the most frequent confusions."""
    if run.evaluation is None or run.evaluation.classes is None:
        return None
    if run.evaluation.confusion is None:
        return note("There are too many classes for a confusion matrix.")
    counts = run.evaluation.confusion
    names = [named(row.name) for row in run.evaluation.classes]
    wrong = counts.clone().fill_diagonal_(0)
    total, missed = int(counts.sum()), int(wrong.sum())
    count = min(MOST_ROWS, int((wrong > 0).sum()))
    places = wrong.flatten().topk(count).indices.tolist() if count else []
    pairs = [(int(wrong.flatten()[at]), at // len(names), at % len(names)) for at in places]
    pairs.sort(key=lambda pair: (-pair[0], pair[1:]))
    said = f"{missed:,} of {total:,} are taken for another class."
    if pairs and pairs[0][0] > 1:
        times, i, j = pairs[0]
        said += f" Most often {names[i]} for {names[j]}: {times:,} of {int(counts[i].sum()):,}."
    if len(names) <= MOST_MATRIX:
        return join(paragraph(said), _matrix(counts.tolist(), names, said))
    rows = [[names[i], names[j], f"{times:,}", f"{times / int(counts[i].sum()):.0%}"] for times, i, j in pairs]
    head = ["target", "taken for", "times", "of the target's"]
    more = note(f"The {len(pairs)} most frequent confusions of {len(names):,} classes.")
    return join(paragraph(said), table(head, rows, "Most frequent confusions"), more)


def _matrix(counts: Sequence[Sequence[int]], names: Sequence[str], said: str) -> Html:
    """Return counts as a table: how much of its row a cell holds is its shade, mistakes in the accent's colour."""
    upright = max(map(len, names)) > 4
    head = tag(
        "tr",
        tag("td", "prediction →", tag("br"), "target ↓", class_="corner"),
        (tag("th", tag("span", name), scope="col", class_="upright" if upright else None) for name in names),
    )
    rows = []
    for i, (name, row) in enumerate(zip(names, counts, strict=True)):
        cells = [
            tag(
                "td",
                f"{cell:,}",
                class_="right" if i == j else "wrong" if cell else "none",
                style=f"--share:{100 * cell / max(1, sum(row)):.1f}%" if cell else None,
                title=f"{name} taken for {names[j]}: {cell:,}" if i != j and cell else None,
            )
            for j, cell in enumerate(row)
        ]
        rows.append(tag("tr", tag("th", name, scope="row"), cells))
    matrix = tag(
        "table", tag("caption", said, class_="hidden"), tag("thead", head), tag("tbody", rows), class_="matrix"
    )
    caption = (
        "A row holds the samples of one class, a column what they are taken for. The diagonal is right; mistakes have "
        "the accent's colour, the stronger the larger their share of the row."
    )
    words = tag("figcaption", tag("strong", "confusion matrix"), tag("span", caption, class_="caption"))
    return tag("figure", words, scrolling(matrix, "Confusion matrix"))
