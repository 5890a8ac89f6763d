"""What happened in a fit: one row an epoch, columns of floats. `fit` returns it and callbacks read it."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from fitkit import figures
from fitkit.cells import escape, format_value, html_row, number, plain
from fitkit.diagnosis import Diagnosis, Evidence, Predictions, diagnose
from fitkit.errors import CheckpointError, FitkitError, listing, nearest, printable, show
from fitkit.files import parse_json

Direction = Literal["min", "max"]
HEAD, TAIL = 12, 15  # rows of a long history that are printed, beside the best one
FORMAT = 1  # of the JSON document
FORMULA = ("", "=", "+", "-", "@")  # a spreadsheet takes a cell that begins so for a formula; a metric never does
PANEL = 4.6, 3.4  # inches that the curves of one measure take
TRAIN, VAL = "#7a8599", "#c8501e"  # the colours of the curves


class ColumnError(FitkitError, KeyError):
    """A history has no such column, or the column has no best epoch; caught as `KeyError` too."""

    __str__ = Exception.__str__  # KeyError would put the message in quotes


class History:
    """One row an epoch, counted from 1; a value that an epoch did not measure is NaN.

    Args:
        columns: names in the order of print, without "epoch": loss accuracy val_loss val_accuracy … lr epoch_seconds.
        directions: which end of a column is the good one; columns without a good end (lr) are left out.
        spec: what was asked, as plain data.

    `history` holds the columns as lists, as in Keras. A fit fills in the other attributes when it ends.
    """

    def __init__(
        self, columns: Sequence[str], directions: Mapping[str, Direction], spec: Mapping[str, Any] | None = None
    ) -> None:
        if "epoch" in columns or len(set(columns)) < len(columns):
            raise ValueError(f'columns must differ, and "epoch" is there by itself; got {listing(columns)}')
        self.history: dict[str, list[float]] = {column: [] for column in columns}
        self.directions: dict[str, Direction] = {name: directions[name] for name in columns if name in directions}
        self.spec = spec
        self.stopped = ""  # why the fit ended, in words; after an error FAILED and its message
        self.monitor: str | None = None  # the column that chose the best epoch
        self.best_epoch: int | None = None  # the epoch whose weights the fit left in the model
        self.run: str | None = None  # the run folder
        self.seconds = 0.0  # of the whole fit
        self.skipped_steps = 0  # optimizer steps left out because a gradient was not finite
        self.peak_memory_mb: float | None = None  # the most that was held at once, in MB: of the process, or on the GPU
        self.samples: dict[str, int] = {}  # of train, val and test, where they are known
        self.classes: int | None = None  # how many the target has, where it has classes that are known
        self.baseline: dict[str, float] = {}  # what the best constant prediction reaches, by column, where it is known
        self.micro_batch: int | None = None  # rows of a forward pass at most, where memory ran out and they were halved

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns, without "epoch"."""
        return tuple(self.history)

    @property
    def epoch(self) -> list[int]:
        """The numbers of the epochs, from 1."""
        return list(range(1, len(self) + 1))

    @property
    def last(self) -> dict[str, float]:
        """The row of the last epoch; `IndexError` before the first one ended."""
        return self._row(len(self) - 1)

    def append(self, row: Mapping[str, float | None]) -> None:
        """Add the row of one epoch: its keys are the columns, and None is a value that was not measured."""
        if set(row) != set(self.history):
            missing, surplus = set(self.history) - set(row), set(row) - set(self.history)
            raise ValueError(f"a row must hold the columns: missing {sorted(missing)}, unknown {sorted(surplus)}")
        floats = {column: math.nan if value is None else float(value) for column, value in row.items()}
        for column, values in self.history.items():
            values.append(floats[column])

    def best(self, column: str) -> dict[str, float]:
        """Return the row of the epoch where `column` was best, the first of equals; NaN and infinity never are.

        `ColumnError` when there is no such column, when it has no good end, or when it holds no finite value.
        """
        values = self[column]
        if column not in self.directions:
            raise ColumnError(f'"{column}" is neither better high nor low. Choose from {listing(self.directions)}.')
        finite = [index for index, value in enumerate(values) if math.isfinite(value)]
        if not finite:
            raise ColumnError(f'"{column}" has no finite value in {len(self)} epochs, so no epoch is the best one.')
        choose = min if self.directions[column] == "min" else max
        return self._row(choose(finite, key=values.__getitem__))

    def diagnose(self, predictions: Predictions | None = None) -> Diagnosis:
        """Return what the numbers say about this run, in words, with spec patches to try; print it to read it.

        `predictions` is what the model gives for the validation part, which some findings need, such as a class that
        is never predicted; `fitkit.diagnose(folder)` takes it by itself.
        """
        return diagnose(
            Evidence(
                columns=self.history,
                spec=self.spec if isinstance(self.spec, Mapping) else {},
                samples=self.samples,
                baseline=self.baseline,
                classes=self.classes,
                best_epoch=self.best_epoch,
                stopped=self.stopped,
                predictions=predictions,
            )
        )

    def to_csv(self, path: str | Path | None = None) -> str:
        """Return the rows as CSV, empty where nothing was measured, and write them to `path` if there is one."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["epoch", *self.history])
        writer.writerows([["" if math.isnan(value) else value for value in row.values()] for row in self])
        if path is not None:
            Path(path).write_text(text.getvalue(), encoding="utf-8", newline="")
        return text.getvalue()

    def to_json(self) -> str:
        """Return the history as strict JSON that `from_json` reads back to the bit.

        NaN is null, and an infinity the string "Infinity" or "-Infinity", as in the JSON form of Protocol Buffers.
        """
        document = {
            "format": FORMAT,
            "columns": self.history,
            "directions": self.directions,
            "spec": self.spec,
            "samples": self.samples,
            "classes": self.classes,
            "baseline": self.baseline,
            **{name: getattr(self, name) for name in _EXTRA},
        }
        return json.dumps(plain(document), ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> History:
        """Return the history that `to_json` wrote; `CheckpointError` if the text is not one."""
        try:
            document = parse_json(text)
            if document["format"] != FORMAT:
                raise ValueError(f"its format is {show(document['format'])}, and this version reads {FORMAT}")
            columns = {name: [number(value) for value in values] for name, values in document["columns"].items()}
            for name in columns:
                if not name.isprintable() or name[:1] in FORMULA:
                    raise ValueError(f"{show(name)} is no name of a column")
            if len({len(values) for values in columns.values()}) > 1:
                raise ValueError("its columns differ in length")
            if any(direction not in ("min", "max") for direction in document["directions"].values()):
                raise ValueError('a direction is neither "min" nor "max"')
            history = cls(list(columns), document["directions"], document["spec"])
            history.history = columns
            given = document.get("samples", {})  # not there in files of version 0.1
            history.samples = {name: int(number(value)) for name, value in given.items()}
            history.baseline = {name: number(value) for name, value in document.get("baseline", {}).items()}
            history.classes = None if document.get("classes") is None else int(number(document["classes"]))
            for name, kind in _EXTRA.items():
                if not isinstance(document[name], kind):
                    raise ValueError(f"{name} is {show(document[name])}")
                setattr(history, name, document[name])
            if history.best_epoch is not None and history.best_epoch not in history.epoch:
                raise ValueError(f"best_epoch is {history.best_epoch}, and it has {len(history)} epochs")
            if history.best_epoch is not None and history.monitor is not None:
                chosen = columns[history.monitor][history.best_epoch - 1] if history.monitor in columns else math.nan
                if history.monitor not in history.directions or not math.isfinite(chosen):
                    raise ValueError(f"{show(history.monitor)} cannot have chosen the best epoch")
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            reason = f"it has no {error}" if isinstance(error, KeyError) else error
            raise CheckpointError(f"This is not the JSON of a History: {reason}.") from None
        return history

    def plot(self, path: str | Path | None = None, ax: Any = None) -> Any:
        """Draw training and validation curves, one panel a measure, and return matplotlib's figure.

        The best epoch is marked with its validation values. `path` writes the figure (png, svg, pdf). `ax` is one
        matplotlib axes or a sequence of them to draw on, and as many panels as there are axes are drawn.
        """
        try:
            import matplotlib
            from matplotlib import pyplot
        except ImportError:
            raise FitkitError('Plots need matplotlib: pip install "fitkit[plot]".') from None
        bases = self._measures()
        if ax is None:
            wide, tall = _grid(len(bases))
            size = (PANEL[0] * wide, PANEL[1] * tall)
            figure, grid = pyplot.subplots(tall, wide, figsize=size, squeeze=False, layout="constrained")
            axes = list(grid.flat)
            for unused in axes[len(bases) :]:
                unused.set_axis_off()
        else:
            axes = list(ax) if isinstance(ax, Sequence) or hasattr(ax, "flat") else [ax]
            figure = axes[0].figure
        for panel, base in zip(axes, bases, strict=False):
            _panel(panel, self, base)
        if path is not None:
            figure.savefig(path, dpi=150)
        if ax is None and (path is not None or "inline" in matplotlib.get_backend()):
            pyplot.close(figure)  # it is on disk, or a notebook shows the value returned and would show it twice
        return figure

    def __len__(self) -> int:
        return len(next(iter(self.history.values()), []))

    def __iter__(self) -> Iterator[dict[str, float]]:
        return (self._row(index) for index in range(len(self)))

    def __contains__(self, column: object) -> bool:
        return column in self.history

    def __getitem__(self, column: str) -> list[float]:
        if column in self.history:
            return self.history[column]
        guess = nearest(str(column), self.history)
        hint = f' Did you mean "{guess}"?' if guess else ""
        raise ColumnError(f"No column {show(column)}.{hint} The columns are {listing(self.history)}.")

    def __repr__(self) -> str:
        return f"History({', '.join(self._facts())})"

    def __str__(self) -> str:
        header, rows = self._table()
        widths = [max(len(row[i]) for row in [header, *rows] if row) for i in range(len(header))]
        lines = [
            "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
            if row
            else "…".rjust(widths[0])
            for row in [header, *rows]
        ]
        return "\n".join([*(line.rstrip() for line in lines), self._summary()])

    def _repr_html_(self) -> str:
        header, rows = self._table()
        gap = ["…"] + [""] * len(self.history)
        lines = [html_row(header, "th"), *(html_row(row or gap, "td") for row in rows)]
        caption = f'<caption style="caption-side: bottom; text-align: left">{escape(self._summary())}</caption>'
        table = ['<table style="font-variant-numeric: tabular-nums">', caption, *lines, "</table>"]
        return "\n".join([*([curves] if (curves := self.curves()) else []), *table])

    def curves(self) -> str:
        """Return the curves as HTML for a notebook; nothing before the second epoch, or without matplotlib."""
        if len(self) < 2 or not (bases := self._measures()):
            return ""
        (wide, tall), text = _grid(len(bases)), f"Curves of {listing(bases)} by epoch: {self._summary()}"
        try:
            figure = figures.blank(PANEL[0] * wide, PANEL[1] * tall)
        except FitkitError:
            return ""
        axes = list(figure.subplots(tall, wide, squeeze=False).flat)
        for panel, base in itertools.zip_longest(axes, bases):
            _panel(panel, self, base) if base else panel.set_axis_off()
        return figures.image(figure, text)

    def _measures(self) -> list[str]:
        """Return what has a good end, each of which is a panel: its training and its validation curve."""
        return list(dict.fromkeys(name.removeprefix("val_") for name in self.directions))

    def _row(self, index: int) -> dict[str, float]:
        if not 0 <= index < len(self):
            raise IndexError("the history holds no epoch yet")
        return {"epoch": index + 1, **{column: values[index] for column, values in self.history.items()}}

    def _best(self) -> tuple[str, dict[str, float]] | None:
        """Return the row to mark and the column that chose it: the fit's choice, or else the lowest val_loss."""
        columns = [name for name in (self.monitor, "val_loss", "loss") if name in self.history]
        if self.best_epoch and columns:
            return columns[0], self._row(self.best_epoch - 1)
        for column in columns:
            try:
                return column, self.best(column)
            except ColumnError:
                continue
        return None

    def _table(self) -> tuple[list[str], list[list[str] | None]]:
        """Return header and rows as text, the best epoch with a star; None stands for rows left out."""
        best = self._best()
        star = int(best[1]["epoch"]) if best else 0
        whole = len(self) <= HEAD + TAIL + 3
        rows: list[list[str] | None] = []
        for epoch, row in enumerate(self, 1):
            if whole or epoch <= HEAD or epoch > len(self) - TAIL or epoch == star:
                cells = [format_value(column, row[column]) for column in self.history]
                rows.append([f"*{epoch}" if epoch == star else str(epoch), *cells])
            elif rows[-1] is not None:
                rows.append(None)
        return ["epoch", *self.history], rows

    def _facts(self) -> list[str]:
        """Return how many epochs there are, and which one was best."""
        facts = ["1 epoch" if len(self) == 1 else f"{len(self)} epochs"]
        if best := self._best():
            column, row = best
            facts.append(f"best {column} {format_value(column, row[column])} at epoch {row['epoch']}")
        return facts

    def _summary(self) -> str:
        """Return the line under a table, where the star is explained."""
        facts = self._facts()
        facts[0] += f" in {self.seconds:.1f} s" if self.seconds else ""
        facts[1:] = [f"* {fact}" for fact in facts[1:]]
        return "; ".join([*facts, *([f"stopped: {printable(self.stopped)}"] if self.stopped else [])])


_EXTRA: dict[str, Any] = {  # what a fit fills in, with the types that the JSON may hold
    "stopped": str,
    "monitor": str | None,
    "best_epoch": int | None,
    "run": str | None,
    "seconds": float | int,
    "skipped_steps": int,
    "micro_batch": int | None,
    "peak_memory_mb": float | int | None,
}


def _grid(panels: int) -> tuple[int, int]:
    """Return how many panels stand side by side, and one above another."""
    wide = min(panels, 3) or 1
    return wide, -(-panels // wide) or 1


def _panel(axes: Any, history: History, base: str) -> None:
    """Draw one measure on matplotlib axes: its training and validation curve, and the best epoch."""
    shown: list[float] = []
    for column, label, colour in ((base, "training", TRAIN), (f"val_{base}", "validation", VAL)):
        points = [
            (e, v) for e, v in zip(history.epoch, history.history.get(column, []), strict=False) if math.isfinite(v)
        ]
        if points:
            marker = "o" if len(points) <= 30 else ""
            axes.plot(*zip(*points, strict=True), color=colour, label=label, marker=marker, markersize=3, linewidth=1.8)
            shown += [value for _, value in points]
    best = history._best()
    chosen = best[1].get(f"val_{base}", best[1].get(base, math.nan)) if best else math.nan
    if best and math.isfinite(chosen):
        label = f"best epoch {best[1]['epoch']}: {format_value(base, chosen)}"
        colour = VAL if f"val_{base}" in best[1] else TRAIN
        axes.axvline(best[1]["epoch"], color="#b5bac4", linewidth=1, linestyle=(0, (4, 3)), zorder=0)
        axes.plot([best[1]["epoch"]], [chosen], "o", color=colour, markersize=7, markeredgecolor="white", label=label)
    wide_range = base == "loss" and shown and min(shown) > 0 and max(shown) > 50 * min(shown)
    if wide_range:
        axes.set_yscale("log", subs=[2, 5])
        for labels in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            labels("{x:g}")  # 0.1 is read faster than a power of ten
    axes.set_title(base.replace("_", " ") + (" (log scale)" if wide_range else ""), loc="left", fontsize=11)
    axes.set_xlabel("epoch")
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    margin = min(0.5 + 0.01 * len(history), 0.9)
    axes.set_xlim(1 - margin, max(len(history), 1) + margin)
    axes.grid(axis="y", color="#e4e7ec", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if shown:
        axes.legend(facecolor="white", edgecolor="none", framealpha=0.9, fontsize=9)
