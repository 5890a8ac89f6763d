"""The augmentations that a spec asks for, bound to the data of its run and tried on two samples."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from fitkit.data import Data
from fitkit.engine.augment import Augment
from fitkit.engine.step import all_finite
from fitkit.parts.transforms import Affine
from fitkit.spec.component import Component, reason
from fitkit.spec.spec import Spec

MOST = 16  # augmentations in a list: each costs a pass over the batch


def make_augment(spec: Spec, data: Data, transform: nn.Module | None) -> Augment | None:
    """Return what training samples go through, None where the spec asks for nothing.

    `data` is on its device, x as a batch takes it; `transform` is what comes after. Raises SpecError for what does not
    fit the samples.
    """
    source, asked = spec.data, _asked(spec)
    if source is None or not asked:
        return None
    if data.vocabulary is not None:
        raise source.error("the samples are token ids, and augmentations change images and measurements.", "augment")
    if len(asked) > MOST:
        raise source.error(f"has {len(asked)} augmentations, and at most {MOST} are taken.", "augment")
    units = _units(transform, data.x)
    key = torch.zeros(1, dtype=torch.int64, device=data.x.device)
    made = Augment([_bound(component, units) for component in asked], key)
    two = data.x[:2].clone()
    for number, component in enumerate(asked):
        if component.entry.facts.get("units") == "input" and not isinstance(transform, Affine | None):
            kind = type(transform).__name__
            raise component.error(f"{component.name} is in units of the model's input, which {kind} does not tell.")
        if component.entry.facts.get("values") and transform is None and not two.is_floating_point():
            whole = str(two.dtype).removeprefix("torch.")
            raise component.error(
                f"{component.name} gives real numbers, but x holds whole ones ({whole}), and so would validation. Give "
                f"the data in floating point, or write {{transform: scale}} beside augment."
            )
        two = _tried(source, component, Augment(made.functions[number : number + 1], key), two)
    return made


def refuse_augment(spec: Spec) -> None:
    """Raise SpecError where a spec asks for augmentations of samples that a Dataset reads."""
    if _asked(spec) and spec.data is not None:
        raise spec.data.error("augmentations need the data in memory. Do them in the Dataset.", "augment")


def _asked(spec: Spec) -> list[Component]:
    return [] if spec.data is None else spec.data.get("augment") or []


def _bound(component: Component, units: Tensor) -> Any:
    given = component.own()
    if component.entry.facts.get("units") == "input":
        return functools.partial(component.entry.factory, units=units, **given)
    return functools.partial(component.entry.factory, **given)


def _tried(source: Component, component: Component, augment: Augment, x: Tensor) -> Tensor:
    """Return what one augmentation makes of two samples; SpecError where it refuses them or changes their shape."""
    rows = torch.arange(len(x), device=x.device)
    try:
        made: Any = augment(x, rows)
    except (ValueError, RuntimeError, TypeError, IndexError) as error:
        image = " Write layout: image." if "layout" in source.entry.arguments and x.ndim != 4 else ""
        raise component.error(f"{reason(error)}.{image}") from error
    if not isinstance(made, Tensor) or made.shape != x.shape:
        gave = f"shape {tuple(made.shape)}" if isinstance(made, Tensor) else f"a {type(made).__name__}"
        fault = f"{component.name} must return samples of the same shape, {tuple(x.shape)} here, but it gave {gave}."
        raise component.error(fault)
    if all_finite([x]) and not all_finite([made]):
        raise component.error(f"{component.name} makes NaN or infinity of the samples. Take smaller numbers.")
    return made


def _units(transform: nn.Module | None, x: Tensor) -> Tensor:
    """Return what 1 in the model's input is in x, for each feature of a sample, broadcasting against it."""
    if isinstance(transform, Affine):
        return 1 / transform.narrow_scale
    return torch.ones((), device=x.device)
