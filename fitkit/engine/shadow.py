"""Eager steps beside the first call of a graph: a compiler that makes another step of it is found out before it trains.

Two copies of model and optimizer take the steps of the call eagerly, one of them on the rows of each batch in another
order. How far these two end from each other is what rounding explains; a graph has to end as near.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fitkit.engine.batches import Batch
from fitkit.engine.private import hooked_modules, unwarned
from fitkit.engine.seeds import kept_random_state, random_state, seed_step
from fitkit.engine.step import Rates, Sums, TrainStep
from fitkit.errors import show

MOST_BYTES = 1 << 28  # of what is copied, twice
# Compiled loops sum in other orders than eager ones, and keep more digits between operations in bf16 (2 % in Muon).
TIMES_NOISE, OF_CHANGE, ROUNDINGS = 100.0, 0.1, 16
# With dropout a graph draws masks of its own, as the other copy does then: only what is grossly wrong shows, in weights
# that are many. In 990 weights of 150 small nets, a third draw was at most 1.9 times as far off as the second.
TIMES_DRAWN, OF_CHANGE_DRAWN, ENOUGH = 4.0, 0.3, 256


class Shadow:
    """Copies of a step's model and optimizer as they are before a graph is called."""

    def __init__(self, step: TrainStep) -> None:
        self.step = step
        self.before = [tensor.clone() for tensor in _tensors(step.model)]
        self.twins = [_twin(step), _twin(step)]
        self.sums = Sums(step.objective.metrics, step.device)

    def differs(self, windows: Sequence[Sequence[Batch]], number: int, rates: Rates) -> str:
        """Take the steps of the call on the copies; return what the graph has made another of, or nothing."""
        eager, other = self.twins
        device = self.step.device
        with kept_random_state():
            for ahead, window in enumerate(windows):
                eager(window, self.sums, number + ahead, later(rates, ahead))
            drawn = random_state(device)
            seed_step(device, self.step.seed, number + len(windows) - 1)
            draws = not torch.equal(drawn, random_state(device))
            other.seed += draws
            unused = Sums(self.step.objective.metrics, device)
            for ahead, window in enumerate(windows):
                other([_mixed(batch) for batch in window], unused, number + ahead, later(rates, ahead))
        names = itertools.chain(dict(self.step.model.named_parameters()), dict(self.step.model.named_buffers()))
        ends = zip(names, self.before, *(_tensors(x.model) for x in (self.step, eager, other)), strict=True)
        wrong = [(name, off) for name, *tensors in ends if (off := _off(*tensors, draws=draws))]
        if not wrong:
            return ""
        name, off = max(wrong, key=lambda pair: pair[1])
        return f"torch compiled another step than the eager one: {show(name)} is off by {off:.0%} of its change"

    def put_back(self) -> None:
        """Leave model and optimizer where the eager steps have taken them."""
        eager = self.twins[0]
        with torch.no_grad():
            for mine, its in zip(_tensors(self.step.model), _tensors(eager.model), strict=True):
                mine.copy_(its)
            for mine, its in zip(self.step.parameters, eager.parameters, strict=True):
                state = self.step.optimizer.state[mine]
                for key, value in eager.optimizer.state[its].items():
                    if isinstance(value, Tensor):
                        state[key].copy_(value)
                    else:
                        state[key] = value

    @property
    def added(self) -> tuple[Tensor, Any, list[Tensor], Any]:
        """What the eager steps add to the sums of an epoch."""
        return self.sums.loss, self.sums.count, self.sums.totals, self.sums.samples


def shadow_of(step: TrainStep) -> Shadow | None:
    """Return copies to check a graph by; None where they would be large, or a copy would call code of the user's."""
    state = [value for kept in step.optimizer.state.values() for value in kept.values() if isinstance(value, Tensor)]
    if sum(tensor.numel() * tensor.element_size() for tensor in (*_tensors(step.model), *state)) > MOST_BYTES:
        return None
    if hooked_modules(step.model):
        return None
    try:
        return Shadow(step)
    except Exception:  # a module of the user's own that cannot be copied
        return None


def later(rates: Rates, ahead: int) -> Rates:
    """Return the learning rates as they are counted from a step that is `ahead`."""
    return lambda more: rates(ahead + more)


def _twin(step: TrainStep) -> TrainStep:
    model, optimizer = copy.deepcopy((step.model, step.optimizer))
    unwarned(optimizer)  # which a copy forgets
    return TrainStep(
        model, step.objective, optimizer, seed=step.seed, accumulate=step.accumulate, clip_norm=step.clip_norm
    )


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    return itertools.chain((p.detach() for p in model.parameters()), model.buffers())


def _mixed(batch: Batch) -> Batch:
    x, y = batch
    order = torch.arange(len(x) - 1, -1, -1, device=x.device)
    return x.index_select(0, order), y.index_select(0, order)


def _off(before: Tensor, graph: Tensor, eager: Tensor, other: Tensor, *, draws: bool) -> float:
    """Return how far the graph is from the eager steps, in parts of what they change; 0 where rounding explains it."""
    if not before.is_floating_point() or (draws and before.numel() < ENOUGH):
        return 0.0
    change, noise, off = (float((x.double() - eager).norm()) for x in (before, other, graph))
    rounding = ROUNDINGS * torch.finfo(before.dtype).eps * float(eager.double().norm())
    times, part = (TIMES_DRAWN, OF_CHANGE_DRAWN) if draws else (TIMES_NOISE, OF_CHANGE)
    most = times * noise + part * change + rounding
    return off / (change + rounding) if off > most or (off != off and most == most) else 0.0
