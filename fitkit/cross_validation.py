"""What the folds of a cross-validation came to: values at their best epochs, their mean, spread and interval."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fitkit.cells import escape, format_value, html_row, plain
from fitkit.errors import listing, nearest, show
from fitkit.files import as_text
from fitkit.history import ColumnError, History

FORMAT = 1  # of the JSON document
LEVEL = 0.95


class CrossValidation:
    """What the folds of a cross-validation came to: `fitkit.fit` returns it for a spec whose `splits` asks for folds.

    `histories` holds the History of each fold, and `cv["val_accuracy"]` its values at their best epochs, which `mean`,
    `std` and `interval` sum up. `predictions` are those of each fold's best weights for its val rows, as columns of
    equal length: row (in the data, from 0), fold, repeat, target, prediction, and for classes p_<class>; None where a
    sample has more than one target, as in text. `run` is the folder, if there is one.

    The val rows chose the epochs whose values count, so that these are somewhat better than on new data; a split with
    `test` keeps rows that chose nothing.
    """

    def __init__(
        self,
        histories: Sequence[History],
        *,
        k: int,
        repeats: int = 1,
        predictions: Mapping[str, Sequence[Any]] | None = None,
        run: str | None = None,
    ) -> None:
        self.histories = tuple(histories)
        self.k, self.repeats, self.run = k, repeats, run
        self.predictions = None if predictions is None else dict(predictions)

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns: losses and metrics, in training and validation."""
        return tuple(self.histories[0].directions)

    @property
    def best_epochs(self) -> list[int]:
        """The best epoch of each fold, whose values count."""
        return [history.best_epoch or len(history) for history in self.histories]

    @property
    def seconds(self) -> float:
        """The time that all fits took."""
        return math.fsum(history.seconds for history in self.histories)

    def __len__(self) -> int:
        return len(self.histories)

    def __getitem__(self, column: str) -> list[float]:
        """Return the values of a column at the best epoch of each fold; `ColumnError` when there is none."""
        if column not in self.columns:
            guess = nearest(str(column), self.columns)
            hint = f' Did you mean "{guess}"?' if guess else ""
            raise ColumnError(f"No column {show(column)}.{hint} The columns are {listing(self.columns)}.")
        return [history[column][epoch - 1] for history, epoch in zip(self.histories, self.best_epochs, strict=True)]

    @property
    def mean(self) -> dict[str, float]:
        """The mean over the folds, by column."""
        return {column: _mean(self[column]) for column in self.columns}

    @property
    def std(self) -> dict[str, float]:
        """The standard deviation over the folds (with n - 1), by column."""
        return {column: _std(self[column]) for column in self.columns}

    def interval(self, column: str, level: float = LEVEL) -> tuple[float, float]:
        """Return the confidence interval of the mean of a column.

        It is mean ± t·sd·sqrt(1/n), with Student's t for n - 1 degrees of freedom over the n folds. That assumes values
        that are independent and about normal. They are neither quite: folds share most of their training rows, so that
        the interval is rather too narrow (no estimate of this variance is unbiased: Bengio and Grandvalet, 2004). Where
        the folds were repeated, each row counts several times too, and the variance is the corrected one of Nadeau and
        Bengio, "Inference for the generalization error", Machine Learning 52, 2003: sqrt(1/n + 1/(k - 1)), where
        1/(k - 1) is the number of val rows over that of train rows. Its ends may lie beyond what a metric can be.
        """
        if not 0 < level < 1:
            raise ValueError(f"a level lies between 0 and 1, not {level}")
        values, n = self[column], len(self)
        shared = 1 / (self.k - 1) if self.repeats > 1 else 0.0
        reach = student_t(level, n - 1) * _std(values) * math.sqrt(1 / n + shared)
        return _mean(values) - reach, _mean(values) + reach

    def to_csv(self, path: str | Path | None = None) -> str:
        """Return one row a fold as CSV (fold, repeat, best_epoch, columns), and write it to `path` if there is one."""
        columns = {"fold": list(range(1, len(self) + 1)), "repeat": self._repeats(), "best_epoch": self.best_epochs}
        text = _csv({**columns, **{name: self[name] for name in self.columns}})
        if path is not None:
            Path(path).write_text(text, encoding="utf-8", newline="")
        return text

    def predictions_csv(self) -> str:
        """Return the predictions as CSV; a name that a spreadsheet would compute stands behind an apostrophe."""
        if self.predictions is None:
            raise ValueError("there are no predictions: a sample has more than one target")
        return _csv(self.predictions)

    def to_json(self) -> str:
        """Return `to_plain` as strict JSON."""
        return json.dumps(self.to_plain(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def to_plain(self) -> dict[str, Any]:
        """Return values, means, deviations and 95 % intervals by column; NaN is None, an infinity a string."""
        return dict(
            plain(
                {
                    "format": FORMAT,
                    "k": self.k,
                    "repeats": self.repeats,
                    "best_epoch": self.best_epochs,
                    "columns": {column: self[column] for column in self.columns},
                    "mean": self.mean,
                    "std": self.std,
                    "interval": {column: self.interval(column) for column in self.columns},
                }
            )
        )

    def _repeats(self) -> list[int]:
        return [number // self.k + 1 for number in range(len(self))]

    def _table(self) -> list[list[str]]:
        """Return header and rows as text: one a fold, then mean, standard deviation and the ends of the interval."""
        rows = [["fold", "best epoch", *self.columns]]
        for i, epoch in enumerate(self.best_epochs):
            rows.append([str(i + 1), str(epoch), *(format_value(name, self[name][i]) for name in self.columns)])
        ends = {name: self.interval(name) for name in self.columns}
        for title, values in (
            ("mean", self.mean),
            ("sd", self.std),
            ("95 % from", {name: low for name, (low, _) in ends.items()}),
            ("to", {name: high for name, (_, high) in ends.items()}),
        ):
            rows.append([title, "", *(format_value(name, values[name]) for name in self.columns)])
        return rows

    def _said(self) -> str:
        folds = f"{self.k} folds" + (f" × {self.repeats} repeats" if self.repeats > 1 else "")
        return f"{folds} in {self.seconds:.1f} s; 95 %: Student's t over {len(self)} folds, each at its best val epoch"

    def __repr__(self) -> str:
        column = next((name for name in self.columns[::-1] if name.startswith("val_")), self.columns[-1])
        mean, std = format_value(column, self.mean[column]), format_value(column, self.std[column])
        return f"CrossValidation({len(self)} folds, {column} {mean} ± {std})"

    def __str__(self) -> str:
        rows = self._table()
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = ["  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([*lines, self._said()])

    def _repr_html_(self) -> str:
        header, *rows = self._table()
        lines = [html_row(header, "th"), *(html_row(row, "td") for row in rows)]
        caption = f'<caption style="caption-side: bottom; text-align: left">{escape(self._said())}</caption>'
        return "\n".join(['<table style="font-variant-numeric: tabular-nums">', caption, *lines, "</table>"])


def student_t(level: float, degrees: int) -> float:
    """Return the t that Student's distribution stays within, on both sides of 0, with probability `level`.

    By bisection of the sums for whole degrees of freedom: Abramowitz and Stegun, 26.7.3 and 26.7.4.
    """
    low, high = 0.0, math.pi / 2  # of the angle whose tangent is t / sqrt(degrees)
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _inside(middle, degrees) < level else (low, middle)
    return math.sqrt(degrees) * math.tan(low)


def _inside(angle: float, degrees: int) -> float:
    sine, square = math.sin(angle), math.cos(angle) ** 2
    odd = degrees % 2
    term = math.cos(angle) if odd else 1.0
    total = 0.0
    for i in range(degrees // 2):
        total += term
        term *= square * ((2 * i + 2) / (2 * i + 3) if odd else (2 * i + 1) / (2 * i + 2))
    return (angle + sine * total) * 2 / math.pi if odd else sine * total


def _mean(values: Sequence[float]) -> float:
    if not all(map(math.isfinite, values)):
        return math.nan
    return math.fsum(value / len(values) for value in values)  # divided first: the sum may be beyond any float


def _std(values: Sequence[float]) -> float:
    mean = _mean(values)
    return math.nan if math.isnan(mean) else math.hypot(*(v - mean for v in values)) / math.sqrt(len(values) - 1)


def _csv(columns: Mapping[str, Sequence[Any]]) -> str:
    def cell(value: Any) -> Any:
        if isinstance(value, str):
            return as_text(value)
        return "" if isinstance(value, float) and math.isnan(value) else value

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([cell(value) for value in row] for row in zip(*columns.values(), strict=True))
    return text.getvalue()
