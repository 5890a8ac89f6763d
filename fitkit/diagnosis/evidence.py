"""What a diagnosis is made of: columns, counts and the spec as plain data, whoever wrote them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from fitkit.diagnosis.trend import Curve

TINY, HUGE = 1e-300, 1e100  # what is larger is no better than infinity, and its square none at all


@dataclass(frozen=True)
class Predictions:
    """What the model with the kept weights gives for the validation part.

    For classes: the rows `true`ly of each class and `predicted` as it, and its name. For any model: `spread`, the
    largest standard deviation of an output over the samples (of class probabilities, or of the values), and for values
    `target_spread`, that of the targets.
    """

    true: tuple[int, ...] = ()
    predicted: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    spread: float | None = None
    target_spread: float | None = None


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """A run as the rules see it: nothing here is more than plain numbers and texts.

    All but `predictions` are attributes of a `History`. A baseline that is not known is left out, and then the first
    epoch's loss stands for the scale of losses.
    """

    columns: Mapping[str, Sequence[float]]
    spec: Mapping[str, Any] = field(default_factory=dict)
    samples: Mapping[str, int] = field(default_factory=dict)
    baseline: Mapping[str, float] = field(default_factory=dict)
    classes: int | None = None
    best_epoch: int | None = None
    stopped: str = ""
    predictions: Predictions | None = None

    @property
    def epochs(self) -> int:
        """How many epochs were finished."""
        return len(next(iter(self.columns.values()), ()))

    def curve(self, column: str) -> Curve | None:
        """Return the finite values of a column, None where there is none."""
        points = [(e, v) for e, v in enumerate(self.columns.get(column, ()), 1) if usable(v)]
        return Curve(*map(tuple, zip(*points, strict=True))) if points else None

    @cached_property
    def loss(self) -> Curve | None:
        """The training loss."""
        return self.curve("loss")

    @cached_property
    def val_loss(self) -> Curve | None:
        """The validation loss."""
        return self.curve("val_loss")

    def chance(self, column: str) -> float | None:
        """Return what a constant prediction reaches in a column; None where that is not known."""
        value = self.baseline.get(column)
        return value if value is not None and usable(value) else None

    @cached_property
    def scale(self) -> float:
        """What changes are compared with: the loss of a constant prediction, or where it is not known the first one."""
        first = [curve.first for curve in (self.loss, self.val_loss) if curve is not None]
        known = self.chance("val_loss") or self.chance("loss") or max(first, default=1.0)
        return max(abs(known), TINY)

    @cached_property
    def classifies(self) -> bool:
        """Whether the targets are classes."""
        return (self.classes or 0) > 1 or "accuracy" in self.columns

    @cached_property
    def rows(self) -> int | None:
        """The validation rows, where each has one target: the words of a text are not independent of each other."""
        rows = self.samples.get("val", 0)
        return rows if rows > 0 and (self.classes or self.baseline) else None

    @cached_property
    def steps_per_epoch(self) -> int | None:
        """Optimizer steps of an epoch, where rows and batch size are known."""
        rows, size, accumulate = (self.samples.get("train"), self.fit("batch_size"), self.fit("accumulate") or 1)
        return -(-rows // max(1, int(size * accumulate))) if rows and rows > 0 and size else None

    def component(self, section: str) -> tuple[str, Mapping[str, Any]]:
        """Return the name and the arguments of the one component of a section, empty where the spec has none."""
        value = self.spec.get(section)
        if isinstance(value, str):
            return value, {}
        if isinstance(value, Mapping) and len(value) == 1:
            [(name, arguments)] = value.items()
            return str(name), arguments if isinstance(arguments, Mapping) else {}
        return "", {}

    def number(self, section: str, argument: str) -> float | None:
        """Return a numeric argument of a section's component, None where there is none."""
        return _number(self.component(section)[1].get(argument))

    def fit(self, key: str) -> float | None:
        """Return a numeric key of `fit:`."""
        options = self.spec.get("fit")
        return _number(options.get(key)) if isinstance(options, Mapping) else None

    @property
    def layers(self) -> Sequence[Any]:
        """The layers of a model that is a list of them, else none."""
        model = self.spec.get("model")
        return model if isinstance(model, Sequence) and not isinstance(model, str) else ()

    def callback(self, name: str) -> Mapping[str, Any] | None:
        """Return the arguments of a callback, None where the spec has none of that name."""
        given = self.spec.get("callbacks")
        if not isinstance(given, Mapping) or name not in given:
            return None
        return given[name] if isinstance(given[name], Mapping) else {}


def usable(value: float) -> bool:
    """Tell whether a number can be reckoned with: neither NaN nor infinite, nor so large that its square is."""
    return math.isfinite(value) and abs(value) < HUGE


def _number(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < HUGE
    return value if is_number else None
