"""What shapes a compiled step, as plain values: runs with equal recipes can share the graphs that torch made."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fitkit.builder.objective import Bound
from fitkit.builder.outline import Outline
from fitkit.spec.component import Component

OURS = ("fitkit.", "torch.")


def make_recipe(begun: Outline, bound: Bound) -> dict[str, Any] | None:
    """Return the recipe of a run; None where code that is not fitkit's has a part in the step.

    Shapes, modes and the sizes of batches are not in it: a step adds those of its own.
    """
    if begun.model is not None or not is_closed(begun, bound):
        return None
    spec, augment = bound.spec, _augment(begun)
    resolved = spec.resolved()
    return {
        **{key: resolved[key] for key in ("model", "loss", "metrics", "optimizer")},
        "fit": {key: resolved["fit"][key] for key in ("clip_norm", "accumulate", "batch_size", "deterministic")},
        "precision": str(bound.objective.precision),
        "augment": [component.resolved() for component in augment],
        "transform": type(bound.objective.transform).__name__,
        "inputs": [list(begun.inputs.shape), begun.inputs.vocabulary],
        "outputs": [begun.outputs, bound.class_dim, bound.squeezed],
        "target": begun.prepared.target,
        "device": str(begun.device),
    }


def is_closed(begun: Outline, bound: Bound) -> bool:
    """Tell whether all code of a step is fitkit's or torch's, whose layers do not change themselves."""
    spec = bound.spec
    components = _components([spec.model, spec.loss, spec.metrics, begun.spec.optimizer, _augment(begun)])
    layers = [
        layer for part in (begun.model, bound.objective.transform) if part is not None for layer in part.modules()
    ]
    # A layer that torch parametrizes has a class of torch's, above the user's; some hold a function, an activation.
    classes = {kind for layer in layers for kind in inspect.getmro(type(layer)) if kind is not object}
    activations = [getattr(layer, "activation", None) for layer in layers]
    functions = [activation for activation in activations if inspect.isfunction(activation)]
    return all(map(is_ours, [*(c.entry.factory for c in components), *classes, *functions]))


def _augment(begun: Outline) -> Sequence[Component]:
    return (begun.spec.data and begun.spec.data.get("augment")) or []


def is_ours(factory: Any) -> bool:
    """Tell whether what a component makes is code of fitkit's or torch's, and not of the user's."""
    return str(getattr(factory, "__module__", "")).startswith(OURS)  # a partial or another object has none


def _components(value: Any) -> Iterable[Component]:
    """Yield every component in a value of a spec, however deep."""
    if isinstance(value, Component):
        yield value
        yield from _components(value.args)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _components(item)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for item in value:
            yield from _components(item)
