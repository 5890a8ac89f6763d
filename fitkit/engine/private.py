"""The private corners of torch that fitkit uses: each is probed, and has a public way to fall back on."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import optimizer as _module


def bare_step(optimizer: torch.optim.Optimizer) -> Callable[[], Any]:
    """Return the optimizer's step without torch's profiling wrapper around it, which costs a third of a small step.

    The wrapper also runs hooks: where any are registered, or where it is not found, this is `optimizer.step` itself.
    """
    wrapped = getattr(type(optimizer).step, "__wrapped__", None)
    hooks = [getattr(optimizer, f"_optimizer_step_{when}_hooks", None) for when in ("pre", "post")]
    hooks += [getattr(_module, f"_global_optimizer_{when}_hooks", None) for when in ("pre", "post")]
    patched = "step" in vars(optimizer)  # someone put a function of their own on this very object
    if wrapped is None or patched or any(hook is None or len(hook) for hook in hooks):
        return optimizer.step
    return functools.partial(wrapped, optimizer)
