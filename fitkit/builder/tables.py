"""Every table by its name: what a spec may say, in one place."""

from __future__ import annotations

import copy

from fitkit.data import Data
from fitkit.parts.augmentations import augmentations
from fitkit.parts.callbacks import callbacks
from fitkit.parts.folds import folds
from fitkit.parts.layers import layers
from fitkit.parts.losses import losses
from fitkit.parts.metrics import metrics
from fitkit.parts.models import models
from fitkit.parts.optimizers import optimizers
from fitkit.parts.rankings import rankings
from fitkit.parts.schedules import schedules
from fitkit.parts.sources import sources
from fitkit.parts.splits import splits
from fitkit.parts.trackers import trackers
from fitkit.parts.transforms import transforms
from fitkit.spec.component import Component
from fitkit.spec.table import Table

PLATEAU = "ReduceLROnPlateau"  # the one schedule with memory: a callback, which may stand under `schedule:` too


def _copy(table: Table) -> Table:
    """Return a table of its own with the same entries, so that what is added here is not in the module's."""
    return copy.copy(table)


sources, splits, schedules = _copy(sources), _copy(splits), _copy(schedules)
callbacks, metrics = _copy(callbacks), _copy(metrics)


@sources.register
def arrays() -> Data:
    """What Python hands to fit(spec, data=…): samples reach the model as they are unless a transform is asked for."""
    raise ValueError("this is the data given in Python: call fit(spec, data=(x, y))")


callbacks.update(trackers)
splits.update(folds)
metrics.update(rankings)
schedules[PLATEAU] = callbacks[PLATEAU]

TABLES: dict[str, Table] = {
    "sources": sources,
    "splits": splits,
    "transforms": transforms,
    "augmentations": augmentations,
    "models": models,
    "layers": layers,
    "losses": losses,
    "metrics": metrics,
    "optimizers": optimizers,
    "schedules": schedules,
    "callbacks": callbacks,
}


def default(table: str, name: str, section: str) -> Component:
    """Return the component that stands in for a section that a spec leaves out."""
    return Component(TABLES[table][name], path=f"{section}.{name}")
