"""One graph for whole optimizer steps: gather, forward, loss, metrics, gradients, clipping and update, k steps a call.

Nothing of a step is left to Python: torch's compiler sees all of it at once, and writes loops for what was a hundred
small operations. The shapes are part of a graph; the learning rates and the rows are its inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fitkit.engine.batches import ArrayBatches, Batch
from fitkit.engine.step import Follower, Objective
from fitkit.engine.updates import Update

Added = tuple[Tensor, Any, list[Tensor], Any]  # what `Sums.add` takes


@dataclass
class Parts:
    """What graphs of a run are traced from."""

    model: nn.Module
    objective: Objective
    parameters: list[Tensor]
    updates: list[Update]
    clip_norm: float | None
    followers: Sequence[Follower] = ()
    forward: Callable[..., Any] | None = None  # in the place of the objective's own, where that is compiled


def steps_on_rows(parts: Parts, batches: ArrayBatches, rows: Tensor, lrs: Tensor) -> Added:
    """Take k steps on the samples with these rows, equally many a step: rows (k * n,), lrs (k, groups) in float64."""
    added = []
    for own, lr in zip(torch.split(rows, len(rows) // len(lrs)), lrs.unbind(), strict=True):
        added.append(_step(parts, [batches.gather(part) for part in torch.split(own, batches.batch_size)], lr))
    return _sum(added)


def step_on_batches(parts: Parts, window: Sequence[Batch], lrs: Tensor) -> Added:
    """Take one step on a window of batches: lrs (1, groups) in float64."""
    return _step(parts, window, lrs[0])


def _step(parts: Parts, window: Sequence[Batch], lr: Tensor) -> Added:
    """Do what `TrainStep` does, in functions of tensors; the window counts as one large batch."""
    whole, nominal = len(window) == 1, len(window[0][0])
    added: list[Added] = []
    gradients: list[Tensor | None] | None = None
    forward = parts.forward or parts.objective.forward
    for x, y in window:
        total, count, statistics, samples = forward(parts.model, x, y, True)
        scale = _inverse(count if whole else nominal, total)
        new = torch.autograd.grad(total, parts.parameters, scale, allow_unused=True)
        gradients = list(new) if gradients is None else _plus(gradients, new)
        added.append((total.detach().double(), count, statistics, samples))
    result = _sum(added)
    assert gradients is not None
    known = {place for update in parts.updates for place in update.places}
    if any(gradient is not None and place not in known for place, gradient in enumerate(gradients)):
        raise RuntimeError("a parameter has its first gradient, and the optimizer nothing yet for it")
    with torch.no_grad():
        if not whole:
            gradients = _times(gradients, nominal * _inverse(result[1], total))
        if parts.clip_norm is not None:
            norms = torch.stack([torch.linalg.vector_norm(g) for g in gradients if g is not None])
            gradients = _times(gradients, (parts.clip_norm / (torch.linalg.vector_norm(norms) + 1e-6)).clamp(max=1.0))
        for update in parts.updates:
            update(parts.parameters, gradients, lr)
        for follower in parts.followers:
            follower.after_update()
    return result


def _inverse(count: Any, total: Tensor) -> Tensor:
    if isinstance(count, Tensor):
        wide = count.to(total)
        return torch.where(wide > 0, 1 / wide, 0)
    return torch.full((), 1 / count if count else 0.0, dtype=total.dtype, device=total.device)


def _sum(added: Sequence[Added]) -> Added:
    (total, count, statistics, samples), *rest = added
    for more in rest:
        total, count, samples = total + more[0], count + more[1], samples + more[3]
        statistics = [a + b for a, b in zip(statistics, more[2], strict=True)]
    return total, count, statistics, samples


def _plus(left: Sequence[Tensor | None], right: Sequence[Tensor | None]) -> list[Tensor | None]:
    return [b if a is None else a if b is None else a + b for a, b in zip(left, right, strict=True)]


def _times(gradients: Sequence[Tensor | None], factor: Tensor) -> list[Tensor | None]:
    return [None if g is None else g * factor.to(g.dtype) for g in gradients]
