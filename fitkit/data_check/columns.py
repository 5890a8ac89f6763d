"""Columns of x that are worth a look: constant, numbering the rows, with values that mean "missing", far off, uneven.

What one column tells about the target is in `giveaway`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fitkit.data_check.finding import Finding, Part, Samples, kept, several, spread_out
from fitkit.errors import show

CHUNK = 1 << 20  # numbers that are looked through at a time
FEWEST_ROWS = 20  # of train: below, any column may be constant or in order by chance
SAMPLED = 512
# Numbers that stand for "missing" in tables; -1 and 0 are left out, being measured often.
SENTINELS = (-9999.0, -999.0, -99.0, 99.0, 999.0, 9999.0, 99999.0, -99999.0)
FAR_OFF = 100.0  # times the range from the 1st to the 99th percentile beyond it
DEVIATIONS = 10.0  # from the mean, which whatever is so far off exceeds
UNEVEN = 1e4  # largest standard deviation over the smallest


@dataclass(frozen=True)
class Ends:
    """The smallest and the largest value of each number of a sample in train, (D,) on the CPU."""

    low: Tensor
    high: Tensor

    @property
    def padded(self) -> Tensor:
        """Which columns have the smallest value that half of all columns share, (D,): empty words, dark pixels."""
        lowest = self.low == self.low.min()
        return lowest & (lowest.double().mean() >= 0.5)

    @property
    def one_scale(self) -> bool:
        """Whether columns have one scale, as pixels have: most begin at one value and end near one value."""
        varied = self.high[self.low < self.high]
        top = self.high.max() - self.low.min()
        alike = (varied - self.low.min() >= top / 4).double().mean() >= 0.5
        return bool(self.padded.any() and alike)


def raw_names(samples: Samples, shape: Sequence[int]) -> list[str]:
    """Return what messages call each number of a sample, in the order of the flattened sample."""
    if samples.features is not None:
        names = []
        for feature in samples.features:
            one = [show(feature.name)]
            names += one if feature.categories is None else [f"{one[0]} is {show(c)}" for c in feature.categories]
        return names
    if len(shape) <= 1:
        return [str(i) for i in range(shape[0] if shape else 1)]
    places = torch.cartesian_prod(*(torch.arange(n) for n in shape)).tolist()
    return [str(place) for place in places]


def table_of(samples: Samples, x: Tensor) -> tuple[Tensor, list[str]]:  # (n, ...) -> (n, F)
    """Return samples as a table of float64 on the CPU with its columns' names; the 0/1 columns of a text are one."""
    flat = x.reshape(len(x), -1).cpu().double()
    if samples.features is None or samples.tokens:
        return flat, raw_names(samples, x.shape[1:])
    if all(feature.categories is None for feature in samples.features):
        return flat, [show(feature.name) for feature in samples.features]
    columns, at = [], 0
    for feature in samples.features:
        width = 1 if feature.categories is None else len(feature.categories)
        columns.append(flat[:, at] if feature.categories is None else flat[:, at : at + width].argmax(1).double())
        at += width
    return torch.stack(columns, 1), [show(feature.name) for feature in samples.features]


def find_ends(part: Part) -> Ends:
    """Look through a part once for the smallest and the largest value of each number of a sample."""
    low: Tensor | None = None
    high: Tensor | None = None
    for start in range(0, len(part), step := max(1, CHUNK // max(1, part.x[0].numel()))):
        x = part.take(slice(start, start + step))
        x = x.reshape(len(x), -1)
        least, most = x.amin(0), x.amax(0)
        low = least if low is None else torch.minimum(low, least)
        high = most if high is None else torch.maximum(high, most)
    assert low is not None and high is not None
    return Ends(low.cpu().double(), high.cpu().double())


def check_columns(samples: Samples, ends: Ends) -> list[Finding]:
    """Find columns of train that are worth a look; `ends` are those of train."""
    train = next(iter(samples.parts.values()))
    if len(train) < FEWEST_ROWS:
        return []
    names = raw_names(samples, train.x.shape[1:])
    found = [_constant(samples, train, ends, names)]
    if train.x.ndim == 2:
        numbers = _is_number(samples, len(names))
        sample = train.take(spread_out(torch.arange(len(train)), SAMPLED)).cpu().double()
        found += [
            _row_numbers(samples, ends, names),
            _sentinels(train, ends, names, numbers),
            _far_off(train, ends, names, numbers, sample),
            None if samples.scaled else _uneven(ends, names, sample),
        ]
    return [finding for finding in found if finding is not None]


def _is_number(samples: Samples, width: int) -> Tensor:
    """Tell which columns of x are numbers, not the 0/1 of a text."""
    if samples.features is None:
        return torch.ones(width, dtype=torch.bool)
    widths = [1 if f.categories is None else len(f.categories) for f in samples.features]
    return torch.tensor([f.categories is None for f in samples.features]).repeat_interleave(torch.tensor(widths))


def _columns(which: Tensor, names: Sequence[str], word: str = "column") -> tuple[str, list[str]]:
    """Return a phrase that names columns, and their names."""
    chosen = [names[i] for i in which.tolist()]
    return f"{word}{'s' * (len(chosen) > 1)} {several(chosen)}", chosen


def _constant(samples: Samples, train: Part, ends: Ends, names: Sequence[str]) -> Finding | None:
    constant = ends.low == ends.high
    if not constant.any() or len(names) < 2:
        return None
    told, chosen = _columns(constant.nonzero().flatten(), names, "column" if train.x.ndim == 2 else "place")
    # The dark border of an image, a word that no text has, a rare category: nothing is wrong with these.
    harmless = ends.padded if samples.features is None else ~_is_number(samples, len(names))
    usual = bool((harmless | ~constant).all()) or train.x.ndim > 2
    return Finding(
        name="constant columns",
        level="note" if usual else "warning",
        sentence=f"{told} of x {'is' if len(chosen) == 1 else 'are'} the same in all {len(train):,} rows of train",
        advice="Edges of images, rare words and rare categories are so: nothing has to be done."
        if usual
        else "There is nothing to learn from it: look whether it was read rightly, or leave it out.",
        columns=chosen,
    )


def _row_numbers(samples: Samples, ends: Ends, names: Sequence[str]) -> Finding | None:
    """Find a column that numbers the rows: whole, and each number of a range once."""
    total = sum(map(len, samples.parts.values()))
    size = len(next(iter(samples.parts.values())))
    span = ends.high - ends.low + 1
    likely = (span >= size) & (span <= total) & (ends.low == ends.low.round())
    if samples.in_time or len(names) < 2:
        return None
    for column in likely.nonzero().flatten().tolist():
        values = torch.cat([part.x[:, column][part.rows.to(part.x.device)].cpu() for part in samples.parts.values()])
        values = values.double().sort().values
        if bool((values.diff() == 1).all()):
            return Finding(
                name="row numbers",
                level="warning",
                sentence=f"column {names[column]} of x numbers the rows, from {values[0]:.0f} to {values[-1]:.0f}",
                advice="A model learns the order of the file from it, which no new row has: leave it out.",
                columns=[names[column]],
            )
    return None


def _sentinels(train: Part, ends: Ends, names: Sequence[str], numbers: Tensor) -> Finding | None:
    """Find a usual code for "missing" far from all other values of its column."""
    codes = torch.tensor(SENTINELS, dtype=torch.float64)
    likely = numbers & (torch.isin(ends.low, codes) | torch.isin(ends.high, codes)) & (ends.low < ends.high)
    for column in likely.nonzero().flatten().tolist():
        values = train.x[:, column][train.rows.to(train.x.device)].cpu().double()
        for code in (float(ends.low[column]), float(ends.high[column])):
            rest = values[values != code]
            distance = (rest - code).abs().min()
            if code in SENTINELS and distance > rest.max() - rest.min() and distance > 0.5 * abs(code):
                rows = train.numbers((values == code).nonzero().flatten())
                many = f"{len(rows):,} row{'s' * (len(rows) > 1)} of train"
                return Finding(
                    name="missing values",
                    level="warning",
                    sentence=f"column {names[column]} of x is {code:.0f} in {many} "
                    f"({train.places(rows)}{train.counted}), far from all other values, which go from "
                    f"{rest.min():.4g} to {rest.max():.4g}",
                    advice="If that stands for a missing value, fill it in (by the median, say) and add a 0/1 column.",
                    rows={train.name: kept(rows)},
                    columns=[names[column]],
                )
    return None


def _far_off(train: Part, ends: Ends, names: Sequence[str], numbers: Tensor, sample: Tensor) -> Finding | None:
    """Find values so far from the rest that a scaling by mean and deviation leaves the rest next to no room."""
    if len(sample) < 144:  # in fewer rows no deviation is larger than the limit of the next lines
        return None
    mean, deviation = sample.mean(0), sample.std(0, correction=0)
    likely = numbers & (torch.maximum(ends.high - mean, mean - ends.low) > DEVIATIONS * deviation) & (deviation > 0)
    at = likely.nonzero().flatten()
    if not len(at):
        return None
    ranks = torch.tensor([0.01, 0.25, 0.75, 0.99], dtype=torch.float64)
    low, first, third, high = sample[:, at].quantile(ranks, dim=0)
    reach = FAR_OFF * (high - low)
    far = ((third > first) & ((ends.high[at] > high + reach) | (ends.low[at] < low - reach))).nonzero().flatten()
    if not len(far):
        return None
    told, chosen = _columns(at[far], names)
    column, low, high = int(at[far[0]]), low[far[0]], high[far[0]]
    values = train.x[:, column][train.rows.to(train.x.device)].cpu().double()
    worst = (values - values.median()).abs().argmax()
    return Finding(
        name="outliers",
        level="warning",
        sentence=f"{told} of x {'has' if len(chosen) == 1 else 'have'} values far off: {names[column]} is "
        f"{values[worst]:.4g} in {train.places(train.numbers(worst)[None])}, and from {low:.4g} to {high:.4g} in 98 % "
        f"of the rows{train.counted}",
        advice="Mend it if it is a mistake, else take logarithms or clip it: scaling squeezes all other rows together.",
        rows={train.name: [int(train.numbers(worst))]},
        columns=chosen,
    )


def _uneven(ends: Ends, names: Sequence[str], sample: Tensor) -> Finding | None:
    """Find columns of very different scale that nothing brings to one."""
    deviations = sample.std(0, correction=0)
    varied = (deviations > 0).nonzero().flatten()
    if len(varied) < 2:
        return None
    large, small = varied[deviations[varied].argmax()], varied[deviations[varied].argmin()]
    ratio = float(deviations[large] / deviations[small])
    if ratio < UNEVEN:
        return None
    return Finding(
        name="scales",
        level="warning",
        sentence=f"column {names[int(large)]} of x varies {ratio:,.0f} times as much as column {names[int(small)]}",
        advice="A network hardly sees the smaller one: say data: {arrays: {transform: standardize}}.",
        columns=[names[int(large)], names[int(small)]],
    )
