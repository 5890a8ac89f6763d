"""Activation checkpointing: blocks of a model forget what lies inside of them, and compute it again when they need it.

Between forward and backward only the input of each block is kept, so memory grows by the block instead of by the layer,
for the time of a second forward pass. The numbers stay the same to the bit: dropout draws its masks again from the same
generator state, and running statistics of norms move in the first pass alone.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fitkit.engine.seeds import drawn_again, kept_random_state
from fitkit.errors import Fault, SpecError, TrainingError, listing, show
from fitkit.spec.options import FitOptions

FEWEST_LAYERS = 4  # of a chain that is cut: what fewer keep is little more than their ends
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
NORMS = (nn.modules.batchnorm._NormBase,)  # BatchNorm and InstanceNorm: training does not read what it writes
KEY = "fit.activation_checkpointing"


@dataclass(frozen=True)
class Block:
    """A part of a model that is computed again: a module, or a segment of the layers of a Sequential."""

    name: str
    module: nn.Module
    segment: nn.Module | None = None  # of a Sequential: the layers `name` says, as a module of their own

    @property
    def inner(self) -> nn.Module:
        """The module that is run again."""
        return self.segment or self.module


def blocks(model: nn.Module) -> list[Block]:
    """Return the blocks of a model: repeated modules, and else about √n segments of a Sequential of n layers."""
    return list(_blocks(model, "", set()))


def _blocks(module: nn.Module, path: str, seen: set[int]) -> Iterator[Block]:
    if id(module) in seen:  # a module that two others share
        return
    seen.add(id(module))
    children = {name: child for name, child in module.named_children() if any(True for _ in child.children())}
    kinds = Counter(type(child) for child in children.values())
    found: list[Block] = []
    for name, child in children.items():
        whole = kinds[type(child)] > 1 and not _holds_blocks(child)
        if not whole:
            found += _blocks(child, f"{path}{name}.", seen)
        elif id(child) not in seen:
            seen.add(id(child))
            found.append(Block(path + name, child))
    yield from found or _segments(module, path)


def _holds_blocks(module: nn.Module) -> bool:
    """Tell whether a module only puts others in a row, which have parts of their own or cannot be called as one."""
    if type(module) in (nn.ModuleList, nn.ModuleDict):
        return True
    return isinstance(module, CONTAINERS) and any(any(True for _ in child.children()) for child in module.children())


def _segments(module: nn.Module, path: str) -> Iterator[Block]:
    """Yield the segments of a Sequential whose forward pass is that of its slices, one after the other."""
    plain = type(module).forward is nn.Sequential.forward or type(module).__module__.startswith("fitkit.")
    if not isinstance(module, nn.Sequential) or not plain or len(module) < FEWEST_LAYERS:
        return
    size = math.ceil(len(module) / math.ceil(math.sqrt(len(module))))
    # A layer that writes into its input must not be the first of a segment, which keeps that input.
    cuts = [at for at in range(size, len(module), size) if not getattr(module[at], "inplace", False)]
    for begin, end in itertools.pairwise([0, *cuts, len(module)]):
        yield Block(f"{path}{begin}-{end - 1}", module, module[begin:end])


def describe(found: Sequence[Block]) -> str:
    """Say which blocks are computed again."""
    kinds = Counter(type(block.module).__name__ for block in found if block.segment is None)
    what = [f"{count} {kind}" for kind, count in kinds.items()]
    names = listing([block.name for block in found], 8)
    if segments := len(found) - kinds.total():
        what.append(f"{segments} segments of layers")
    return f"activations are computed again in the backward pass, for {listing(what)}: {names}"


def find(model: nn.Module) -> list[Block]:
    """Return the blocks of a model; SpecError where it has none."""
    found = blocks(model)
    if not found:
        message = (
            f"{type(model).__name__} has neither repeated blocks nor a Sequential of {FEWEST_LAYERS} layers or more, "
            "so nothing can be computed again. Leave it out."
        )
        raise SpecError(Fault(message, KEY))
    return found


def again(function: Callable[..., Any], block: Block, *args: Any, **kwargs: Any) -> Any:
    """Run a block so that it is computed again in the backward pass; TrainingError where that would change it."""
    if not torch.is_grad_enabled():
        return function(*args, **kwargs)
    if torch.compiler.is_compiling():  # a graph writes its buffers once, whatever it computes again
        return checkpoint(function, *args, use_reentrant=False, **kwargs)
    others = list(_other_buffers(block.inner))
    before = [(buffer, buffer._version) for _, _, buffer in others]
    drawn = drawn_again()
    contexts = lambda: (contextlib.nullcontext(), _once_more(block.inner, drawn))  # noqa: E731
    result = checkpoint(function, *args, use_reentrant=False, context_fn=contexts, **kwargs)
    for (name, owner, buffer), (_, version) in zip(others, before, strict=True):
        if buffer._version != version or owner._buffers[name.rpartition(".")[2]] is not buffer:
            raise TrainingError(
                f"{KEY}: {block.name} changes its buffer {show(name)} in training, which would happen twice. Leave "
                "activation_checkpointing out."
            )
    return result


@contextlib.contextmanager
def recomputed(model: nn.Module, options: FitOptions, run: Callable[..., Any] = again) -> Iterator[None]:
    """Run the blocks of a model by `again`, or another function, where the options ask for it.

    Their `forward` is another one meanwhile, on the modules themselves: nothing is wrapped, and no name changes.
    """
    groups: dict[int, list[Block]] = {}
    for block in find(model) if options.activation_checkpointing else []:
        groups.setdefault(id(block.module), []).append(block)
    changed: list[tuple[Any, Any]] = []
    try:
        for group in groups.values():
            module: Any = group[0].module
            changed.append((module, module.forward))
            module.forward = _forward(group, run)
        yield
    finally:
        for module, forward in changed:
            if getattr(forward, "__func__", None) is type(module).forward:
                del module.forward
            else:  # somebody's own, on this very object
                module.forward = forward


def _forward(group: Sequence[Block], run: Callable[..., Any]) -> Callable[..., Any]:
    [first, *_] = group
    if first.segment is None:
        return functools.partial(run, first.module.forward, first)

    def forward(x: Any) -> Any:
        for block in group:
            x = run(block.inner, block, x)
        return x

    return forward


def _other_buffers(module: nn.Module) -> Iterator[tuple[str, nn.Module, Tensor]]:
    for path, owner in module.named_modules():
        if not isinstance(owner, NORMS):
            for name, buffer in owner.named_buffers(f"{path}." * bool(path), recurse=False):
                yield name, owner, buffer


@contextlib.contextmanager
def _once_more(module: nn.Module, drawn: Callable[[], None]) -> Iterator[None]:
    """Run a module a second time: what it draws is the same, and its statistics do not move again."""
    with kept_random_state():  # torch's own is put back by torch
        drawn()
        with _kept(module):
            yield


@contextlib.contextmanager
def _kept(module: nn.Module) -> Iterator[None]:
    """Let the norms of a module move copies of their running statistics."""
    norms = [m for m in module.modules() if isinstance(m, NORMS) and m.training and m.track_running_stats]
    statistics = [(norm.running_mean, norm.running_var, norm.num_batches_tracked) for norm in norms]
    try:
        for norm in norms:
            norm.running_mean, norm.running_var = _copy(norm.running_mean), _copy(norm.running_var)
            norm.num_batches_tracked = _copy(norm.num_batches_tracked)
        yield
    finally:
        for norm, kept in zip(norms, statistics, strict=True):
            norm.running_mean, norm.running_var, norm.num_batches_tracked = kept


def _copy(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.clone()
