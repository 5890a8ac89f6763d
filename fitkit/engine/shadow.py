"""Eager steps beside the first call of a graph: a compiler that makes another step of it is found out before it trains.

Two copies of model, optimizer and averages take the steps of the call eagerly, one of them on the rows of each batch in
another order. How far these two end from each other is what rounding explains; a graph has to end as near.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fitkit.engine.batches import Batch
from fitkit.engine.graph import Added
from fitkit.engine.private import hooked_modules, unwarned
from fitkit.engine.seeds import kept_random_state, random_state, seed_step
from fitkit.engine.step import Rates, Sums, TrainStep
from fitkit.errors import show

MOST_BYTES = 1 << 28  # of what is copied, twice
FEWEST_ROWS = 8  # of a batch: with fewer, another order of them tells little of what rounding does
# Compiled loops sum in other orders than eager ones, and keep more digits between operations in bf16 (2 % in Muon).
TIMES_NOISE, OF_CHANGE, ROUNDINGS = 100.0, 0.1, 16
OF_SUM = 1e-3


class Shadow:
    """Copies of a step's model, optimizer and followers as they are before a graph is called."""

    def __init__(self, step: TrainStep) -> None:
        self.step = step
        self.before = [tensor.clone() for tensor in _tensors(step).values()]
        self.twins = [_twin(step), _twin(step)]
        self.sums = Sums(step.objective.metrics, step.device)

    def differs(self, added: Added, windows: Sequence[Sequence[Batch]], number: int, rates: Rates) -> str:
        """Take the steps of the call on the copies; return what the graph has made another of, or nothing.

        `added` is what the graph adds to the sums. Nothing is known of steps that draw random numbers, which a graph
        draws anew.
        """
        eager, other = self.twins
        device = self.step.device
        with kept_random_state():
            for ahead, window in enumerate(windows):
                eager(window, self.sums, number + ahead, later(rates, ahead))
            drawn = random_state(device)
            seed_step(device, self.step.seed, number + len(windows) - 1)
            if not torch.equal(drawn, random_state(device)):
                return ""
            unused = Sums(self.step.objective.metrics, device)
            for ahead, window in enumerate(windows):
                other([_mixed(batch) for batch in window], unused, number + ahead, later(rates, ahead))
        after = (_tensors(step).values() for step in (self.step, eager, other))
        ends = zip(_tensors(self.step), self.before, *after, strict=True)
        wrong = [(name, off) for name, *tensors in ends if (off := _off(*tensors))]
        if not wrong:
            mine, right = float(added[0]), float(self.sums.loss)
            false = math.isfinite(right) and not abs(mine - right) <= OF_SUM * max(abs(right), 1.0)
            return f"torch compiled another step than the eager one: its loss is {mine:g}, not {right:g}" * false
        name, off = max(wrong, key=lambda pair: pair[1])
        return f"torch compiled another step than the eager one: {show(name)} is off by {off:.0%} of its change"

    def put_back(self) -> None:
        """Leave model and optimizer where the eager steps have taken them."""
        eager = self.twins[0]
        with torch.no_grad():
            for mine, its in zip(_tensors(self.step).values(), _tensors(eager).values(), strict=True):
                mine.copy_(its)
            for mine, its in zip(self.step.parameters, eager.parameters, strict=True):
                state = self.step.optimizer.state[mine]
                for key, value in eager.optimizer.state[its].items():
                    if isinstance(value, Tensor):
                        state[key].copy_(value)
                    else:
                        state[key] = value

    @property
    def added(self) -> Added:
        """What the eager steps add to the sums of an epoch."""
        return self.sums.loss, self.sums.count, self.sums.totals, self.sums.samples


def shadow_of(step: TrainStep, rows: int) -> Shadow | None:
    """Return copies to check a graph by, for batches of so many rows.

    None where they would be large, where a copy would call hooks, or where rounding does as it likes: in small batches,
    and under autocast, whose few digits leave nothing of a gradient that is small.
    """
    if rows < FEWEST_ROWS or step.objective.precision is not None:
        return None
    state = [value for kept in step.optimizer.state.values() for value in kept.values() if isinstance(value, Tensor)]
    if sum(tensor.numel() * tensor.element_size() for tensor in (*_tensors(step).values(), *state)) > MOST_BYTES:
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
    model, optimizer, followers = copy.deepcopy((step.model, step.optimizer, step.followers))
    unwarned(optimizer)  # which a copy forgets
    return TrainStep(
        model,
        step.objective,
        optimizer,
        seed=step.seed,
        accumulate=step.accumulate,
        clip_norm=step.clip_norm,
        followers=followers,
    )


def _tensors(step: TrainStep) -> dict[str, Tensor]:
    """Return what a step changes, by name, but for the optimizer's state."""
    tensors = {name: parameter.detach() for name, parameter in step.model.named_parameters()}
    tensors |= dict(step.model.named_buffers())
    for follower in step.followers:
        tensors |= {f"{type(follower).__name__} of {name}": tensor for name, tensor in follower.tensors().items()}
    return tensors


def _mixed(batch: Batch) -> Batch:
    x, y = batch
    order = torch.arange(len(x) - 1, -1, -1, device=x.device)
    return x.index_select(0, order), y.index_select(0, order)


def _off(before: Tensor, graph: Tensor, eager: Tensor, other: Tensor) -> float:
    """Return how far the graph is from the eager steps, in parts of what they change; 0 where rounding explains it."""
    if not before.is_floating_point():
        return float(not torch.equal(graph, eager))
    change, noise, off = (float((x.double() - eager).norm()) for x in (before, other, graph))
    rounding = ROUNDINGS * torch.finfo(before.dtype).eps * float(eager.double().norm())
    most = TIMES_NOISE * noise + OF_CHANGE * change + rounding
    return off / (change + rounding) if off > most or (off != off and most == most) else 0.0
