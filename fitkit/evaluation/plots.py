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

    The share of right predictions stands over the mean confidence of each bin, with its 95 % interval (Wilson): on the
    diagonal a model is calibrated, below it it is too sure. `axes` are the two matplotlib axes to draw on, of the
    diagram and of the counts, or one for the diagram alone.
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
        axes.errorbar(
            [b.confidence for b in filled],
            [b.accuracy for b in filled],
            yerr=errors,
            color=colour,
            label=f"{name} (ECE {found.ece:.3f})".strip(),
            marker="o",
            markersize=4,
            linewidth=1.8,
            elinewidth=0.8,
        )
    axes.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="accuracy")
    axes.set_title(f"reliability, {drawn[0][1]}", loc="left", fontsize=11)
    axes.legend(facecolor="white", edgecolor="none", framealpha=0.9, fontsize=9, loc="upper left")
    _plain(axes)


def _counts(axes: Any, drawn: Sequence[tuple[str, Reliability, str]]) -> None:
    for name, found, colour in drawn:
        edges = [found.bins[0].low, *(b.high for b in found.bins)]
        axes.stairs([b.count for b in found.bins], edges, color=colour, linewidth=1.5, label=name)
    axes.set_ylabel("count")
    _plain(axes)


def _plain(axes: Any) -> None:
    axes.grid(axis="y", color="#e4e7ec", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
