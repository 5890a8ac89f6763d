"""The targets of the parts: how many rows of each class, classes that a part lacks, and parts that differ."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fitkit.data_check.finding import Finding, Part, Samples, several
from fitkit.errors import show

CHANCE = 0.01  # how probable the lack of a class has to be, at the most, to be no accident of a small part
DEVIATIONS = 5.0  # of a difference from zero
SHARE, SHIFT = 0.15, 0.5  # of the rows; standard deviations of the target


def count_classes(samples: Samples) -> dict[str, Tensor] | None:
    """Return how many rows of each class each part has, (K,); None where the target is not one class a row."""
    parts = samples.parts.values()
    if samples.target != "classes" or any(part.y.ndim != 1 for part in parts):
        return None
    targets = {part.name: part.targets() for part in parts}
    most = max(int(y.max()) + 1 for y in targets.values())
    if most > 1_000_000 or any(int(y.min()) < 0 for y in targets.values()):
        return None
    return {name: y.bincount(minlength=max(most, len(samples.classes or ()))) for name, y in targets.items()}


def check_targets(samples: Samples, counts: Mapping[str, Tensor] | None) -> list[Finding]:
    """Find classes that a part lacks, and parts whose targets differ from those of train."""
    parts = list(samples.parts.values())
    if counts is None:
        of_values = samples.target == "values" and parts[0].y.ndim == 1
        found = [_shifted_values(parts[0], part) for part in parts[1:]] if of_values else []
        return [finding for finding in found if finding is not None]
    train = counts[parts[0].name]
    found = []
    for part in parts[1:]:
        found += [_unknown(samples, train, part, counts[part.name]), _lacking(samples, train, part, counts[part.name])]
        found.append(_shifted_classes(samples, train, part, counts[part.name]))
    return [finding for finding in found if finding is not None]


def _named(samples: Samples, numbers: Tensor) -> str:
    return several([show(samples.class_name(number)) for number in numbers[:3].tolist()], len(numbers))


def _spelling(samples: Samples, numbers: Tensor) -> str:
    """Name a class of these numbers whose name is that of another but for case and spaces; "" if there is none."""
    names: dict[str, list[str]] = {}
    for name in samples.classes or ():
        names.setdefault("".join(name.split()).casefold(), []).append(name)
    for name in (samples.class_name(number) for number in numbers.tolist()):
        if others := [other for other in names.get("".join(name.split()).casefold(), ()) if other != name]:
            return f"{show(name)} differs from {show(others[0])} only in case or spaces: write one class in one way."
    return ""


def _unknown(samples: Samples, train: Tensor, part: Part, counts: Tensor) -> Finding | None:
    lost = ((train == 0) & (counts > 0)).nonzero().flatten()
    if not len(lost):
        return None
    spelling = _spelling(samples, lost)
    rows = part.numbers(torch.isin(part.targets(), lost).nonzero().flatten())
    return Finding(
        name="classes without training rows",
        level="warning",
        sentence=f"train has no row of class {_named(samples, lost)}, and {part.name} has {len(rows):,} "
        f"({part.places(rows)}{part.counted})",
        advice=spelling or "No model can get these right: use splits: stratified, or give train rows of each class.",
        rows={part.name: rows[:1000].tolist()},
    )


def _lacking(samples: Samples, train: Tensor, part: Part, counts: Tensor) -> Finding | None:
    lost = ((train > 0) & (counts == 0)).nonzero().flatten()
    if not len(lost):
        return None
    by_chance = (1 - train / train.sum()) ** len(part)
    expected, spelling = bool((by_chance[lost] * len(lost) > CHANCE).all()), _spelling(samples, lost)
    return Finding(
        name="classes absent",
        level="note" if expected and not spelling else "warning",
        sentence=f"{part.name} has no row of class {_named(samples, lost)}, of which train has "
        f"{int(train[lost].sum()):,}",
        advice=spelling
        or f"What {part.name} says holds for the other classes only: use splits: stratified, or a larger part.",
    )


def _shifted_classes(samples: Samples, train: Tensor, part: Part, counts: Tensor) -> Finding | None:
    share, theirs = train / train.sum(), counts / counts.sum()
    pooled = (train + counts) / (train.sum() + counts.sum())
    error = (pooled * (1 - pooled) * (1 / train.sum() + 1 / counts.sum())).sqrt()
    shifted = ((theirs - share).abs() > SHARE) & ((theirs - share).abs() > DEVIATIONS * error)
    if not shifted.any():
        return None
    worst = int(((theirs - share).abs() * shifted).argmax())
    return Finding(
        name="shift of the target",
        level="warning",
        sentence=f"class {show(samples.class_name(worst))} is {share[worst]:.0%} of train and {theirs[worst]:.0%} of "
        f"{part.name}",
        advice=f"{part.name} measures another mixture than is trained on: is the file sorted? If that is so on "
        "purpose, as with later rows, look at each class by itself.",
    )


def _shifted_values(train: Part, part: Part) -> Finding | None:
    ours, theirs = train.targets().double(), part.targets().double()
    if len(ours) < 2 or len(theirs) < 2:
        return None
    deviation = ours.std()
    difference = theirs.mean() - ours.mean()
    error = (ours.var() / len(ours) + theirs.var() / len(theirs)).sqrt()
    if difference.abs() <= SHIFT * deviation or difference.abs() <= DEVIATIONS * error:
        return None
    return Finding(
        name="shift of the target",
        level="warning",
        sentence=f"the target is {ours.mean():.4g} ± {deviation:.2g} in train and {theirs.mean():.4g} ± "
        f"{theirs.std():.2g} in {part.name}",
        advice=f"{part.name} is not like train: is the file sorted? If that is so on purpose, as with later rows, "
        "expect new rows to differ as well.",
    )
