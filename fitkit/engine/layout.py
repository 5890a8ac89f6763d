"""How images lie in memory during a fit: the channels of a pixel side by side, as convolutions read them fastest.

A convolution gives its output in the order of its weight, and what follows keeps that order, so the weights alone
decide. Torch's contiguous order costs a reordering before and after each convolution.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
from collections.abc import Iterator

import torch
from torch import Tensor, nn

FORMATS = {  # by dimensions of the weight
    nn.Conv2d: torch.channels_last,
    nn.ConvTranspose2d: torch.channels_last,
    nn.Conv3d: torch.channels_last_3d,
    nn.ConvTranspose3d: torch.channels_last_3d,
}


@contextlib.contextmanager
def channels_last(
    model: nn.Module, optimizer: torch.optim.Optimizer, precision: torch.dtype | None = None, *, declared: bool = True
) -> Iterator[None]:
    """Hold the weights of convolutions in channels_last, then put them back into the memory in which they were.

    Only of a `declared` model, in which nobody's own code asks for another order (`x.view` does) or shares memory with
    a weight. What the optimizer keeps of a weight lies in the same order. Only float32 is held so: on a CPU with
    oneDNN's kernels, on a GPU where autocast (`precision`) computes in 16 bits, on tensor cores.
    """
    changed = [(weight, weight.data, format) for weight, format in _weights(model, precision)] if declared else []
    for weight, before, format in changed:
        weight.data = before.clone(memory_format=format)
    align_state(optimizer)
    try:
        yield
    finally:
        for weight, before, _ in changed:
            before.copy_(weight.data)
            weight.data = before
        align_state(optimizer)


def _weights(model: nn.Module, precision: torch.dtype | None) -> Iterator[tuple[nn.Parameter, torch.memory_format]]:
    places = collections.Counter(t.data_ptr() for t in itertools.chain(model.parameters(), model.buffers()))
    seen = set()
    for module in model.modules():
        format = next((format for kind, format in FORMATS.items() if isinstance(module, kind)), None)
        weight = module._parameters.get("weight")  # a parametrized module computes its own anew each time
        if format is None or weight is None or weight in seen:
            continue
        seen.add(weight)
        alone = places[weight.data_ptr()] == 1 and weight.untyped_storage().nbytes() == weight.nbytes
        if weight.is_contiguous() and alone and _gains(weight, precision):
            yield weight, format


def _gains(weight: Tensor, precision: torch.dtype | None) -> bool:
    if weight.device.type == "cpu":
        return weight.dtype is torch.float32 and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return weight.device.type == "cuda" and weight.dtype is torch.float32 and precision is not None


def align_state(optimizer: torch.optim.Optimizer) -> None:
    """Give what an optimizer keeps of a parameter, in its shape, the parameter's order too.

    Fused updates read parameter, gradient and state as they lie in memory: in two orders, they would mix up weights.
    """
    for parameter, kept in optimizer.state.items():
        if not isinstance(parameter, Tensor) or not isinstance(kept, dict):  # of an optimizer of the user's own
            continue
        for name, value in kept.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and order(value) != order(parameter):
                kept[name] = torch.empty_like(parameter, dtype=value.dtype, device=value.device).copy_(value)


def order(tensor: Tensor) -> list[int]:
    """Return the strides that say where the numbers of a tensor lie: not those of sides of length 1."""
    return [stride for stride, side in zip(tensor.stride(), tensor.shape, strict=True) if side != 1]
