"""The check of the data on the way into a fit: what of a run's data can be looked at, and how it is told."""

from __future__ import annotations

import warnings
from typing import Any

from fitkit.builder.data import Prepared
from fitkit.data_check import KINDS, DataCheck, Part, Samples, check
from fitkit.engine.batches import RowBatches
from fitkit.engine.mapped import MappedBatches
from fitkit.errors import DataWarning, printable

OFF = "(fit.check_data: false turns this check off.)"


def look(prepared: Prepared, thorough: bool = False) -> DataCheck:
    """Check the data of a run; what cannot be looked at is in `not_checked`."""
    samples = _samples(prepared, thorough)
    if isinstance(samples, Samples):
        return check(samples, thorough)
    sizes = {name: part.samples for name, part in prepared.parts.items()}
    return DataCheck(sizes=sizes, not_checked=dict.fromkeys(KINDS, samples))


def warn(prepared: Prepared, stacklevel: int = 3) -> DataCheck | None:
    """Check the data on the way into a fit and warn of what is found; None where `fit.check_data` is false.

    `stacklevel` is that of Python's warnings: 2 names the line that calls this function.
    """
    if not prepared.spec.fit.check_data:
        return None
    checked = look(prepared)
    for finding in checked.warnings:
        off = f" {OFF}" if finding is checked.warnings[-1] else ""
        warnings.warn(printable(f"data: {finding}{off}"), DataWarning, stacklevel=stacklevel)
    return checked


def _samples(prepared: Prepared, thorough: bool) -> Samples | str:
    """Return what is to be checked, or why nothing can be."""
    data, spec = prepared.data, prepared.spec
    parts: dict[str, Part] = {}
    for name, batches in prepared.parts.items():
        if not isinstance(batches, RowBatches):
            return "a Dataset or DataLoader is only read when it is trained on"
        if isinstance(batches, MappedBatches) and not thorough:
            return "x stays in its file: fitkit check SPEC --data reads it"
        if batches.y is None or batches.starts is not None:
            return "windows of a text follow one another, and are no rows"
        parts[name] = Part(name, batches.x, batches.y, batches.rows, **_place_of(prepared, name))
    assert data is not None
    first = spec.model[0].name if isinstance(spec.model, tuple) and spec.model else ""
    return Samples(
        parts={"train": parts["train"], **parts},
        target=data.target,
        features=data.features,
        classes=data.classes,
        tokens=data.vocabulary is not None,
        in_time=spec.splits is not None and spec.splits.name == "time",
        scaled=prepared.transform is not None or spec.model is None or "Norm" in first,
    )


def _place_of(prepared: Prepared, part: str) -> dict[str, Any]:
    """Return by what messages name the rows of a part: as its own, as lines of a file, or as rows of the data."""
    data, splits = prepared.data, prepared.spec.splits
    if data is None or part in prepared.names:
        return {"source": None}
    if splits is not None and splits.name == "given" and data.split is not None:
        home = part if part in data.split else "train"  # of which val is drawn, where the file holds no x_val
        return {"source": None if home == part else home, "first": int(data.split[home][0])}
    return {"source": "the data" if data.lines is None else data.name, "lines": data.lines}
