"""Whole steps as CUDA graphs: what a GPU does in one call is recorded once, and played again for every batch.

capture   static inputs, warm-up on a side stream, recording; then everything is put back as it was
call      rows and learning rates go into the static inputs, the recording is played, its sums are the result

A recording holds addresses and kernels, nothing of Python: what Python decides in a step is decided for good. So steps
that draw from the host's generators, change a module's own attributes or call hooks are refused, and `holds` compares
addresses and attributes. What dropout draws follows the generator's seed at the time of the call, as in eager steps.
"""

from __future__ import annotations

import contextlib
import itertools
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fitkit.engine.batches import ArrayBatches
from fitkit.engine.graph import Added, Parts
from fitkit.engine.private import Graph, NoGraph, free_generator, hooked_modules
from fitkit.engine.seeds import host_random_state, kept_random_state
from fitkit.engine.signature import plain

WARM_UP = 3  # runs before a recording, as torch's notes on CUDA graphs ask for: libraries set themselves up in them
Call = Callable[[], Added]


def capture(function: Callable[..., Added], parts: Parts, batches: ArrayBatches, rows: Tensor, lrs: Tensor) -> Graph:
    """Record `function(parts, batches, rows, lrs)` for rows (k * n,) and learning rates (k, groups) of these shapes.

    Nothing is trained: weights, buffers, optimizer state, modules' attributes and generators are left as they are. The
    graph takes `lrs` on the CPU. What a call returns is overwritten by the next. Raises NoGraph, with everything as it
    was, when the function cannot be recorded.
    """
    if hooked_modules(parts.model):
        raise NoGraph("hooks on modules would not be called")
    inputs = _Inputs(rows, lrs)
    changes = _Changes(parts)

    def run() -> Added:
        return changes.watch(lambda: function(parts, batches, inputs.rows, inputs.lrs))

    # Compiled code keeps no copies either, and would be compiled again for the other setting.
    cache = contextlib.nullcontext() if parts.forward else _uncached_autocast()
    try:
        with _put_back(parts), cache, kept_random_state():
            play = record(run, rows.device)
    except Exception as error:  # whatever a recording trips over is a reason to go on without it
        raise NoGraph(_cause(error)) from error
    if changes.found:
        raise NoGraph("the model's own code draws random numbers on the host, or changes its attributes, in each step")
    held = [tensor.detach() for tensor in _held(parts, batches)]  # so that no one else gets their memory meanwhile
    attributes = _attributes(parts)

    def call(parts: Parts, batches: ArrayBatches, rows: Tensor, lrs: Tensor) -> Added:
        inputs.set(rows, lrs)
        return play()

    def holds(parts: Parts, batches: ArrayBatches, rows: Tensor, lrs: Tensor) -> bool:
        same = rows.shape == inputs.rows.shape and lrs.shape == inputs.lrs.shape and not hooked_modules(parts.model)
        return same and _places(_held(parts, batches)) == _places(held) and _attributes(parts) == attributes

    return Graph(call, holds, _refuse_save)


def record(run: Call, device: torch.device) -> Call:
    """Run a function some times, then record what a GPU does in it; return what plays that again."""
    graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    with torch.cuda.device(device):
        main = torch.cuda.current_stream(device)
        side.wait_stream(main)
        try:
            # One stream for both: some libraries keep what they have set up for each stream. Around torch's own
            # context for it, which leaves it current where a recording fails.
            with torch.random.fork_rng([device]), torch.cuda.stream(side):
                for _ in range(WARM_UP):
                    run()
                with torch.cuda.graph(graph, stream=side):
                    results = run()
        except BaseException:
            free_generator(device)
            raise
        finally:
            main.wait_stream(side)

    def play() -> Added:
        graph.replay()
        return results

    return play


class _Inputs:
    """The memory that a recording reads rows and learning rates from."""

    def __init__(self, rows: Tensor, lrs: Tensor) -> None:
        self.rows, self.lrs = rows.clone(), lrs.to(rows.device)
        self.places = list(self.lrs.view(-1).unbind())
        self.known: list[float] = lrs.flatten().tolist()

    def set(self, rows: Tensor, lrs: Tensor) -> None:
        """Take other values; the numbers travel as arguments of a kernel, for which nothing waits."""
        self.rows.copy_(rows)
        for i, lr in enumerate(lrs.flatten().tolist()):
            if lr != self.known[i]:
                self.places[i].fill_(lr)
                self.known[i] = lr


class _Changes:
    """Finds out whether the last run of a step did anything on the host that a recording would not do again."""

    def __init__(self, parts: Parts) -> None:
        self.parts, self.found = parts, False

    def watch(self, run: Call) -> Added:
        """Run a step."""
        before = host_random_state(), _attributes(self.parts)
        results = run()
        self.found = (host_random_state(), _attributes(self.parts)) != before
        return results


@contextlib.contextmanager
def _put_back(parts: Parts) -> Iterator[None]:
    """Put back what steps change: tensors in place, and modules' own attributes."""
    state = [entry for update in parts.updates for entries in update.state for entry in entries]
    every = *parts.parameters, *parts.model.buffers(), *state, *_tensors_of_followers(parts)
    changed = [tensor for tensor in every if isinstance(tensor, Tensor) and _is_dense(tensor)]
    copies = [t.detach().clone() for t in changed]
    attributes = [(vars(module), plain(module)) for module in _modules(parts)]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, copy in zip(changed, copies, strict=True):
                tensor.copy_(copy)
        for own, before in attributes:
            own.update({name: value for name, value in before.items() if own.get(name) != value})


@contextlib.contextmanager
def _uncached_autocast() -> Iterator[None]:
    """Let autocast keep no copies of weights: one from before a recording would be read in every later step."""
    was = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(was)


def _held(parts: Parts, batches: ArrayBatches) -> list[Tensor]:
    """Return everything that a step reads or writes, but its inputs."""
    modules = [module for module in (parts.model, parts.objective.transform) if module is not None]
    every: Iterable[Any] = itertools.chain(
        parts.parameters,
        *(itertools.chain(module.parameters(), module.buffers()) for module in modules),
        *(entries for update in parts.updates for entries in update.state),
        _tensors_of_followers(parts),
        (batches.x, batches.y, batches.starts, batches.span, batches.augment and batches.augment.key),
    )
    return [tensor for tensor in every if isinstance(tensor, Tensor)]


def _tensors_of_followers(parts: Parts) -> list[Tensor]:
    return [tensor for follower in parts.followers for tensor in follower.tensors().values()]


def _places(tensors: Iterable[Tensor]) -> list[int]:
    return [tensor.data_ptr() for tensor in tensors]


def _attributes(parts: Parts) -> list[dict[str, Any]]:
    return [plain(module) for module in _modules(parts)]


def _modules(parts: Parts) -> Iterator[nn.Module]:
    for module in (parts.model, parts.objective.transform):
        if module is not None:
            yield from module.modules()


def _is_dense(tensor: Tensor) -> bool:
    """Tell whether no two elements share their memory: what is expanded cannot be written to, by a step or by us."""
    return all(stride or size < 2 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def _cause(error: BaseException) -> str:
    """Return what went wrong, and where, in one line; after an error in a recording its end fails too."""
    if error.__context__ is not None and "previous error during capture" in str(error):
        error = error.__context__
    said = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    frames: Sequence[Any] = traceback.extract_tb(error.__traceback__)
    places = [f for f in frames if "/torch/" not in f.filename and "/fitkit/engine/" not in f.filename]
    return said + (f" ({places[-1].filename}:{places[-1].lineno})" if places else "")


def _refuse_save(path: str) -> None:
    raise NotImplementedError("a recording lives in its process")
