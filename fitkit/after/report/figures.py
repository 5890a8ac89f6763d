"""Figures drawn by matplotlib as SVG inside the page: their colours are those of its theme, their text is text."""

from __future__ import annotations

import io
import re
import statistics
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from xml.etree import ElementTree

from fitkit.after.report.page import Html, short
from fitkit.errors import SpecError
from fitkit.evaluation.calibration import Reliability
from fitkit.evaluation.intervals import wilson

# Drawn in these, and shown in the colours of the page, which differ between light and dark.
INK, MUTED, LINE, TRAIN, VAL, PAPER = "#010101", "#010102", "#010103", "#010104", "#010105", "#010106"
RUNS = tuple(f"#0102{number:02}" for number in range(1, 9))  # one each for the runs of a comparison
THEME = {INK: "--ink", MUTED: "--muted", LINE: "--line", TRAIN: "--train", VAL: "--accent", PAPER: "--card"}
THEME |= {colour: f"--run-{number}" for number, colour in enumerate(RUNS, 1)}
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)))  # and dashes where there are more runs than colours
SETTINGS = {
    **{"path.simplify": False, "svg.fonttype": "none", "svg.hashsalt": "fitkit", "font.size": 8.8},
    **{"text.color": INK, "axes.labelcolor": MUTED, "axes.edgecolor": LINE, "axes.linewidth": 0.8},
    **{"xtick.color": MUTED, "ytick.color": MUTED, "xtick.major.size": 0, "ytick.major.size": 0},
    **{"xtick.minor.size": 0, "ytick.minor.size": 0, "axes.spines.top": False, "axes.spines.right": False},
    **{"axes.spines.left": False, "axes.grid": True, "axes.grid.axis": "y", "grid.color": LINE, "grid.linewidth": 0.8},
    **{"axes.axisbelow": True, "legend.frameon": False, "legend.borderpad": 0, "legend.handlelength": 1.6},
    **{"legend.fontsize": 8.8, "figure.constrained_layout.use": True},
}
SIZE = (4.2, 2.55)  # inches of 72 units: text of 8.8 units stays readable where a phone shows 330 pixels
MOST_POINTS = 2000  # of a cloud
FEWEST = 8  # epochs that have a trend
SVG, LINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}href"
REFERENCE = re.compile(r"url\(#([^)]+)\)")
DIGITS = re.compile(r"-?\d+\.\d{3,}")


def require_matplotlib() -> None:
    """Raise SpecError where matplotlib is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise SpecError('a report needs matplotlib for its figures: pip install "fitkit[plot]".') from None


@contextmanager
def canvas(size: tuple[float, float] = SIZE) -> Iterator[tuple[Any, Any]]:
    """Yield a figure and its axes, drawn without a display; matplotlib's settings are as before afterwards."""
    from matplotlib import style
    from matplotlib.figure import Figure

    with style.context(["default", SETTINGS]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a font here may lack letters that the browser's has
        figure = Figure(figsize=size)
        figure.patch.set_visible(False)
        axes = figure.add_subplot()
        axes.patch.set_visible(False)
        yield figure, axes


def drawn(figure: Any, key: str, title: str, words: str) -> Html:
    """Return a figure as an SVG element; `key` makes its ids unique in the page, `words` are its text alternative."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    root = ElementTree.fromstring(buffer.getvalue())
    used = {name for element in root.iter() for value in element.attrib.values() for name in REFERENCE.findall(value)}
    used |= {element.attrib[LINK].removeprefix("#") for element in root.iter() if LINK in element.attrib}
    for parent in root.iter():
        for child in list(parent):
            if child.tag in (f"{SVG}metadata", f"{SVG}style"):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.removeprefix(SVG)
        element.attrib = dict(_attributes(element.attrib, key, used))
    root.attrib = {"viewBox": root.attrib["viewBox"], "class": "plot", "role": "img"}
    root.attrib["aria-labelledby"] = f"{key}-title {key}-words"
    for name, said in (("desc", words), ("title", title)):
        child = ElementTree.Element(name, {"id": f"{key}-{name.replace('desc', 'words')}"})
        child.text = short(said, 2000)
        root.insert(0, child)
    return Html(ElementTree.tostring(root, encoding="unicode"))


def _attributes(given: Mapping[str, str], key: str, used: set[str]) -> Iterator[tuple[str, str]]:
    for name, value in given.items():
        if name == "id":
            if value in used:
                yield name, f"{key}-{value}"
        elif name == LINK:
            yield "href", f"#{key}-{value.removeprefix('#')}"
        elif name == "style":
            value = re.sub(r"font: ([\d.]+px)[^;]*", r"font-size: \1", REFERENCE.sub(rf"url(#{key}-\1)", value))
            for colour, variable in THEME.items():
                value = value.replace(colour, f"var({variable})")
            yield name, value
        else:
            value = REFERENCE.sub(rf"url(#{key}-\1)", value)
            yield name, DIGITS.sub(lambda found: f"{float(found[0]):.2f}", value)


def trend(values: Sequence[float]) -> list[float]:
    """Return the running median over a tenth of the values, at least three; over fewer towards the two ends.

    A median follows a steep fall that goes on, as in the first epochs, where a mean would lag behind it.
    """
    half = max(1, len(values) // 20)
    smooth = []
    for i in range(len(values)):
        reach = min(half, i, len(values) - 1 - i)
        smooth.append(statistics.median(values[i - reach : i + reach + 1]))
    return smooth


def wide_range(values: Sequence[float]) -> bool:
    """Tell whether values are read better on a logarithmic scale."""
    return bool(values) and min(values) > 0 and max(values) > 50 * min(values)


def curves(
    key: str, name: str, lines: Mapping[str, Sequence[tuple[int, float]]], words: str, *, best: int | None, log: bool
) -> Html:
    """Draw a measure by epoch, (epoch, value) by part: single epochs faint, their trend strong, the best one marked."""
    with canvas() as (figure, axes):
        for part, points in lines.items():
            if not points:
                continue
            colour, (epochs, values) = (VAL if part == "validation" else TRAIN), zip(*points, strict=True)
            many = len(points) >= FEWEST
            marker = "o" if len(points) <= 40 else ""
            faint = {"alpha": 0.45, "linewidth": 0.9, "markersize": 2} if many else {"linewidth": 1.8, "markersize": 3}
            axes.plot(epochs, values, color=colour, marker=marker, label=None if many else part, **faint)
            if many:
                axes.plot(epochs, trend(values), color=colour, linewidth=1.9, label=part)
            if best in epochs:
                at = values[epochs.index(best)]
                axes.plot([best], [at], "o", color=colour, markersize=6, markeredgecolor=PAPER, markeredgewidth=1.2)
        if best is not None:
            axes.axvline(best, color=MUTED, linewidth=0.9, linestyle=(0, (3, 3)), zorder=0.5)
        _epochs(axes, max((epoch for points in lines.values() for epoch, _ in points), default=1))
        if log:
            _log_scale(axes)
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
        return drawn(figure, key, f"{name} by epoch", words)


def _log_scale(axes: Any) -> None:
    axes.set_yscale("log", subs=[2, 5])
    for labels in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        labels("{x:g}")  # 0.1 is read faster than a power of ten


def _epochs(axes: Any, last: int) -> None:
    axes.set_xlabel("epoch")
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    margin = min(0.5 + 0.01 * last, 0.9)
    axes.set_xlim(1 - margin, max(last, 1) + margin)


def line(key: str, title: str, points: Sequence[tuple[int, float]], words: str) -> Html:
    """Draw one number by epoch, from 0 on."""
    with canvas() as (figure, axes):
        epochs, values = zip(*points, strict=True)
        axes.plot(epochs, values, color=TRAIN, linewidth=1.8, marker="o" if len(points) <= 40 else "", markersize=2.5)
        axes.set_ylim(bottom=0)
        _epochs(axes, max(epochs))
        return drawn(figure, key, title, words)


def overlaid(key: str, title: str, lines: Sequence[tuple[str, Sequence[tuple[int, float]]]], words: str) -> Html:
    """Draw the same measure of several runs, (name, points) each."""
    with canvas((4.2, 2.7)) as (figure, axes):
        for number, (_, points) in enumerate(lines):
            if points:
                dashes = DASHES[number // len(RUNS) % len(DASHES)]
                axes.plot(*zip(*points, strict=True), color=RUNS[number % len(RUNS)], linewidth=1.8, linestyle=dashes)
        shown = [value for _, points in lines for _, value in points]
        _epochs(axes, max((epoch for _, points in lines for epoch, _ in points), default=1))
        if title.endswith("loss") and wide_range(shown):
            _log_scale(axes)
        return drawn(figure, key, f"{title} by epoch", words)


def cloud(key: str, targets: Sequence[float], predicted: Sequence[float], words: str) -> Html:
    """Draw predictions over targets, with the line on which both are equal."""
    with canvas((4.2, 3.0)) as (figure, axes):
        ends = [min(*targets, *predicted), max(*targets, *predicted)]
        axes.plot(ends, ends, color=MUTED, linewidth=1, linestyle=(0, (3, 3)))
        axes.scatter(targets, predicted, s=12, color=VAL, alpha=0.55, linewidths=0)
        axes.set_xlabel("target")
        axes.set_ylabel("prediction")
        return drawn(figure, key, "Prediction over target", words)


def reliability(key: str, found: Mapping[str, Reliability], words: str) -> Html:
    """Draw the share of right predictions over their confidence; of two, the first is before a calibration."""
    with canvas((4.2, 3.4)) as (figure, axes):
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (3, 3)))
        for (name, one), colour in zip(found.items(), (TRAIN, VAL) if len(found) > 1 else (VAL,), strict=True):
            filled = [b for b in one.bins if b.count]
            most = max(b.count for b in filled)
            x, y = [b.confidence for b in filled], [b.accuracy for b in filled]
            ends = [wilson(b.accuracy * b.count, b.count) for b in filled]
            reach = [[e.value - e.low for e in ends], [e.high - e.value for e in ends]]
            axes.errorbar(x, y, yerr=reach, fmt="none", color=colour, elinewidth=1.1, alpha=0.55)
            axes.scatter(x, y, s=[12 + 60 * b.count / most for b in filled], color=colour, linewidths=0, label=name)
        axes.set(xlim=(-0.02, 1.03), ylim=(-0.02, 1.03), xlabel="confidence", ylabel="share that is right")
        if len(found) > 1:
            axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
        return drawn(figure, key, "Reliability diagram", words)


def histogram(key: str, values: Sequence[float], words: str) -> Html:
    """Draw how often each prediction minus target occurs."""
    with canvas((4.2, 3.0)) as (figure, axes):
        axes.hist(
            values, bins=min(40, max(5, round(2 * len(values) ** (1 / 3)))), color=VAL, edgecolor=PAPER, alpha=0.8
        )
        axes.axvline(0, color=INK, linewidth=1)
        axes.set_xlabel("prediction minus target")
        axes.set_ylabel("samples")
        axes.yaxis.get_major_locator().set_params(integer=True)
        return drawn(figure, key, "Histogram of the residuals", words)
