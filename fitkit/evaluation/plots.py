"""Diagrams of what an evaluation found, drawn by matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fitkit.errors import FitkitError
from fitkit.evaluation.calibration import Reliability
from fitkit.evaluation.intervals import wilson

BEFORE, AFTER, GREY = "#e07b39", "#2f6fde", "#b5bac4"


def draw_reliability(before: Reliability, after: Reliability | None = None, *, axes: Any = None) -> Any:
    """Draw a reliability diagram, with the counts of the bins below it, and return matplotlib's figure.

    The share of right predictions stands over the mean confidence of each bin, with its 95 % interval (Wilson), in a
    point the larger the more predictions: on the diagonal a model is calibrated, below it it is too sure. `axes` are
    the two matplotlib axes to draw on, of the diagram and of the counts, or one for the diagram alone.
    """
    try:
        from matplotlib import pyplot
    except ImportError:
        raise FitkitError('Plots need matplotlib: pip install "fitkit[plot]".') from None
    if axes is None:
        figure, panels = pyplot.subplots(
            2, 1, figsize=(4.8, 5.6), sharex=True, height_ratios=(3, 1), layout="constrained"
        )
    else:
        panels = list(axes) if isinstance(axes, Sequence) or hasattr(axes, "flat") else [axes]
        figure = panels[0].figure
    drawn = [("before" if after else "", before, BEFORE if after else AFTER)]
    drawn += [("after", after, AFTER)] if after else []
    _diagram(panels[0], drawn)
    if len(panels) > 1:
        _counts(panels[1], drawn)
    panels[-1].set_xlabel("confidence")
    return figure


def _diagram(axes: Any, drawn: Sequence[tuple[str, Reliability, str]]) -> None:
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
    for name, found, colour in drawn:
        filled = [b for b in found.bins if b.count]
        shares = [wilson(b.accuracy * b.count, b.count) for b in filled]
        errors = [[s.value - s.low for s in shares], [s.high - s.value for s in shares]]
        x, y = [b.confidence for b in filled], [b.accuracy for b in filled]
        most = max(b.count for b in filled)
        sizes = [10 + 60 * b.count / most for b in filled]
        axes.plot(x, y, color=colour, linewidth=1, alpha=0.4)
        axes.errorbar(x, y, yerr=errors, fmt="none", color=colour, elinewidth=0.8, alpha=0.5)
        axes.scatter(x, y, s=sizes, color=colour, label=f"{name} (ECE {found.ece:.3f})".strip(), zorder=3)
    axes.set(ylim=(-0.02, 1.02), ylabel="accuracy")
    axes.set_title(f"reliability, {drawn[0][1]}", loc="left", fontsize=11)
    axes.legend(facecolor="white", edgecolor="none", framealpha=0.9, fontsize=9, loc="upper left")
    _plain(axes)


def _counts(axes: Any, drawn: Sequence[tuple[str, Reliability, str]]) -> None:
    for name, found, colour in drawn:
        edges = [found.bins[0].low, *(b.high for b in found.bins)]
        axes.stairs([b.count for b in found.bins], edges, color=colour, linewidth=1.5, label=name, baseline=0.7)
    counts = [b.count for _, found, _ in drawn for b in found.bins if b.count]
    if wide := max(counts) > 20 * min(counts):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
    axes.set(ylabel="count (log scale)" if wide else "count", ylim=(0.7 if wide else 0, None))
    _plain(axes)


def _plain(axes: Any) -> None:
    axes.set_xlim(0, 1.01)
    axes.grid(axis="y", color="#e4e7ec", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
