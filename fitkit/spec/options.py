"""The keys of `fit:`: how long, how much at once, with which numbers, on which device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from fitkit.spec.types import NonNegativeInt, Pattern, Positive, PositiveInt

DEFAULT_EPOCHS = 10

Device = Annotated[str, Pattern(r"auto|cpu|mps|cuda(:[0-9]{1,3})?", "auto, cpu, cuda, cuda:N or mps")]


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """How a fit runs.

    epochs: passes over the training rows; 10, or without end when `max_steps` or `max_time` is given.
    max_steps: stop after this many optimizer steps.
    max_time: stop after this many seconds of training, at the end of a step.
    batch_size: samples a forward pass.
    accumulate: batches an optimizer step; the step equals one on a batch `accumulate` times as large.
    clip_norm: scale the gradient down to at most this global L2 norm before each step.
    precision: number format of the forward pass; auto is bf16 on a GPU that has it, and on a CPU that has it for a
        classifier most of whose work are convolutions, if a step is of some size; fp32 elsewhere.
    compile: make whole optimizer steps one graph, or else model and loss; auto does so for small models and long runs.
    device: auto takes cuda, then mps, then cpu.
    deterministic: only algorithms that give the same bits every time; slower on a GPU.
    activation_checkpointing: keep only the inputs of the model's blocks for the backward pass, which computes the rest
        again, for less memory and the time of a second forward pass.
    out_of_memory: stop the fit, or halve the batches of a forward pass, accumulated so that the step stays the same.
    workers: processes that read samples, for a `Dataset` or `DataLoader` given in Python.
    check_data: look at data in memory before the first epoch, for rows that are in two parts, contradictions, columns
        that give the target away and the like, and warn of them.
    eval_every: evaluate after each of this many epochs, and at the end that epochs, max_steps or max_time set.
    """

    epochs: PositiveInt | None = None
    max_steps: PositiveInt | None = None
    max_time: Positive | None = None
    batch_size: PositiveInt = 32
    accumulate: PositiveInt = 1
    clip_norm: Positive | None = None
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    compile: Literal["auto"] | bool = "auto"
    device: Device = "auto"
    deterministic: bool = False
    activation_checkpointing: bool = False
    out_of_memory: Literal["stop", "halve"] = "stop"
    workers: NonNegativeInt = 0
    check_data: bool = True
    eval_every: PositiveInt = 1

    @property
    def most_epochs(self) -> int | None:
        """The number of epochs, or None when only steps or time end the fit."""
        if self.epochs is None and (self.max_steps or self.max_time):
            return None
        return self.epochs or DEFAULT_EPOCHS
