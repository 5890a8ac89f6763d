"""The private corners of torch that fitkit uses: each is probed, and has a public way to fall back on."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import optimizer as _module


def tell_deaths_when_asked(iterator: Any) -> None:
    """Let torch tell that a worker of a loader died where the next batch is asked for, some seconds later.

    By itself it raises at once, in a signal handler: in the middle of a step, or where Python ignores errors. Where
    this is not found, that stays.
    """
    forget = getattr(torch._C, "_remove_worker_pids", None)
    if forget is not None and getattr(iterator, "_worker_pids_set", False):
        forget(id(iterator))
        iterator._worker_pids_set = False


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
