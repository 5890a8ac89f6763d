"""Training in whole steps: an epoch is cut into calls of k steps, and each call is one graph, compiled or captured.

rows of the epoch --windows--> Rows of k, k, …, 1, 1, the ragged last --call--> a graph for its shapes, or eager steps

Which rows make a call depends on the epoch alone, never on where a run was stopped, so a resumed run takes the same
calls. Seeds are set once a call, by its first step.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fitkit.engine.batches import ArrayBatches, Batch, Batches
from fitkit.engine.capture import capture
from fitkit.engine.graph import Parts, step_on_batches, steps_on_rows
from fitkit.engine.private import Graph, NoGraph, compile_graph, hooked, hooked_modules
from fitkit.engine.seeds import random_state, seed_step
from fitkit.engine.shadow import later, shadow_of
from fitkit.engine.signature import signature
from fitkit.engine.step import Metric, Rates, Sums, TrainStep
from fitkit.engine.store import Store, private_torch_cache
from fitkit.engine.tier import Tier
from fitkit.engine.updates import count_on_device, updates_of
from fitkit.spec.options import FitOptions

MOST_GRAPHS = 8


@dataclass(frozen=True)
class Rows:
    """The rows of a call (k * n,), in the order in which k steps take them; its length is the number of its batches."""

    batches: ArrayBatches
    rows: Tensor
    steps: int

    def __len__(self) -> int:
        return self.steps * -(-len(self.rows) // self.steps // self.batches.batch_size)

    def __iter__(self) -> Iterator[Sequence[Batch]]:
        """Yield the window of each step."""
        for rows in self.rows.chunk(self.steps):
            yield [self.batches.gather(part) for part in torch.split(rows, self.batches.batch_size)]


class WholeStep:
    """Steps as graphs, `tier.steps` of them a call, where torch can make one; else as `eager` takes them.

    The first step of a fit is eager, since optimizers make their state in it. A graph's first call is checked against
    eager steps on copies where these can tell, and one that computes something else is not used. Why there are no
    graphs is said once, as a warning, and `refused` holds it; then model and loss alone are compiled.

    Before epoch `tier.first` all steps are eager.

    With a `recipe`, plain values that say all that shapes the graphs, they are looked for in the user's cache first,
    and kept there; else their guards are checked once an epoch, as are those of captured ones. Where code of the user's
    `watched` each step, it may have changed the model: then all is looked at in each call. A `closed` run holds none.
    """

    def __init__(
        self, eager: TrainStep, tier: Tier, recipe: Any = None, *, watched: bool = False, closed: bool = False
    ) -> None:
        self.eager, self.tier, self.steps = eager, tier, tier.steps
        self.watched, self.closed = watched, closed
        self.foreign = watched and bool(eager.followers)  # a part of each step may be code of the user's
        self.begun, self.size = False, 0  # whether this epoch's steps are compiled; samples of a full step
        kept = recipe is not None and not tier.captured
        self.store = Store([recipe, tier.threads or torch.get_num_threads()]) if kept else None
        self.graphs: dict[Any, list[Graph]] = {}
        self.trusted: dict[Any, Graph] = {}  # whose guards held in this epoch
        self.rates: dict[int, tuple[list[Sequence[float]], Tensor]] = {}  # of the last call, by its steps
        self.proved: list[Graph] = []  # whose guards held after their own first call too
        self.still: list[Graph] = []  # that draw no random number, where nobody else does
        self.parts: Parts | None = None
        self.refused = self.signature = self.traced = ""
        self.resumed = False  # then graphs were checked before, or the run would go on as no uninterrupted one does
        self.compiling = False

    @staticmethod
    def can(options: FitOptions, device: torch.device, scaler: Any, metrics: Sequence[Metric] = ()) -> bool:
        """Tell whether whole steps can be graphs: not where the host decides in a step, as fp16 and `halve` do.

        Nor where activations are computed again, as only a graph of model and loss knows forward from backward; nor
        where a metric keeps all rows of an epoch.
        """
        if options.activation_checkpointing or scaler is not None or any(metric.keeps for metric in metrics):
            return False
        return device.type in ("cpu", "cuda") and options.out_of_memory == "stop"

    @property
    def parameters(self) -> list[Tensor]:
        """The parameters that are trained."""
        return self.eager.parameters

    @property
    def interruptible(self) -> bool:
        """Whether a signal need not wait for the end of what is done now."""
        return self.compiling or self.eager.interruptible

    def begin_epoch(self) -> None:
        """Look again at what may have changed between epochs: hooks, modes, layers that were frozen."""
        self.eager.begin_epoch()
        if not self.closed:
            self.trusted.clear()
            self.signature = ""

    def windows(self, train: Batches, epoch: int, start: int, left: int | None) -> Iterator[Rows | Sequence[Batch]]:
        """Cut an epoch from batch `start` on into calls, for at most `left` steps."""
        self.begun = epoch >= self.tier.first
        self.size = size = train.batch_size * self.eager.accumulate
        if not isinstance(train, ArrayBatches) or not self.begun:
            yield from self.eager.windows(train, epoch, start, left)
            return
        rows = train.order(self.eager.seed, epoch)
        full, every = len(rows) // size, -(-len(rows) // size)
        at = -(-start // self.eager.accumulate)  # behind the last window, which may hold fewer batches
        end = every if left is None else min(every, at + left)
        while at < end:
            steps = self.steps if at % self.steps == 0 and at + self.steps <= min(full, end) else 1
            yield Rows(train, rows[at * size : (at + steps) * size], steps)
            at += steps

    def __call__(self, window: Rows | Sequence[Batch], sums: Sums, number: int, rates: Rates) -> int:
        """Take the steps of a call, from step `number` on; return how many were applied."""
        steps = window.steps if isinstance(window, Rows) else 1
        graph = None
        if number > 0 and self.begun and not self.refused and (self.tier.all_steps or self._is_full(window)):
            lrs = [rates(ahead) for ahead in range(steps)]
            graph, inputs = self._graph(window, self._as_tensor(lrs))
        if graph is None:
            for ahead, batches in enumerate(window if isinstance(window, Rows) else [window]):
                self.eager(batches, sums, number + ahead, later(rates, ahead))
            return steps
        windows, shadow = [], None
        if graph not in self.proved and not self.resumed:
            windows = [*window] if isinstance(window, Rows) else [window]
            if not self.foreign:
                shadow = shadow_of(self.eager, min(len(x) for part in windows for x, _ in part))
        if graph not in self.still:
            seed_step(self.eager.device, self.eager.seed, number)
        first = graph not in self.proved
        before = random_state(self.eager.device) if first and self.closed and not self.tier.captured else None
        added = graph.call(*inputs)
        if first:
            self.proved.append(graph)
            if before is not None and torch.equal(before, random_state(self.eager.device)):
                self.still.append(graph)
            if not graph.holds(*inputs):
                self._refuse("code of your own changes what it does from step to step")
            elif shadow and (why := shadow.differs(added, windows, number, rates)):
                shadow.put_back()
                added = shadow.added
                self._refuse(why)
        sums.add(*added)
        for group, lr in zip(self.eager.optimizer.param_groups, lrs[-1], strict=True):
            group["lr"] = lr
        return steps

    def _as_tensor(self, lrs: list[Sequence[float]]) -> Tensor:
        """Return learning rates (k, groups) in float64, the tensor of the last call of k steps where it holds them."""
        before, tensor = self.rates.get(len(lrs), (None, None))
        if tensor is None or lrs != before:
            device = "cpu" if self.tier.captured else self.eager.device  # where a copy to it would be waited for
            tensor = torch.tensor(lrs, dtype=torch.float64, device=device)
            self.rates[len(lrs)] = lrs, tensor
        return tensor

    def _is_full(self, window: Rows | Sequence[Batch]) -> bool:
        """Tell whether a window is what most calls of an epoch are."""
        if isinstance(window, Rows):
            return window.steps == self.steps and len(window.rows) == self.steps * self.size
        return sum(len(x) for x, _ in window) == self.size

    def _graph(self, window: Rows | Sequence[Batch], lrs: Tensor) -> tuple[Graph | None, Any]:
        """Return a graph that holds for the window, and its arguments; None for the graph if there can be none."""
        if self.watched:
            self.trusted.clear()
            self.signature = ""
        if not self.signature:  # the first call of an epoch: what a graph is traced from may have changed
            # Not before: optimizers have their state after the first step only.
            if self.tier.captured:
                count_on_device(self.eager.optimizer)
            if self.foreign or hooked_modules(self.eager.model):
                self.store, self.closed = None, False  # graphs of a store have no guards
            batches = window.batches if isinstance(window, Rows) else window
            self.signature = signature(self.eager, batches, attributes=self.store is not None)
            if hooked(self.eager.optimizer):
                self._refuse("hooks on parameters or on the optimizer would not be called")
                return None, ()
            if self.signature != self.traced or self._has_other_state():
                self.parts, self.traced = self._make_parts(), self.signature
        if self.parts is None:
            return None, ()
        if isinstance(window, Rows):
            arguments: Any = self.parts, window.batches, window.rows, lrs
            key: Any = len(lrs), len(window.rows)
        else:
            arguments = self.parts, window, lrs
            key = tuple((t.shape, t.dtype, t.stride()) for batch in window for t in batch)
        graph = self.trusted.get(key)
        if graph is None and (graph := self._find(key, arguments)) is not None:
            self.trusted[key] = graph
        return graph, arguments

    def _find(self, key: Any, arguments: Any) -> Graph | None:
        """Return a graph for these shapes from what is known, stored, or can be compiled."""
        key = key, self.signature
        known = self.graphs.setdefault(key, [])
        for graph in known:
            if graph.holds(*arguments):
                return graph
        if sum(map(len, self.graphs.values())) >= MOST_GRAPHS:
            self._refuse(f"the model changed after each of {MOST_GRAPHS} compilations")
            return None
        self.compiling = not self.tier.captured  # that is over soon
        try:
            with private_torch_cache():
                made = self._stored_or_compiled(key, arguments)
        except NoGraph as error:
            self._refuse(str(error))
            return None
        finally:
            self.compiling = False
        known.append(made)
        return made

    def _stored_or_compiled(self, key: Any, arguments: Any) -> Graph:
        if self.tier.captured:
            if self.foreign:
                raise NoGraph("what after_update of your own callback changes cannot be put back after it is recorded")
            return capture(steps_on_rows, *arguments)
        function = steps_on_rows if isinstance(arguments[1], ArrayBatches) else step_on_batches
        if self.store is None:
            return compile_graph(function, arguments, guarded=True)
        graph = self.store.get(key)
        if graph is None:
            graph = compile_graph(function, arguments, guarded=False)
            if why := self.store.put(key, graph):
                warnings.warn(f"compiled steps could not be kept for the next run: {why}", stacklevel=2)
        return graph

    def _make_parts(self) -> Parts | None:
        eager = self.eager
        updates = updates_of(eager.optimizer, eager=self.tier.captured)
        if updates is None:
            self._refuse(
                f"the step of {type(eager.optimizer).__name__} is no function of tensors that a graph can hold"
            )
            return None
        forward = eager.forward if self.tier.compiles_forward else None
        return Parts(eager.model, eager.objective, eager.parameters, updates, eager.clip_norm, eager.followers, forward)

    def _has_other_state(self) -> bool:
        """Tell whether the optimizer's state is in other tensors now than those that graphs were made for."""
        if self.parts is None:
            return False
        known = {id(entry) for update in self.parts.updates for entries in update.state for entry in entries}
        own = (entry for kept in self.eager.optimizer.state.values() for entry in kept.values())
        return any(isinstance(entry, Tensor) and id(entry) not in known for entry in own)

    def go_without_graphs(self, why: str) -> None:
        """Take all steps as `eager` does from now on, with model and loss compiled if compilation was asked for."""
        self.refused = why
        if self.tier.without_graphs and not self.tier.compiles_forward:
            self.eager.compile_forward()

    def _refuse(self, why: str) -> None:
        self.go_without_graphs(why)
        instead = "model and loss alone are compiled" if self.eager.compiled else "the steps stay eager"
        warnings.warn(f"a training step cannot be one graph, so {instead}: {why}", stacklevel=2)
