"""Whether what a checkpoint says can be put into a run: looked at as a whole before anything of the run is changed."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fitkit.errors import listing, show

Group = Mapping[str, Tensor]
SCALARS: Any = type(None) | bool | int | float | str
TINY = (2, 3, 5, 7, 11, 13, 17)  # sides of a parameter on which an optimizer is tried: no two are alike
MOST = 2**53  # of a count: a float holds no larger one exactly


def refuse_misfit(trainer: Any, counters: Iterable[str], state: Mapping[str, Any], groups: Mapping[str, Group]) -> None:
    """Raise ValueError unless state and tensors are of the kinds and sizes that `trainer`, just built, has itself.

    Numbers need not be finite in tensors: training itself ends when its loss is not.
    """
    own = trainer.model.state_dict()
    _refuse_tensors("model", own, groups["model"])
    _right("", state["refused"], "refused")
    if _right(False, state["has_best"], "has_best"):
        _refuse_tensors("best", own, groups["best"])
    for name in counters:
        value = _right(getattr(trainer, name), state["counters"][name], name)
        least = {"best_value": -math.inf, "micro_batch": 1}.get(name, 0)
        if value is not None and (value < least or (name == "micro_batch" and value != int(value))):
            raise ValueError(f"{name} is {show(value)}")
    _refuse_optimizer(trainer.optimizer, groups["optimizer"], state["optimizer"])
    if trainer.scaler is not None and state["scaler"] is not None:
        _right(trainer.scaler.state_dict(), state["scaler"], "scaler")
    kept = [callback for callback in trainer.callbacks if not callback.only_shows]
    for callback, (name, memory) in zip(kept, state["callbacks"], strict=True):
        _right(callback.state_dict(), memory, name, ours=type(callback).__module__.startswith("fitkit."))
    _right("", state["stopped"], "stopped")
    if not {"loss", "count", "samples"} <= set(groups["sums"]) or any(t.ndim > 2 for t in groups["sums"].values()):
        raise ValueError(f"its sums of the epoch are {listing(map(show, groups['sums']))}")


def _refuse_tensors(group: str, own: Group, given: Group) -> None:
    wrong = sorted(own.keys() ^ given.keys())
    wrong = wrong or [n for n, t in own.items() if t.shape != given[n].shape or t.dtype is not given[n].dtype]
    if wrong:
        raise ValueError(f"its tensors of the {group} differ in {listing(map(show, wrong), 6)}")


def _right(own: Any, given: Any, what: str, ours: bool = True) -> Any:
    """Return `given` if it is of the kind of `own`: numbers for a number, a list for a list, the same keys.

    What is None now may have been a number then. What is not `ours`, but a callback's of the user, may have been any
    one value, and a whole number may have become a float.
    """
    if own is None and ours:
        right = given is None or _right(0.0 if isinstance(given, float) else 0, given, what) is given
    elif own is None or given is None:
        right = not ours and (own is None or isinstance(own, SCALARS))
    elif isinstance(own, bool) or isinstance(given, bool):
        right = isinstance(own, bool) and isinstance(given, bool)
    elif isinstance(own, int | float | Tensor):
        if ours and isinstance(own, int):
            right = isinstance(given, int) and abs(given) <= MOST
        else:
            right = isinstance(given, int | float) and math.isfinite(given)
    elif isinstance(own, Mapping):
        right = isinstance(given, Mapping) and own.keys() == given.keys()
    else:
        right = isinstance(given, list if isinstance(own, list | tuple) else type(own))
    if not right:
        raise ValueError(f"{what} is {show(given)}")
    if isinstance(own, Mapping):
        for key, value in own.items():
            _right(value, given[key], f"{what}.{key}", ours)
    return given


def is_known(optimizer: Optimizer) -> bool:
    """Tell whether an optimizer is torch's or fitkit's, which change no argument of theirs but lr during a run."""
    return type(optimizer).__module__.partition(".")[0] in ("torch", "fitkit")


def _refuse_optimizer(optimizer: Optimizer, tensors: Group, options: Mapping[str, Any]) -> None:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    given: dict[int, dict[str, Any]] = {}
    for key, value in {**tensors, **options["values"]}.items():
        given.setdefault(_index(key, len(parameters)), {})[key.partition(".")[2]] = value
        if not isinstance(value, Tensor | SCALARS):
            raise ValueError(f"the optimizer's {show(key)} is {show(value)}")
    if is_known(
        optimizer
    ):  # a fused step takes a state of another size for one of the right size, and writes beyond it
        kept = _kept(optimizer, parameters)
        for index, entries in given.items():
            _refuse_entries(kept[index], entries, parameters[index], f"optimizer's state of parameter {index}")
    own = optimizer.state_dict()["param_groups"]
    for i, (mine, theirs) in enumerate(zip(own, options["groups"], strict=True)):
        mine = {key: value for key, value in mine.items() if key != "param_names"}
        _right(mine, theirs, f"optimizer.groups[{i}]", ours=False)  # they may have been changed since
        if "lr" in mine and not isinstance(mine["lr"], Tensor):
            _right(float(mine["lr"]), theirs["lr"], "lr")
        if mine["params"] != theirs["params"]:
            raise ValueError("its optimizer had other parameters")


def _index(key: str, count: int) -> int:
    index = key.partition(".")[0]
    if not (index.isascii() and index.isdigit() and len(index) < 10 and int(index) < count):
        raise ValueError(f"the optimizer has no parameter {show(key)}")
    return int(index)


def _kept(optimizer: Optimizer, parameters: Sequence[Tensor]) -> list[Mapping[str, Any]]:
    """Return what an optimizer keeps of each parameter, by a step of a copy of it on tiny parameters."""
    if optimizer.state:  # Adagrad's is there from the beginning
        return [optimizer.state[parameter] for parameter in parameters]
    tiny = [nn.Parameter(torch.zeros(TINY[: p.ndim], dtype=p.dtype)) for p in parameters]
    for parameter in tiny:
        parameter.grad = torch.zeros_like(parameter)
    twin = copy.deepcopy(optimizer, {id(real): small for real, small in zip(parameters, tiny, strict=True)})
    twin.step()
    return [twin.state[parameter] for parameter in tiny]


def _refuse_entries(kept: Mapping[str, Any], given: Mapping[str, Any], parameter: Tensor, what: str) -> None:
    if kept.keys() != given.keys():
        raise ValueError(f"the {what} holds {listing(map(show, given))}, not {listing(map(show, kept))}")
    for name, own in kept.items():
        value = given[name]
        if isinstance(own, Tensor) is not isinstance(value, Tensor):
            raise ValueError(f"the {what} has {show(name)} {show(value)}")
        if not isinstance(own, Tensor):
            _right(own, value, f"{what}: {name}")
        elif value.dtype is not own.dtype or tuple(value.shape) != _scaled(own, parameter):
            raise ValueError(f"the {what} has {show(name)} of shape {tuple(value.shape)} and {value.dtype}")


def _scaled(kept: Tensor, parameter: Tensor) -> tuple[int, ...]:
    """Return the shape that a tensor kept of a tiny parameter has for the real one."""
    if kept.ndim != parameter.ndim:
        return tuple(kept.shape)
    sides = zip(kept.shape, TINY, parameter.shape, strict=False)
    return tuple(real if side == tiny else side for side, tiny, real in sides)
