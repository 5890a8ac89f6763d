"""One optimizer step and one evaluation: forward, loss, backward, update, and the sums that an epoch keeps.

Nothing here waits for the device, except fp16's loss scale, which decides on the host whether a step was skipped.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils.spectral_norm import SpectralNorm

from fitkit.engine.align import Align
from fitkit.engine.batches import Batch, Batches
from fitkit.engine.memory import MicroBatches, asked, is_out_of_memory, pieces
from fitkit.engine.private import bare_step, compiled_forward, compiler_fault
from fitkit.engine.seeds import seed_step
from fitkit.engine.signals import Interrupted
from fitkit.errors import DataError, TrainingError
from fitkit.spec.options import FitOptions

HALF = (torch.float16, torch.bfloat16)
Loss = Callable[[Tensor, Tensor], tuple[Tensor, "int | Tensor"]]  # aligned output, target -> sum, count
Rates = Callable[[int], Sequence[float]]  # steps ahead of the present one -> the learning rate of each group


def sums_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype in which sums over an epoch are kept; MPS has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


class Follower(Protocol):
    """What has a part in each step, after the update: it changes tensors in place, its own or the model's."""

    def after_update(self) -> None:
        """Do so; this may become part of a graph."""

    def tensors(self) -> Mapping[str, Tensor]:
        """Return its own."""


@dataclass(frozen=True)
class Metric:
    """A metric: statistics a sample, (M,) or (M, S), that are summed over an epoch, and what becomes of the sums.

    Where it `keeps` them, all rows of the epoch take the place of their sums, NaN where a position does not count.
    """

    name: str
    function: Callable[[Tensor, Tensor], Tensor]
    higher_is_better: bool
    finish: Callable[[Tensor, float], float]  # sums (S,) or () in float64, number of samples
    keeps: bool = False


@dataclass(frozen=True)
class Objective:
    """What is computed from a batch: input transform, model output, loss, metrics.

    `loss` is the training loss; `val_loss` the plain one of evaluation (no label smoothing). `precision` is autocast's
    dtype, None for the parameters' own.
    """

    align: Align
    loss: Loss
    val_loss: Loss
    metrics: tuple[Metric, ...] = ()
    transform: nn.Module | None = None
    precision: torch.dtype | None = None

    def output(self, model: nn.Module, x: Tensor) -> Tensor:
        """Return the model's output for a batch as the run computes it, in at least fp32."""
        if self.transform is not None:
            x = self.transform(x)
        if self.precision is None:
            return model(x)  # type: ignore[no-any-return]
        with torch.autocast(x.device.type, self.precision):
            output = model(x)
        return output.float() if output.dtype in HALF else output  # type: ignore[no-any-return]

    def forward(self, model: nn.Module, x: Tensor, y: Tensor, training: bool) -> tuple[Any, ...]:
        """Return the loss's sum and count, the metrics' sums, and the number of positions that count."""
        output, target, mask = self.align(self.output(model, x), y)
        total, count = (self.loss if training else self.val_loss)(output, target)
        detached, dtype = output.detach(), sums_dtype(output.device)
        sums = []
        for metric in self.metrics:
            rows = metric.function(detached, target)
            if mask is not None:
                rows = torch.where(mask if rows.ndim == 1 else mask[:, None], rows, math.nan if metric.keeps else 0)
            sums.append(rows if metric.keeps else rows.sum(0, dtype=dtype))
        return total, count, sums, len(target) if mask is None else mask.sum()


@dataclass
class Sums:
    """An epoch's running sums, on the device; `values` is the one place that waits for them."""

    metrics: tuple[Metric, ...]
    device: torch.device
    totals: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.dtype = sums_dtype(self.device)
        self.loss = torch.zeros((), dtype=self.dtype, device=self.device)
        self.count: Any = 0  # a count that the host knows stays a Python number
        self.samples: Any = 0

    def add(self, total: Tensor, count: Any, sums: list[Tensor], samples: Any) -> None:
        """Add one batch."""
        self.loss += total.detach()
        self.count = self.count + (count.to(self.dtype) if isinstance(count, Tensor) else count)
        self.samples = self.samples + samples
        if not self.totals:
            for metric, new in zip(self.metrics, sums, strict=True):
                self.totals.append([] if metric.keeps else torch.zeros(new.shape, dtype=self.dtype, device=self.device))
        for running, new in zip(self.totals, sums, strict=True):
            if isinstance(running, list):
                running.append(new)
            else:
                running += new

    def mean_loss(self) -> float:
        """Return the mean loss so far, 0 before anything counted; this waits for the device."""
        count = float(self.count)
        return self.loss.item() / count if count else 0.0

    def tensors(self) -> dict[str, Tensor]:
        """Return the sums so far, for a checkpoint in the middle of an epoch."""
        count, samples = (torch.as_tensor(number, dtype=self.dtype) for number in (self.count, self.samples))
        return {"loss": self.loss, "count": count, "samples": samples} | {
            f"total{i}": torch.cat(total) if isinstance(total, list) else total for i, total in enumerate(self.totals)
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `tensors` returned."""
        loss, count, samples = (tensors[name].to(self.device, self.dtype) for name in ("loss", "count", "samples"))
        self.loss, self.count, self.samples, self.totals = loss, count.item(), samples.item(), []
        for i, metric in zip(range(len(tensors) - 3), self.metrics, strict=False):
            total = tensors[f"total{i}"].to(self.device)
            self.totals.append([total] if metric.keeps else total.to(self.dtype))

    def values(self) -> dict[str, float]:
        """Return the epoch's loss and metrics under their names: sums over samples divided by counts."""
        count, samples = float(self.count), float(self.samples)
        values = {"loss": self.loss.item() / count if count else float("nan")}
        for metric, running in zip(self.metrics, self.totals, strict=bool(self.totals)):
            sums = torch.cat(running) if metric.keeps else running
            values[metric.name] = metric.finish(sums.cpu(), samples)
        return values


class TrainStep:
    """One optimizer step over a window of batches, which counts as one large batch however it is cut.

    Every batch adds the gradient of its loss *sum*; the whole is divided by the window's count, so masked, weighted and
    ragged windows give what the whole batch at once would. Order of events: unscale, clip, step, followers. What
    dropout draws in a step depends on (seed, number of the step) alone.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        micro: MicroBatches | None = None,
        *,
        seed: int = 0,
        accumulate: int = 1,
        clip_norm: float | None = None,
        scaler: torch.amp.GradScaler | None = None,
        followers: Sequence[Follower] = (),
    ) -> None:
        self.model, self.objective, self.optimizer = model, objective, optimizer
        self.followers = followers
        self.seed, self.accumulate = seed, accumulate
        self.micro = micro or MicroBatches(model, FitOptions())
        self.clip_norm, self.scaler = clip_norm, scaler
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.device = self.parameters[0].device
        self.forward: Callable[..., Any] = objective.forward
        self.fresh = False
        self.interruptible = False  # a signal need not wait for the end of what is done now
        self.refused = ""  # why steps are no graphs although they were to be
        self.inverses: dict[int, Tensor] = {}
        self.begin_epoch()

    def compile_forward(self) -> None:
        """Run model and loss through torch.compile from now on; the first call compiles, perhaps for minutes.

        Not with the spectral norm that is a hook: torch 2.13 compiles it to another one.
        """
        hooks = [hook for module in self.model.modules() for hook in module._forward_pre_hooks.values()]
        if any(isinstance(hook, SpectralNorm) for hook in hooks):
            instead = "take torch.nn.utils.parametrizations.spectral_norm"
            warnings.warn(f"torch.nn.utils.spectral_norm is not compiled, so all stays eager: {instead}", stacklevel=2)
            return
        self.forward, self.fresh = compiled_forward(self.objective.forward), True

    @property
    def compiled(self) -> bool:
        """Whether model and loss are compiled."""
        return self.forward != self.objective.forward

    def begin_epoch(self) -> None:
        """Look again for hooks on the optimizer, which may be registered between epochs."""
        self.step = bare_step(self.optimizer)

    def windows(self, train: Batches, epoch: int, start: int, left: int | None) -> Iterator[Sequence[Batch]]:
        """Cut an epoch from batch `start` on into windows of batches, one for each of at most `left` steps.

        A scaler may skip some of the steps: how many windows `left` applied ones take, the caller finds out.
        """
        batches = train.shuffled(self.seed, epoch, start)
        for _ in itertools.count() if left is None or self.scaler is not None else range(left):
            window = tuple(itertools.islice(batches, self.accumulate))
            if not window:
                return
            yield window

    def __call__(self, window: Sequence[Batch], sums: Sums, number: int, rates: Rates) -> int:
        """Do step `number` and add to the sums; return how many steps were applied: fp16 skips one that overflowed."""
        for group, lr in zip(self.optimizer.param_groups, rates(0), strict=True):
            group["lr"] = lr
        results = None
        while results is None:
            seed_step(self.device, self.seed, number)
            try:
                results = (self._first_backward if self.fresh else self._backward)(self.micro.cut(window))
            except (RuntimeError, MemoryError) as error:
                self._drop_gradients()
                if self.compiled and (why := compiler_fault(error)):
                    self.forward = self.objective.forward
                    warnings.warn(f"torch cannot compile model and loss, so training stays eager: {why}", stacklevel=2)
                else:
                    self.micro.halve(window, error, f"step {number + 1:,}")
        if self.micro.rows is not None:
            self.micro.refuse_changed_buffers()
        for result in results:
            sums.add(*result)
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)
        applied = True
        if self.scaler is None:
            self.step()
        else:
            before = self.scaler.get_scale()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            applied = self.scaler.get_scale() >= before
        if applied and self.followers:
            with torch.no_grad():
                for follower in self.followers:
                    follower.after_update()
        self._drop_gradients()
        return int(applied)

    def _backward(self, window: Sequence[Batch]) -> list[tuple[Any, ...]]:
        """Leave the gradient of the window's mean loss in the parameters; return what each batch adds to the sums."""
        whole = len(window) == 1
        nominal, weight, results = len(window[0][0]), 0, []
        for x, y in window:
            total, count, statistics, samples = self.forward(self.model, x, y, True)
            gradient = self._inverse(count if whole else nominal, total)
            total.backward(gradient if self.scaler is None else self.scaler.scale(gradient))
            results.append((total.detach(), count, statistics, samples))
            weight = weight + count
        if not whole:
            torch._foreach_mul_(self._gradients(), nominal * self._inverse(weight, total))
        return results

    def _first_backward(self, window: Sequence[Batch]) -> list[tuple[Any, ...]]:
        """Do what may compile for long: a signal ends it at once, and everything is as it was before."""
        before = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        self.interruptible = True
        try:
            return self._backward(window)
        except Interrupted:
            for name, buffer in self.model.named_buffers():
                buffer.copy_(before[name])
            self._drop_gradients()
            raise
        finally:
            self.interruptible = self.fresh = False

    def _drop_gradients(self) -> None:
        for parameter in self.parameters:  # zero_grad does the same behind a profiling wrapper
            parameter.grad = None

    def _inverse(self, count: int | Tensor, total: Tensor) -> Tensor:
        """Return 1 / count as a 0-d tensor like `total`; 0 for a batch in which nothing counts."""
        if isinstance(count, Tensor):
            wide = count.to(total)  # the inverse of an int64 would be float32
            return torch.where(wide > 0, 1 / wide, 0)
        if count not in self.inverses:
            self.inverses[count] = torch.full((), 1 / count if count else 0.0, dtype=total.dtype, device=total.device)
        return self.inverses[count]

    def _gradients(self) -> list[Tensor]:
        return [p.grad for p in self.parameters if p.grad is not None]


class Evaluator:
    """Loss and metrics over batches in eval mode, every sample once; every module's own mode is put back."""

    def __init__(
        self, model: nn.Module, objective: Objective, micro: MicroBatches | None = None, *, compile: bool = False
    ) -> None:
        self.model, self.objective = model, objective
        self.micro = micro or MicroBatches(model, FitOptions())
        self.most: int | None = None  # rows of a forward pass, once more than in training took too much memory
        self.fresh = compile  # the first call compiles, perhaps for minutes
        self.interruptible = False  # a signal need not wait for the end of what is done now
        self.forward: Callable[..., Any] = objective.forward
        if compile:
            self.forward = compiled_forward(objective.forward)

    def __call__(self, batches: Iterable[Batch], device: torch.device) -> Mapping[str, float]:
        """Return the loss and the metrics under their names."""
        sums = Sums(self.objective.metrics, device)
        self.interruptible = self.fresh
        try:
            with eval_mode(self.model), torch.inference_mode():
                for batch in batches:
                    for result in self._forward(batch):
                        sums.add(*result)
        finally:
            self.interruptible = self.fresh = False
        return sums.values()

    def _forward(self, batch: Batch) -> list[tuple[Any, ...]]:
        as_trained = self.micro.options.batch_size
        while True:
            window = (batch,) if self.most is None else tuple(pieces((batch,), self.most))
            try:
                return [self.forward(self.model, x, y, False) for x, y in self.micro.cut(window)]
            except (RuntimeError, MemoryError) as error:
                if self.most is None and is_out_of_memory(error) and len(batch[0]) > as_trained:
                    self.most = as_trained
                elif self.forward != self.objective.forward and compiler_fault(error):  # said in training already
                    self.forward = self.objective.forward
                else:
                    self.micro.halve(window, error, "evaluation")


def explained(error: Exception, where: str) -> DataError | TrainingError | None:
    """Return what to raise for an error that ended a step; None where nothing is known that the user could change."""
    if is_out_of_memory(error):
        return TrainingError(
            f"{where}: memory ran out outside of a forward pass{asked(error)}: in the optimizer's step, or where data "
            "is read. Take a smaller model, an optimizer that keeps less, such as SGD, or fewer workers."
        )
    if isinstance(error, IndexError) and "out of bounds" in str(error):  # torch's cross entropy on a CPU
        return DataError(f"{where}: the model has no output for it: {error}")
    return None


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Tell whether tensors hold neither NaN nor infinity; this waits for the device once."""
    floats = [t.detach() for t in tensors if t.numel() and (t.is_floating_point() or t.is_complex())]
    return math.isfinite(nn.utils.get_total_norm(floats, math.inf).item())


class eval_mode:  # noqa: N801  (used as a word in a `with`)
    """Hold a module and all in it in eval mode; put back each one's own mode, also after an error."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __enter__(self) -> None:
        self.modes = [(module, module.training) for module in self.model.modules()]
        self.model.eval()

    def __exit__(self, *_: object) -> None:
        self.model.train(self.modes[0][1])  # for modules whose own train() does more than set a flag
        for module, mode in self.modes:
            module.training = mode
