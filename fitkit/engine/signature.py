"""What of data, model and optimizer a graph is made from: where that changes, a graph holds no longer."""

from __future__ import annotations

import hashlib
import itertools
from typing import Any

from torch import Tensor, nn

from fitkit.engine.batches import ArrayBatches
from fitkit.engine.layout import order
from fitkit.engine.step import TrainStep

PLAIN = (bool, int, float, complex, str, bytes, type(None))
BARE = nn.Module()  # with the attributes that every module has


def signature(step: TrainStep, batches: Any, *, attributes: bool) -> str:
    """Return a digest of what shapes a graph: modes, what is frozen, shapes, dtypes and strides, options.

    With `attributes`, also modules' classes and their own plain values, such as dropout's p, which code may change.
    """
    model, state = step.model, step.optimizer.state
    said: list[Any] = [[module.training for module in model.modules()]]
    if isinstance(batches, ArrayBatches):
        arrays = batches.x, batches.y, batches.starts, batches.span
        said += [None if a is None else (a.shape, a.dtype, a.stride()) for a in arrays]
        said.append(batches.tokens)
    else:
        said += [(a.dtype, a.stride()) for pair in batches for a in pair]
    transform = step.objective.transform
    for tensor in itertools.chain(model.parameters(), model.buffers(), transform.buffers() if transform else ()):
        kept = state.get(tensor, {})
        entries = [(k, v.shape, v.dtype, order(v)) if isinstance(v, Tensor) else (k, v) for k, v in kept.items()]
        said.append((tensor.requires_grad, tensor.shape, tensor.dtype, tensor.stride(), entries))
    said += [[(k, v) for k, v in g.items() if k not in ("params", "lr")] for g in step.optimizer.param_groups]
    for follower in step.followers:
        said += [(name, t.shape, t.dtype, t.stride()) for name, t in follower.tensors().items()]
        said += [(type(follower), plain(follower))] if attributes else []
    if attributes:
        said += [(type(module), plain(module)) for module in model.modules()]
    return hashlib.sha256(repr(said).encode()).hexdigest()


def plain(module: object) -> dict[str, Any]:
    """Return a module's or callback's own attributes that are numbers, texts, or copies of lists and dicts of them."""
    return {
        name: value.copy() if isinstance(value, list | dict | set) else value
        for name, value in vars(module).items()
        if name not in vars(BARE)
        and (isinstance(value, PLAIN) or (isinstance(value, list | tuple | set | dict) and _holds_plain(value)))
    }


def _holds_plain(values: Any) -> bool:
    return all(isinstance(v, PLAIN) for v in (values.values() if isinstance(values, dict) else values))
