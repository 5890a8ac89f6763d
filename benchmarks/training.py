"""One training, and the loops that do it: of the textbooks, lean, as one graph a step, and fitkit's.

Every program of a table is given the same `Training`: rows, model with the same initial weights, mean cross-entropy,
optimizer, shuffled batches with the ragged last one, loss and accuracy of every epoch. `numbers` then takes the loss of
the trained weights over all rows, in the same way for all, so that one sees that they learn the same.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.adam import adam
from torch.optim.sgd import sgd
from torch.utils.data import DataLoader, TensorDataset


@dataclass
class Training:
    x: Tensor
    y: Tensor
    model: nn.Module
    spec: dict[str, Any]  # `model:` for fitkit, where a spec can say it; else it is given the module
    batch_size: int
    epochs: int
    optimizer: str  # a name in torch.optim
    arguments: dict[str, Any]  # of the optimizer
    warm: int = 1  # epochs that are left out of the steps' times
    device: str = "cpu"
    times: list[float] = field(default_factory=list)

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return -(-len(self.x) // self.batch_size)

    def end_epoch(self) -> None:
        self.times.append(time.perf_counter())

    def loss(self, output: Tensor, target: Tensor) -> Tensor:  # (B, C), (B,) -> (); (B, T, C), (B, T) -> ()
        return cross_entropy(output.flatten(0, -2), target.flatten())

    def right(self, output: Tensor, target: Tensor) -> Tensor:
        """Return how many predictions are right."""
        return (output.detach().argmax(-1) == target).sum()

    def make_optimizer(self, **more: Any) -> torch.optim.Optimizer:
        return getattr(torch.optim, self.optimizer)(self.model.parameters(), **self.arguments, **more)

    def loader(self) -> DataLoader:
        return DataLoader(TensorDataset(self.x, self.y), batch_size=self.batch_size, shuffle=True)

    def numbers(self) -> dict[str, float]:
        """Return the time of a step once warm, samples a second, and the loss of the trained weights over all rows."""
        assert len(self.times) == self.epochs, f"{len(self.times)} epochs instead of {self.epochs}"
        seconds = (self.times[-1] - self.times[self.warm - 1]) / (self.epochs - self.warm)
        self.model.to("cpu", torch.float32).eval()
        with torch.inference_mode():
            parts = zip(self.x.cpu().split(512), self.y.cpu().split(512), strict=True)
            loss = sum(self.loss(self.model(x), y).item() * len(x) for x, y in parts) / len(self.x)
        return {"us": seconds / self.steps * 1e6, "samples_per_s": len(self.x) / seconds, "loss": loss}


def autocast(dtype: torch.dtype | None, device: str) -> Any:
    return torch.autocast(device, dtype) if dtype else contextlib.nullcontext()


def textbook(
    t: Training, *, channels_last: bool = False, precision: torch.dtype | None = None, fused: bool | None = None
) -> dict[str, float]:
    """Train as most tutorials do: a DataLoader, and `.item()` of loss and accuracy for every batch."""
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    model = t.model.to(t.device, memory_format=memory_format)
    optimizer, loader = t.make_optimizer(fused=fused), t.loader()
    for _ in range(t.epochs):
        loss_sum, right = 0.0, 0
        for x, y in loader:
            x, y = x.to(t.device, memory_format=memory_format), y.to(t.device)
            optimizer.zero_grad()
            with autocast(precision, t.device):
                output = model(x)
                loss = t.loss(output, y)
            loss.backward()
            optimizer.step()
            loss_sum += loss.item() * len(x)
            right += t.right(output, y).item()
        t.end_epoch()
    return t.numbers()


def lean(
    t: Training, *, channels_last: bool = False, precision: torch.dtype | None = None, compiled: bool = False
) -> dict[str, float]:
    """Train by hand with care: tensors gathered by index, a fused optimizer, sums that stay on the device."""
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    model = t.model.to(t.device, memory_format=memory_format)
    x, y = t.x.to(t.device, memory_format=memory_format), t.y.to(t.device)
    optimizer = t.make_optimizer(fused=True)

    def forward(inputs: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        with autocast(precision, t.device):
            output = model(inputs)
            return t.loss(output, target), t.right(output, target)

    step = torch.compile(forward, dynamic=False) if compiled else forward
    for _ in range(t.epochs):
        loss_sum, right_sum = torch.zeros((), device=t.device), torch.zeros((), device=t.device)
        for rows in torch.randperm(len(x), device=t.device).split(t.batch_size):
            inputs = x.index_select(0, rows)
            if channels_last:
                inputs = inputs.contiguous(memory_format=memory_format)
            loss, right = step(inputs, y.index_select(0, rows))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            loss_sum.add_(loss.detach(), alpha=len(rows))
            right_sum += right
        loss_sum.item(), right_sum.item()
        t.end_epoch()
    return t.numbers()


@dataclass
class State:
    """What whole steps change: weights, the optimizer's state, the epoch's sums of loss and right predictions."""

    weights: list[Tensor]
    first: list[Tensor]
    second: list[Tensor]
    steps: list[Tensor]
    sums: Tensor


def whole_steps(
    t: Training, k: int = 1, *, channels_last: bool = False, precision: torch.dtype | None = None
) -> dict[str, float]:
    """Train at the limit: gather, forward, gradients and update as one graph in C++, k steps a call, no guards."""
    if channels_last:
        t.model.to(memory_format=torch.channels_last)
        t.x = t.x.contiguous(memory_format=torch.channels_last)
    weights = [p for p in t.model.parameters()]
    zeros = [[torch.zeros_like(w) for w in weights] for _ in range(2)]
    state = State(weights, *zeros, [torch.zeros(()) for _ in weights], torch.zeros(2))
    graphs: dict[torch.Size, Any] = {}

    def call(rows: Tensor) -> None:
        if rows.shape not in graphs:
            graphs[rows.shape] = compile_steps(t, precision, state, rows)
        graphs[rows.shape](t, precision, state, rows)

    full = len(t.x) // t.batch_size
    for _ in range(t.epochs):
        state.sums.zero_()
        order = torch.randperm(len(t.x))
        steps = order[: full * t.batch_size].view(full, t.batch_size)
        for begin in range(0, full - full % k, k):
            call(steps[begin : begin + k])
        for begin in range(full - full % k, full):
            call(steps[begin : begin + 1])
        if len(order) % t.batch_size:
            call(order[None, full * t.batch_size :])
        state.sums.tolist()
        t.end_epoch()
    return t.numbers()


def compile_steps(*arguments: Any) -> Any:
    """Return `take_steps` compiled for arguments like these: a small kernel waits for nothing but the next one."""
    options: Any = {"cpp_wrapper": True, "guard_filter_fn": lambda guards: [False] * len(guards)}
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        compiled: Any = torch.compile(take_steps, fullgraph=True, dynamic=False, options=options)
        made = compiled.aot_compile((arguments, {}))
    made.disable_guard_check()
    return made


def take_steps(t: Training, precision: torch.dtype | None, state: State, rows: Tensor) -> None:  # (k, B)
    for own in rows.unbind():
        x, y = t.x[own], t.y[own]
        with autocast(precision, t.device):
            output = t.model(x)
            loss = t.loss(output, y)
        gradients = list(torch.autograd.grad(loss, state.weights))
        with torch.no_grad():
            update(t, state, gradients)
            state.sums.add_(torch.stack((loss.detach() * len(own), t.right(output, y).float())))


def update(t: Training, state: State, gradients: list[Tensor]) -> None:
    decay = t.arguments.get("weight_decay", 0.01 if t.optimizer == "AdamW" else 0.0)
    lr = torch.tensor(t.arguments["lr"])  # a tensor, as a schedule needs it
    if t.optimizer == "SGD":
        options = {"nesterov": t.arguments["nesterov"], "momentum": t.arguments["momentum"], "dampening": 0.0}
        sgd(state.weights, gradients, state.first, foreach=False, weight_decay=decay, lr=lr, maximize=False, **options)
        return
    options = {"amsgrad": False, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "maximize": False}
    options |= {"foreach": False, "decoupled_weight_decay": t.optimizer == "AdamW"}
    adam(state.weights, gradients, state.first, state.second, [], state.steps, lr=lr, weight_decay=decay, **options)


def fitkit(t: Training, epochs: int | None = None, **options: Any) -> dict[str, float]:
    """Train by a spec; `options` are keys of its `fit:`. A run of more `epochs` is ended after those to be measured."""
    import fitkit

    spec = {
        **t.spec,
        "splits": {"random": {"val": 0.0}},
        "optimizer": {t.optimizer: {**t.arguments, "no_decay": "none"}},
        "fit": {"epochs": epochs or t.epochs, "batch_size": t.batch_size, "device": t.device, **options},
    }
    model = None if "model" in t.spec else t.model
    trainer = fitkit.build(spec, model=model, data=(t.x, t.y))
    trainer.options = dataclasses.replace(trainer.options, epochs=t.epochs)
    append = trainer.history.append

    def end_epoch(row: Any) -> None:
        append(row)
        t.end_epoch()

    trainer.history.append = end_epoch  # a callback of ours would be one of a user's, which the run has to watch
    with torch.no_grad():  # a spec's model has weights of its own seed
        for own, initial in zip(trainer.model.parameters(), t.model.parameters(), strict=True):
            own.copy_(initial)
    trainer.fit()
    t.model = trainer.model
    return t.numbers()


def pairs(tensors: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Return weight and bias of each layer."""
    return zip(tensors[::2], tensors[1::2], strict=True)
