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

from fitkit.engine.private import unwarned

# The functions that torch's optimizers call. Not rprop: in a graph, torch 2.13 gives it zeros for the gradient of an
# embedding.
FUNCTIONS = frozenset(
    "sgd adam adadelta adagrad adamax asgd nadam radam rmsprop adafactor muon".split()  # noqa: SIM905
)
BRANCH_ON_VALUES = ("radam", "asgd")  # unless they are told to be capturable
# What eager code computes on a GPU alone, with a learning rate that is a tensor: the first by one kernel for all
# parameters, the others by a few. Each of the rest reads a tensor on the host.
FUSED = frozenset(("sgd", "adam", "adagrad"))
CAPTURABLE = FUSED | {"adadelta", "adamax", "asgd", "nadam", "radam", "rmsprop"}


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
        fused = self.options.get("fused", False)
        taken, narrow = [], []
        for entries in self.state:
            mine = [entries[i] for i in has] if len(entries) == len(self.places) else list(entries)
            # Step counts are float32 tensors that eager code reads as Python floats: 1 - beta**step needs the digits.
            # Fused kernels see to it themselves.
            if not fused and _are_counts(mine):
                wide = [entry.double() for entry in mine]
                narrow.append((mine, wide))
                mine = wide
            taken.append(mine)
        own = lr[self.group].float() if fused else lr[self.group]  # their kernels read it as float32
        options = {**self.options, "lr": own} if self.takes_lr else self.options
        places = [self.places[i] for i in has]
        held = [_laid_as(parameters[p], gradients[p]) if fused else gradients[p] for p in places]
        self.function([parameters[p] for p in places], held, *taken, **options)
        for mine, wide in narrow:
            for entry, value in zip(mine, wide, strict=True):
                entry.copy_(value)


def _are_counts(entries: Sequence[Any]) -> bool:
    first = entries[0] if entries else None
    return isinstance(first, Tensor) and first.dim() == 0 and first.dtype == torch.float32


def _laid_as(parameter: Tensor, gradient: Tensor | None) -> Tensor:
    """Return a gradient that lies in memory as its parameter does, which fused kernels ask for."""
    assert gradient is not None
    return gradient if gradient.stride() == parameter.stride() else torch.empty_like(parameter).copy_(gradient)


def count_on_device(optimizer: torch.optim.Optimizer) -> None:
    """Let an optimizer of torch count its steps where its parameters are, from now on, as a capturable one does.

    By themselves they count on the host, whose part in a step is no part of a recording.
    """
    if not type(optimizer).__module__.startswith("torch.optim"):
        return
    for group in optimizer.param_groups:
        if group.get("capturable") is False and not group.get("fused"):
            group["capturable"] = True
            for parameter in group["params"]:
                entries = optimizer.state.get(parameter, {})
                entries |= {k: v.to(parameter.device) for k, v in entries.items() if isinstance(v, Tensor)}
    unwarned(optimizer)


def updates_of(optimizer: torch.optim.Optimizer, *, eager: bool = False) -> list[Update] | None:
    """Return the updates that one step of an optimizer makes, or None for one whose step is not of torch's form.

    The optimizer must have taken a step before, so that its state is there. Nothing is updated. With `eager`, they are
    called as they are, not compiled, and None also stands for a step that needs the host for a number.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    place = {id(parameter): i for i, parameter in enumerate(parameters)}
    groups = [id(group) for group in optimizer.param_groups]
    updates = []
    for part in getattr(optimizer, "bound_parts", lambda: [optimizer])():
        calls = _calls(part, eager)
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
    kept = [entry for update in updates for entries in update.state for entry in entries]
    if eager and any(isinstance(entry, Tensor) and entry.device != parameters[0].device for entry in kept):
        return None
    return updates


def _calls(
    optimizer: torch.optim.Optimizer, eager: bool
) -> list[tuple[Callable[..., None], Any, dict[str, Any]]] | None:
    """Run the optimizer's step with a function in the place of its update that writes down what it is given."""
    step: Any = inspect.unwrap(type(optimizer).step)
    if not isinstance(step, types.FunctionType) or not type(optimizer).__module__.startswith("torch.optim"):
        return None
    names = FUNCTIONS & set(step.__code__.co_names)
    if len(names) != 1 or (eager and not names <= CAPTURABLE):
        return None
    (name,) = names
    calls: list[Any] = []
    changed = {"foreach": False, "fused": False, "capturable": name in BRANCH_ON_VALUES}
    if eager:
        changed = {"foreach": name not in FUSED, "fused": name in FUSED, "capturable": True}

    def record(*lists: Any, **options: Any) -> None:
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
