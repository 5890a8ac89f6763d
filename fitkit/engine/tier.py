"""How steps are taken: eagerly or as graphs, compiled or captured, several a call or one, on how many threads.

The choice is a function of what is declared (model, data, length of the run) and never of a clock: a spec trains the
same bits whenever it is started, and a resumed run goes on as it began.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from fitkit.engine.batches import ArrayBatches, Batches, RowBatches
from fitkit.engine.devices import can_compile
from fitkit.engine.private import has_bf16
from fitkit.spec.options import FitOptions

# Floating-point operations a step, some two milliseconds: a second thread gained at most a fifth (specs/digits.yaml:
# 0.4 s against 0.5), and six to a hundred times as long it took where another program used the second core.
SMALL_WORK = 5e7
CALLS_WORK = 2e8  # beyond, calls of small operations are a small part of a step
BF16_WORK = 1e9  # from here on convolutions in bf16 gained on one thread: 1.2 to 2.4 times, in 9 of 10 nets
# What a first compilation takes and what each step saves, for a network and for each of its layers, as
# `benchmarks/policy.py` measured them: both are mostly Python, so their quotient depends little on the machine.
COMPILE_SECONDS, COMPILE_SECONDS_A_LAYER = 15, 2.5
SAVED_SECONDS, SAVED_SECONDS_A_LAYER = 85e-6, 48e-6
LONG_WORK = 1e14  # operations of a run of larger convolutions, some half hour, of which compilation takes a minute
LONG = 4  # times as many steps as pay: a larger graph, and a second one, pay too
MOST_STEPS_A_CALL, MOST_OF_LONG = 5, 12
MOST_EVALUATED = 16  # batches of training that are evaluated in one
# On a GPU, both not measured: floating-point operations of a step that run in less time than it takes to launch the
# some hundred kernels of their network; steps after which a capture, which takes as long as some steps, has paid.
LAUNCH_WORK, CAPTURE_STEPS = 1e11, 100
# What tests/test_cuda.py asks of captured steps has run on no GPU yet; until it has, they are taken where asked for.
CAPTURES_BY_ITSELF = False
CALL, EAGER_STEP = 2, 6  # what a call costs, and a step that is no part of one, in steps of a graph


COMPILED, CAPTURED, FORWARD = "whole steps", "whole steps captured", "model and loss"


@dataclass(frozen=True)
class Tier:
    """How the steps of a fit are taken.

    compiles: "whole steps", "model and loss", or "" where all is eager. "whole steps captured" are CUDA graphs, of
        eager code or, where that is asked for, of compiled model and loss.
    first: the first epoch whose steps are compiled; 0 for none.
    steps: how many share a call, where they are whole graphs.
    all_steps: whether the steps that are left at the end of an epoch are graphs too, each of its own: else the run
        compiles one graph and takes these eagerly.
    threads: how many torch may use; None for what it is set to.
    why: one line.
    asked: whether the spec says so: then what can be compiled is, whether it pays or not.
    """

    compiles: str
    first: int
    steps: int
    all_steps: bool
    threads: int | None
    why: str
    asked: bool = False

    @property
    def captured(self) -> bool:
        """Whether steps are CUDA graphs."""
        return self.compiles == CAPTURED

    @property
    def whole(self) -> bool:
        """Whether whole steps are graphs of either kind."""
        return self.compiles in (COMPILED, CAPTURED)

    @property
    def compiles_forward(self) -> bool:
        """Whether torch.compile makes graphs of model and loss, in eager steps too."""
        return self.compiles == FORWARD or (self.captured and self.asked)

    @property
    def without_graphs(self) -> str:
        """What is compiled instead, where it turns out that whole steps cannot be graphs."""
        return FORWARD if self.asked else ""

    @property
    def compiles_evaluation(self) -> bool:
        """Whether evaluation is compiled too: one of a small model is over before that."""
        return self.compiles_forward or (self.compiles == COMPILED and self.steps == 1)

    def __str__(self) -> str:
        """Say it in a line."""
        since = f" from epoch {self.first:,} on" if self.first > 1 else ""
        how = f"{self.compiles}{'' if self.captured else ' compiled'}" if self.compiles else "eager"
        return f"steps: {how}{since}: {self.why}"


def choose_tier(
    options: FitOptions,
    model: nn.Module,
    train: Batches,
    *,
    device: torch.device,
    flops: float | None,
    whole: bool,
    declared: bool,
    watched: bool,
    total: int | None,
    may_stop: bool,
) -> Tier:
    """Return how the steps of a run are taken.

    Args:
        flops: floating-point operations of a sample's forward pass, None where they were not counted.
        whole: whether whole steps can be graphs here.
        declared: whether no code but fitkit's and torch's has a part in a step.
        watched: whether a callback looks at every step, so that each is a call of its own.
        total: steps of the run, None where only time ends it.
        may_stop: whether a callback may end it earlier.
    """
    work = work_of(model, train, flops) if device.type in ("cpu", "cuda") else math.inf
    if device.type == "cuda":
        return _on_gpu(options, train, work, whole and isinstance(train, ArrayBatches), declared, total)
    return _on_cpu(options, model, train, work, whole, watched, total, may_stop)


def _on_cpu(
    options: FitOptions,
    model: nn.Module,
    train: Batches,
    work: float,
    whole: bool,
    watched: bool,
    total: int | None,
    may_stop: bool,
) -> Tier:
    """Return how steps are taken on a CPU, or on another device for which there is nothing of its own."""
    pays = break_even(model, work)
    many = (total or 0) >= LONG * pays and not may_stop
    large = work > CALLS_WORK or _convolves(model)
    steps = 1 if large or watched else _steps_a_call(train, options.accumulate, many)
    if options.compile == "auto":
        first, why = 1, _why_not(train, pays, whole, watched or (not large and steps == 1))
        pay = f"the {pays:,.0f} from which compilation pays"
        if not why and total is not None and total < pays:
            why = f"{total:,} steps are fewer than {pay}"
        elif not why and total is not None and may_stop and total < 2 * pays:
            why = f"a run of {total:,} steps that may end early is too short to wait for {pay}"
        if why := why or can_compile():
            first, steps = 0, 1
        elif total is None or may_stop:  # it may end any time: what was taken so far may come once more
            first = -(-int(pays) * options.accumulate // (train.per_epoch or 1)) + 1
            why = f"that is after {pay}"
        else:
            why = f"there are more steps than {pay}"
    else:
        first, why = int(options.compile), f"fit.compile is {str(options.compile).lower()}"
    return Tier(
        compiles="" if not first else COMPILED if whole else FORWARD,
        first=first,
        steps=steps,
        all_steps=many or not _full(train, options.accumulate),
        threads=1 if work <= SMALL_WORK else None,
        why=why,
        asked=options.compile is True,
    )


def _on_gpu(options: FitOptions, train: Batches, work: float, whole: bool, declared: bool, total: int | None) -> Tier:
    """Return how steps are taken on a GPU: captured where launching kernels takes longer than running them."""
    small = work <= LAUNCH_WORK
    compiles, why = CAPTURED if whole else FORWARD, f"fit.compile is {str(options.compile).lower()}"
    if options.compile == "auto":
        why = _why_not_captured(small, whole, declared, total)
        compiles, why = ("", why) if why else (CAPTURED, "they are so small that launching their kernels takes longest")
    elif not options.compile:
        compiles = ""
    return Tier(
        compiles=compiles,
        first=int(bool(compiles)),
        steps=1,
        all_steps=small or not _full(train, options.accumulate),  # of large ones, a second graph takes memory
        threads=None,
        why=why,
        asked=options.compile is True,
    )


def _why_not_captured(small: bool, whole: bool, declared: bool, total: int | None) -> str:
    if not CAPTURES_BY_ITSELF:
        return "captured steps are new: fit.compile: true takes them"
    if not whole:
        return "batches that a loader reads, fp16, out_of_memory: halve and activation_checkpointing are no graphs"
    if not small:
        return "a step is more than small kernels, whose launches a capture would save"
    if not declared:
        return "code of your own has a part in them, and a capture repeats what Python decided in it once"
    if total is not None and total < CAPTURE_STEPS:
        return f"{total:,} steps are fewer than the {CAPTURE_STEPS:,} from which a capture pays"
    return ""


def _why_not(train: Batches, pays: float, whole: bool, alone: bool) -> str:
    """Return why compilation cannot pay, however long the run is; nothing where it may."""
    if not whole:
        return (
            "steps are no graphs on this device, in this precision, with out_of_memory: halve or a metric of all rows"
        )
    if pays == math.inf or alone or not isinstance(train, ArrayBatches):
        return "a step is more than small calls, which compilation would save"
    return ""


def break_even(model: nn.Module, work: float) -> float:
    """Return the steps after which a first compilation has paid for itself; infinity where it never does.

    `work` is the floating-point operations of a step. Compiled attention is slower than torch's own.
    """
    if any(isinstance(module, nn.MultiheadAttention) or hasattr(module, "heads") for module in model.modules()):
        return math.inf
    if work <= CALLS_WORK:
        layers = sum(not any(True for _ in module.children()) for module in model.modules())
        seconds = COMPILE_SECONDS + COMPILE_SECONDS_A_LAYER * layers
        return round(seconds / (SAVED_SECONDS + SAVED_SECONDS_A_LAYER * layers), -3)
    return round(LONG_WORK / work, -3) if _convolves(model) and work < math.inf else math.inf


def _convolves(model: nn.Module) -> bool:
    return any(isinstance(module, nn.modules.conv._ConvNd) for module in model.modules())


def _steps_a_call(train: Batches, accumulate: int, many: bool) -> int:
    """Return how many steps a call should have, so that an epoch takes the least time."""
    full, most = _full(train, accumulate), MOST_OF_LONG if many else MOST_STEPS_A_CALL
    alone = CALL + 1 if many else EAGER_STEP
    return min(range(1, most + 1), key=lambda steps: full // steps * (CALL + steps) + full % steps * alone)


def _full(train: Batches, accumulate: int) -> int:
    """Return the number of steps in an epoch that have all their samples."""
    return (train.samples or 0) // (train.batch_size * accumulate)


def evaluation_batch(model: nn.Module, part: RowBatches, flops: float | None) -> int:
    """Return the samples of a forward pass that only evaluates: more than in training, where that costs no memory."""
    each = work_of(model, part, flops) / (3 * part.batch_size)  # without the backward pass
    return max(part.batch_size, min(MOST_EVALUATED * part.batch_size, int(SMALL_WORK / max(each, 1.0))))


def bf16_pays(model: nn.Module, train: Batches, flops: float, convolutions: float) -> bool:
    """Tell whether bf16 autocast makes steps on this CPU faster: where most of a step of some size are convolutions.

    `flops` and `convolutions` are operations of a sample's forward pass: all, and those of convolutions. Small
    transformers and recurrent networks gain nothing.
    """
    work = work_of(model, train, flops)
    return 2 * convolutions > flops and BF16_WORK <= work < math.inf and has_bf16()


def work_of(model: nn.Module, train: Batches | RowBatches, flops: float | None) -> float:
    """Return the floating-point operations of a batch's forward and backward pass, at least as far as one can tell."""
    if any(isinstance(module, nn.RNNBase) for module in model.modules()):
        return math.inf  # torch does not count what these do
    positions = len(train.span) - 1 or 1 if isinstance(train, ArrayBatches) else 1
    weights = sum(parameter.numel() for parameter in model.parameters())
    return 3 * train.batch_size * max(2.0 * positions * weights, flops or 0.0)  # not all operations are counted
