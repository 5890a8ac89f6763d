"""The plot of the README: how many times as fast as the textbook loop each program is."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

GREY, OURS, OTHERS = "#808890", "#e8743b", "#7d9fc4"  # legible on white and on black
PANELS = [  # benchmark, case, title
    ("small", "W0", "MLP 20-64-2, batch 32: speed of a step"),
    ("convnet", "", "ResNet-20, batch 128: images a second"),
    ("transformer", "", "GPT, 4 layers of 128: speed of a step"),
]
LEFT_OUT = ("defaults", "model and loss compiled", "textbook, channels_last")
KEPT = ("Keras on JAX, defaults", "textbook, channels_last, bf16")


def ratios(benchmark: str, rows: dict[str, list[dict[str, float]]]) -> dict[str, list[float]]:
    """Return every run's ratio to the textbook loop of the same turn, by row, the slowest first."""
    from benchmarks import measure

    rows = {row: runs for row, runs in rows.items() if row in KEPT or not row.endswith(LEFT_OUT)}
    compare = measure.load(benchmark).BENCHMARK.compare
    found = {row: compare(rows["textbook loop"], runs) for row, runs in rows.items() if runs}
    return dict(sorted(found.items(), key=lambda item: statistics.median(item[1])))


def draw(results: dict[str, Any], path: Path) -> None:
    """Write an SVG of the panels that were measured; nothing without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        print("headline.svg was not drawn: matplotlib is not installed.")
        return
    matplotlib.use("svg")
    from matplotlib import pyplot

    measured = []
    for benchmark, case, title in PANELS:
        rows = results.get(benchmark, {}).get("cases", {}).get(case, {})
        if rows.get("textbook loop"):
            measured.append((title, ratios(benchmark, rows)))
    if not measured:
        return
    pyplot.rcParams.update({"svg.hashsalt": "fitkit", "font.size": 9, "text.color": GREY})
    heights = [len(found) + 2 for _, found in measured]
    figure, axes = pyplot.subplots(
        len(measured), figsize=(7.5, 0.27 * sum(heights)), squeeze=False, height_ratios=heights, layout="constrained"
    )
    for axis, (title, found) in zip(axes.flat, measured, strict=True):
        panel(axis, title, found)
    figure.savefig(path, transparent=True, metadata={"Date": None})
    pyplot.close(figure)


def panel(axis: Any, title: str, found: dict[str, list[float]]) -> None:
    middles = [statistics.median(values) for values in found.values()]
    colors = [OURS if row.startswith("fitkit") else OTHERS for row in found]
    axis.barh(list(found), middles, color=colors, height=0.7)
    for i, (values, middle) in enumerate(zip(found.values(), middles, strict=True)):
        axis.plot([min(values), max(values)], [i, i], color=GREY, linewidth=1)
        axis.text(max(*values, middle) * 1.03, i, f"{middle:.2g}" if middle < 10 else f"{middle:.0f}", va="center")
    axis.set_xlim(0, max(middles) * 1.25)
    if max(middles) > 8:
        axis.set_xscale("log")
        axis.set_xlim(min(middles) / 1.6, max(middles) * 1.6)
    axis.axvline(1, color=GREY, linewidth=0.8, linestyle=":")
    axis.set_title(f"{title}, times the textbook loop", loc="left", color=GREY, fontsize=10)
    axis.tick_params(which="both", colors=GREY, length=0)
    axis.xaxis.set_visible(False)
    for spine in axis.spines.values():
        spine.set_visible(False)
