"""The trend of a column, so that no verdict hangs on one epoch, and the intervals of shares.

A curve is smoothed by a running median: of 3 epochs, of 5 from 15 epochs on; at its two ends by as many as there are.
One odd epoch so changes no smoothed value. The noise of an epoch is the robust standard deviation of the second
differences, 1.4826 * median(|y[i-1] - 2 y[i] + y[i+1]|) / sqrt(6): a straight trend gives 0.
"""

from __future__ import annotations

import bisect
import math
import statistics
from dataclasses import dataclass
from functools import cached_property

Z = 1.959964  # of a two-sided interval of 95 %


@dataclass(frozen=True)
class Curve:
    """The finite values of a column, and the epochs where they were measured, from 1."""

    epochs: tuple[int, ...]
    values: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.values)

    @cached_property
    def smooth(self) -> tuple[float, ...]:
        """The running median."""
        half = 2 if len(self) >= 15 else 1
        windows = (self.values[max(0, i - half) : i + half + 1] for i in range(len(self)))
        return tuple(statistics.median(window) for window in windows)

    @property
    def first(self) -> float:
        """The first value as it is: a loss falls too fast there to be smoothed."""
        return self.values[0]

    @property
    def end(self) -> float:
        """The level at the end: the median of the last fifth of the values, one to five of them."""
        return statistics.median(self.values[-max(1, min(5, len(self) // 5)) :])

    @cached_property
    def best(self) -> int:
        """The index of the lowest smoothed value, the first of equals; in a short curve of the lowest value."""
        values = self.smooth if len(self) >= 6 else self.values
        return values.index(min(values))

    @property
    def lowest(self) -> float:
        """The lowest smoothed value; in a short curve the lowest value."""
        return (self.smooth if len(self) >= 6 else self.values)[self.best]

    def at(self, epoch: int) -> float | None:
        """Return the smoothed value of an epoch, None where nothing was measured."""
        index = bisect.bisect_left(self.epochs, epoch)
        return self.smooth[index] if index < len(self) and self.epochs[index] == epoch else None

    def tail(self, share: float) -> Curve:
        """Return the last part of the curve, at least three values if there are."""
        count = max(3, math.ceil(len(self) * share))
        return Curve(self.epochs[-count:], self.values[-count:])

    @cached_property
    def noise(self) -> float:
        """The standard deviation of one epoch's value around the trend; 0 with fewer than five values."""
        if len(self) < 5:
            return 0.0
        y = self.values
        second = [abs(y[i - 1] - 2 * y[i] + y[i + 1]) for i in range(1, len(y) - 1)]
        return 1.4826 * statistics.median(second) / math.sqrt(6)

    @property
    def climbs(self) -> float:
        """The sum of all rises from one value to the next."""
        return sum(max(0.0, b - a) for a, b in zip(self.values, self.values[1:], strict=False))

    @cached_property
    def slope(self) -> tuple[float, float]:
        """Change an epoch, and its standard error, by the line of least squares; an error of infinity under 3 values.

        The error is that of independent residuals, with n - 2 degrees of freedom.
        """
        count = len(self)
        if count < 3:
            change = (self.values[-1] - self.first) / (self.epochs[-1] - self.epochs[0]) if count == 2 else 0.0
            return change, math.inf
        x_mean, y_mean = statistics.fmean(self.epochs), statistics.fmean(self.values)
        spread = sum((x - x_mean) ** 2 for x in self.epochs)
        pairs = list(zip(self.epochs, self.values, strict=True))
        slope = sum((x - x_mean) * (y - y_mean) for x, y in pairs) / spread
        residual = sum((y - y_mean - slope * (x - x_mean)) ** 2 for x, y in pairs)
        return slope, math.sqrt(residual / (count - 2) / spread)


def wilson(share: float, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a share of `count` independent samples (Wilson 1927, J. Am. Stat. Assoc. 22)."""
    share, square = min(max(share, 0.0), 1.0), Z * Z / count
    middle = (share + square / 2) / (1 + square)
    half = Z / (1 + square) * math.sqrt(share * (1 - share) / count + square / (4 * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def standard_error(share: float, count: int) -> float:
    """Return the standard error of a share, with one success and one failure added so that it is never 0."""
    share = (min(max(share, 0.0), 1.0) * count + 1) / (count + 2)
    return math.sqrt(share * (1 - share) / (count + 2))
