"""The folds of a spec: each is the spec of a run of its own, which names its fold."""

from __future__ import annotations

import dataclasses
import math

from fitkit.engine.seeds import FOLD, derive
from fitkit.parts.folds import MOST_FOLDS
from fitkit.spec.spec import Spec


def fold_specs(spec: Spec) -> tuple[Spec, ...]:
    """Return the spec of each fold of a cross-validation, in their order; none for a spec that asks for one run.

    Raises SpecError for more than `MOST_FOLDS`, before memory is taken for them.
    """
    splits = spec.splits
    if splits is None or "folds" not in splits.entry.facts or splits.get("fold") is not None:
        return ()
    count = math.prod(splits.get(name) for name in splits.entry.facts["folds"])
    if count > MOST_FOLDS:
        raise splits.error(f"asks for {count:,} folds, and at most {MOST_FOLDS:,} are run: take smaller numbers.")
    found = []
    for fold in range(1, count + 1):
        named = dataclasses.replace(splits, args={**splits.args, "fold": fold})
        given = {**spec.given, "splits": {splits.name: dict(named.args)}}
        found.append(dataclasses.replace(spec, splits=named, given=given, text=None))
    return tuple(found)


def training_seed(spec: Spec) -> int:
    """Return the seed of all that a run draws but its split.

    That is the spec's, and in a fold of a cross-validation `derive(seed, FOLD, fold)`: all folds share the split, and
    each has initial weights, an order of its rows and dropout masks of its own.
    """
    if spec.splits is None or "folds" not in spec.splits.entry.facts:
        return spec.seed
    return derive(spec.seed, FOLD, spec.splits.get("fold") or 1)
