"""What a run will need and how long it will take, told before it starts: `fitkit plan`."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fitkit.builder import Outline, Overrides, SpecLike, begin, finish, load_spec
from fitkit.builder.folds import fold_specs
from fitkit.builder.size import in_words, largest_batch, room, without_numbers
from fitkit.engine.batches import ArrayBatches, Batch, Batches
from fitkit.errors import SpecError
from fitkit.parts.callback import LambdaCallback
from fitkit.run_folder import precision_of
from fitkit.trainer import Trainer

PROBE_SECONDS = 1.0  # of steps; of evaluation, half of it
WARM_UP = 3  # steps: the first ones allocate, and choose kernels
ENDLESS = 10**9  # epochs


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run will need: numbers, bytes and seconds; None is what is not known.

    `memory` holds bytes by part (weights, gradients, optimizer, copies, activations, batch), `needed` their sum as far
    as they are known, `there` what the device has left once the data are on it. Activations are those of a batch of
    `batch_size`, and `most_batch` is the largest batch size that fits if they grow by the sample. `step_seconds` and
    `evaluation_seconds` come from a short probe of eager steps on this device; compiling, callbacks and files are not
    in them. Of a cross-validation, `seconds` are those of all `folds`, and everything else is of the first. `tier` says
    which steps a fit would compile, and why.
    """

    name: str
    device: str
    precision: str
    threads: int
    parameters: int
    trainable: int
    memory: Mapping[str, int | None]
    needed: int
    there: int | None
    data: int | None
    fits: bool
    batch_size: int
    most_batch: int | None
    samples: int | None
    epochs: int | None
    folds: int
    steps_per_epoch: int | None
    steps: int | None
    step_seconds: float | None
    evaluation_seconds: float | None
    epoch_seconds: float | None
    seconds: float | None
    tier: str | None

    def __str__(self) -> str:
        return "\n".join(_lines(self))


def plan(spec: SpecLike, model: nn.Module | None = None, data: Any = None, *, overrides: Overrides = None) -> Plan:
    """Return what a run of a spec will need, after about two seconds of steps whose results are thrown away.

    `model` and `data` are those of `fitkit.fit`; the module is copied, and nothing is written. A run that does not fit
    into the memory is not tried: `fits` is false then, and nothing is known of its time. SpecError and DataError are
    those of `fitkit.build`.
    """
    loaded = load_spec(spec, overrides)
    begun = begin(loaded, _copied(model), data)
    there = room(begun.device)
    on_meta = _without_numbers(begun)
    trainer: Trainer | None = None
    if on_meta is None:  # registered parts can only be counted once they are built
        trainer = _finished(loaded, begun)
        begun = dataclasses.replace(begun, model=trainer.model)
        on_meta = without_numbers(trainer.model)
    if on_meta is None:
        raise SpecError("the model cannot be copied without its numbers, so its size is not known.")
    size, batch = begun.size(on_meta), len(begun.prepared.first[0])
    fits = there is None or size.needed <= there
    most = None
    if there is not None and size.activations is not None:
        most = largest_batch(size.needed, size.fixed, batch, there)
    fit, train = begun.spec.fit, begun.prepared.parts["train"]
    found = Plan(
        name=loaded.name,
        device=str(begun.device),
        precision=_precision(begun, on_meta),
        threads=torch.get_num_threads(),
        parameters=size.parameters,
        trainable=size.trainable,
        memory=size.parts(),
        needed=size.needed,
        there=there,
        data=_data_bytes(begun),
        fits=fits,
        batch_size=batch,
        most_batch=most,
        samples=train.samples,
        epochs=fit.most_epochs,
        folds=len(fold_specs(loaded)) or 1,
        steps_per_epoch=None if train.per_epoch is None else math.ceil(train.per_epoch / fit.accumulate),
        steps=None,
        step_seconds=None,
        evaluation_seconds=None,
        epoch_seconds=None,
        seconds=None,
        tier=None,
    )
    return _timed(found, trainer or _finished(loaded, begun)) if fits else found


def _copied(model: Any) -> Any:
    try:
        return copy.deepcopy(model) if isinstance(model, nn.Module) else model
    except Exception as error:  # whatever the user's own class raises
        raise SpecError(f"the model cannot be copied, so that it could be tried: {error}.") from error


def _without_numbers(begun: Outline) -> nn.Module | None:
    if begun.model is not None:
        return without_numbers(begun.model)
    drawn = begun.sketch()
    return None if drawn is None else drawn.model


def _finished(spec: Any, begun: Outline) -> Trainer:
    try:
        return finish(dataclasses.replace(begun, spec=dataclasses.replace(begun.spec, callbacks=())), None)
    except SpecError as error:
        raise spec.located(error) from error.__cause__


def _precision(begun: Outline, model: nn.Module) -> str:
    own = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    return str(begun.precision or own).removeprefix("torch.")


def _data_bytes(begun: Outline) -> int | None:
    """Return the bytes of the data in memory; None for a Dataset or a loader."""
    tensors: dict[int, torch.Tensor] = {}
    for part in begun.prepared.parts.values():
        if not isinstance(part, ArrayBatches):
            return None
        tensors |= {
            t.untyped_storage().data_ptr(): t for t in (part.x, part.y, part.starts, part.rows) if t is not None
        }
    return sum(t.numel() * t.element_size() for t in tensors.values())


def _timed(found: Plan, trainer: Trainer) -> Plan:
    """Return the plan with times, from real steps and evaluations, which are eager."""
    tier = str(trainer.tier)
    trainer = dataclasses.replace(trainer, options=dataclasses.replace(trainer.options, compile=False))
    steps, val, per_epoch, every = trainer.total_steps, trainer.val, found.steps_per_epoch, trainer.options.eval_every
    step = _step_seconds(trainer)
    evaluation = None if val is None else _evaluation_seconds(trainer, val)
    epoch = seconds = None
    if per_epoch is not None and (val is None or evaluation is not None):
        epoch = per_epoch * step + (evaluation or 0) / every
        if steps is not None:
            epochs = math.ceil(steps / per_epoch)
            seconds = steps * step + (evaluation or 0) * math.ceil(epochs / every)
    if trainer.options.max_time is not None:
        seconds = min(trainer.options.max_time, seconds or math.inf)
    return dataclasses.replace(
        found,
        precision=precision_of(trainer),
        steps=steps,
        step_seconds=step,
        evaluation_seconds=evaluation,
        epoch_seconds=epoch,
        seconds=None if seconds is None else seconds * found.folds,
        tier=tier,
    )


class _Enough(BaseException):
    """Ends a fit in the middle: no error that anything would handle."""


class _Clock:
    """Measures the seconds of one thing that is done again and again: twice as many each time, until they take long."""

    def __init__(self, device: torch.device, seconds: float) -> None:
        self.device, self.least, self.count, self.done = device, seconds / 2, 0, -WARM_UP
        self.begun, self.each = time.perf_counter(), 0.0

    def __call__(self, *_: object) -> None:
        """Note that it was done once more; raise `_Enough` when `each` is known."""
        self.done += 1
        warm = self.count > 0
        if warm and self.done < self.count:
            return
        if self.device.type in ("cuda", "mps"):
            getattr(torch, self.device.type).synchronize()
        now = time.perf_counter()
        if now - self.begun >= (self.least if warm else 4 * self.least):  # what is so slow need not be warm
            self.each = (now - self.begun) / (self.count if warm else self.done + WARM_UP)
            raise _Enough
        if not warm and self.done < 0:
            return
        self.begun, self.count, self.done = now, 2 * self.count or 1, 0


def _step_seconds(trainer: Trainer) -> float:
    """Return the seconds of an optimizer step of a fit that is broken off."""
    clock = _Clock(trainer.device, PROBE_SECONDS)
    options = dataclasses.replace(trainer.options, epochs=ENDLESS, max_steps=None, max_time=None)
    callbacks = (LambdaCallback(on_step_end=clock),)
    with contextlib.suppress(_Enough):
        dataclasses.replace(trainer, val=None, monitor=None, callbacks=callbacks, options=options, out=None).fit()
    return clock.each


def _evaluation_seconds(trainer: Trainer, val: Batches) -> float | None:
    """Return the seconds of one evaluation, from as many of its batches as there is time for."""
    if val.samples is None:
        return None
    clock = _Clock(trainer.device, PROBE_SECONDS / 2)

    class Endless:
        def in_order(self) -> Iterator[Batch]:
            while True:
                for batch in val.in_order():
                    yield batch
                    clock()

    with contextlib.suppress(_Enough):
        endless: Any = Endless()
        trainer.evaluate(endless)
    return clock.each * math.ceil(val.samples / val.batch_size)


def _lines(found: Plan) -> Iterator[str]:
    names = {
        "weights": "weights",
        "gradients": "gradients",
        "optimizer": "optimizer's state",
        "copies": "copies of weights (best epoch, EMA)",
        "activations": f"activations of a batch of {found.batch_size:,}",
        "batch": "the batch itself",
    }
    threads = f", {found.threads} thread{'s'[: found.threads != 1]}" if found.device == "cpu" else ""
    yield f"{found.name}: {found.device}, {found.precision}{threads}"
    rest = "" if found.trainable == found.parameters else f", {found.trainable:,} of them trained"
    yield f"parameters: {found.parameters:,}{rest}"
    yield "memory:"
    for part, size in found.memory.items():
        yield f"  {names[part]:<36} {'not known' if size is None else in_words(size):>10}"
    known = "" if None not in found.memory.values() else " at least"
    there = "" if found.there is None else f" of {in_words(found.there)} that are available"
    yield f"  {'together' + known:<36} {in_words(found.needed):>10}{there}"
    if found.data is not None:
        yield f"  {'data, in memory already':<36} {in_words(found.data):>10}"
    if found.steps_per_epoch is not None:
        total = "" if found.steps is None else f", {found.steps:,} in all"
        yield f"steps: {found.steps_per_epoch:,} an epoch{total}" + " of a fold" * (found.folds > 1)
    if found.tier is not None:
        yield found.tier
    if found.step_seconds is not None:
        yield f"time of eager steps: {_time(found.step_seconds)} a step" + "".join(
            f", {_time(seconds)} {what}"
            for seconds, what in (
                (found.evaluation_seconds, "an evaluation"),
                (found.epoch_seconds, "an epoch"),
                (found.seconds, f"in {found.folds} folds at most" if found.folds > 1 else "in all at most"),
            )
            if seconds is not None
        )
    if found.most_batch:
        whole = found.samples is not None and found.most_batch >= found.samples
        yield f"largest batch_size that fits: {'the whole training part' if whole else f'about {found.most_batch:,}'}"
    yield "fits." if found.fits else "does not fit: take a smaller model" + " or batch_size." * bool(found.most_batch)


def _time(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:,.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"
