"""An optimizer's update as functions of tensors, which a graph of a whole step can hold.

A step of torch's optimizers gathers its state into lists and calls a function of these lists. The lists are taken from
the optimizer itself, so steps in a graph, eager steps and checkpoints share one state.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# The functions that torch's optimizers call. Not rprop: in a graph, torch 2.13 gives it zeros for the gradient of an
# embedding.
FUNCTIONS = frozenset(
    "sgd adam adadelta adagrad adamax asgd nadam radam rmsprop adafactor muon".split()  # noqa: SIM905
)
BRANCH_ON_VALUES = ("radam", "asgd")  # unless they are told to be capturable


@dataclass
class Update:
    """One call of an update function: for the parameters of a group, by their places in the list of all of them."""

    function: Callable[..., None]
    places: list[int]
    state: list[list[Any]]
    options: dict[str, Any]
    group: int
    takes_lr: bool

    def __call__(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor | None], lr: Tensor) -> None:
        """Update the parameters that have a gradient, and their state, in place; `lr` (groups,) in float64."""
        has = [i for i, place in enumerate(self.places) if gradients[place] is not None]
        taken, narrow = [], []
        for entries in self.state:
            mine = [entries[i] for i in has] if len(entries) == len(self.places) else list(entries)
            # Step counts are float32 tensors that eager code reads as Python floats: 1 - beta**step needs the digits.
            if mine and isinstance(mine[0], Tensor) and mine[0].dim() == 0 and mine[0].dtype == torch.float32:
                wide = [entry.double() for entry in mine]
                narrow.append((mine, wide))
                mine = wide
            taken.append(mine)
        options = {**self.options, "lr": lr[self.group]} if self.takes_lr else self.options
        places = [self.places[i] for i in has]
        self.function([parameters[p] for p in places], [gradients[p] for p in places], *taken, **options)
        for mine, wide in narrow:
            for entry, value in zip(mine, wide, strict=True):
                entry.copy_(value)


def updates_of(optimizer: torch.optim.Optimizer) -> list[Update] | None:
    """Return the updates that one step of an optimizer makes, or None for one whose step is not of torch's form.

    The optimizer must have taken a step before, so that its state is there. Nothing is updated.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    place = {id(parameter): i for i, parameter in enumerate(parameters)}
    groups = [id(group) for group in optimizer.param_groups]
    updates = []
    for part in getattr(optimizer, "bound_parts", lambda: [optimizer])():
        calls = _calls(part)
        if calls is None or len(calls) != len(part.param_groups):
            return None
        for group, (function, lists, options) in zip(part.param_groups, calls, strict=True):
            updates.append(
                Update(
                    function=function,
                    places=[place[id(parameter)] for parameter in lists[0]],
                    state=[list(entries) for entries in lists[2:] if entries is not None],
                    options=options,
                    group=groups.index(id(group)),
                    takes_lr="lr" in options,
                )
            )
            options.pop("lr", None)
    return updates


def _calls(optimizer: torch.optim.Optimizer) -> list[tuple[Callable[..., None], Any, dict[str, Any]]] | None:
    """Run the optimizer's step with a function in the place of its update that writes down what it is given."""
    step: Any = inspect.unwrap(type(optimizer).step)
    if not isinstance(step, types.FunctionType) or not type(optimizer).__module__.startswith("torch.optim"):
        return None
    names = FUNCTIONS & set(step.__code__.co_names)
    if len(names) != 1:
        return None
    (name,) = names
    calls: list[Any] = []

    def record(*lists: Any, **options: Any) -> None:
        changed = {"foreach": False, "fused": False, "capturable": name in BRANCH_ON_VALUES}
        kept = {key: changed.get(key, value) for key, value in options.items()}
        calls.append((adafactor if name == "adafactor" else step.__globals__[name], lists, kept))

    recording = types.FunctionType(
        step.__code__, {**step.__globals__, name: record}, name, step.__defaults__, step.__closure__
    )
    recording.__kwdefaults__ = step.__kwdefaults__
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    stateful = [p for p in parameters if optimizer.state.get(p)] or parameters
    gradients = [p.grad for p in parameters]
    try:
        for parameter in stateful:
            parameter.grad = torch.zeros_like(parameter)
        with torch.no_grad():
            recording(optimizer)
    finally:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
    return calls


def adafactor(
    params: list[Tensor],
    grads: list[Tensor],
    row_vars: list[Tensor | None],
    col_vars: list[Tensor | None],
    variances: list[Tensor | None],
    state_steps: list[Tensor],
    *unused: Any,
    d: float,
    lr: Tensor,
    beta2_decay: float,
    weight_decay: float,
    eps1: float | None,
    eps2: float,
    **options: Any,
) -> None:
    """Do Adafactor's update (Shazeer and Stern, 2018, as `torch.optim.Adafactor` has it) without reading a tensor."""
    for param, grad, row, col, variance, step in zip(
        params, grads, row_vars, col_vars, variances, state_steps, strict=True
    ):
        eps = torch.finfo(param.dtype).eps if eps1 is None else eps1
        step += 1  # noqa: PLW2901  (in place)
        new = (step**beta2_decay).to(grad.dtype)
        alpha = (param.norm(2).double() / param.numel() ** 0.5).clamp(min=eps2) * torch.minimum(lr, step**-0.5)
        if weight_decay:
            param.mul_(1 - lr * weight_decay)
        if row is not None and col is not None:
            row.lerp_(grad.norm(dim=-1, keepdim=True).square() / grad.size(-1), new)
            col.lerp_(grad.norm(dim=-2, keepdim=True).square() / grad.size(-2), new)
            estimate = (row @ col) / row.mean(dim=-2, keepdim=True).clamp(min=eps)
        else:
            assert variance is not None
            variance.lerp_(grad * grad, new)
            estimate = variance
        update = estimate.clamp(min=eps * eps).rsqrt() * grad
        denom = (update.norm(2).double() / (update.numel() ** 0.5 * d)).clamp(min=1.0)
        param.add_(update * (-alpha / denom).to(update.dtype))
