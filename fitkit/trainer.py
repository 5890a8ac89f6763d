"""The trainer: the parts of a fit, where it is, and the one loop.

fit
  on_train_begin
  for each epoch
    on_epoch_begin
    for each window of `accumulate` batches
      learning rate, step                        TrainStep: seed, forward, backward, unscale, clip, update
      on_step_end                                only if a callback has one
      on_tick                                    ten times a second at most
      checkpoint                                 where a keeper says so
    evaluate                                     on_evaluate_begin … on_evaluate_end; best weights are copied
    row -> History
    on_epoch_end
  on_train_end
  best weights back into the model
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from fitkit.engine.batches import Batch, Batches
from fitkit.engine.devices import run_settings
from fitkit.engine.layout import channels_last
from fitkit.engine.memory import MicroBatches, forget_peak, peak_mb, refuse_batchnorm
from fitkit.engine.monitor import Monitor
from fitkit.engine.recompute import recomputed
from fitkit.engine.seeds import seed_epoch, seed_evaluation
from fitkit.engine.signals import Interrupted
from fitkit.engine.step import Evaluator, Objective, Sums, TrainStep, all_finite, explained
from fitkit.engine.tier import choose_tier
from fitkit.engine.weights import save, snapshot
from fitkit.engine.whole_step import WholeStep
from fitkit.errors import FAILED, DataError, FitkitError, TrainingError
from fitkit.history import History
from fitkit.parts.callback import Callback, followers, is_ours, overridden, watched_by_others
from fitkit.spec.options import FitOptions

HOOKS = ("train_begin", "epoch_begin", "step_end", "tick", "evaluate_begin", "evaluate_end", "epoch_end", "train_end")
TICK_SECONDS = 0.1


def total_steps(train: Batches, options: FitOptions) -> int | None:
    """Return the optimizer steps of a whole run, as far as epochs and `max_steps` tell; None if neither does."""
    epochs = options.most_epochs
    known = None if train.per_epoch is None or epochs is None else -(-train.per_epoch // options.accumulate) * epochs
    return min((n for n in (known, options.max_steps) if n is not None), default=None)


class Keeper(Protocol):
    """What writes checkpoints: asked after every step whether one is due."""

    def due(self, trainer: Trainer, now: float) -> bool:
        """Tell whether a checkpoint should be written after this step."""

    def save(self, trainer: Trainer) -> Path:
        """Write a checkpoint."""


@dataclass(kw_only=True, repr=False)
class Trainer:
    """The parts of a fit (plain torch objects) and its progress.

    `build` makes one from a spec; made by hand it takes the same parts:

        Trainer(model=net, objective=objective, optimizer=torch.optim.SGD(net.parameters(), lr=0.1),
                train=ArrayBatches(x, y, batch_size=32)).fit()
    """

    model: nn.Module
    objective: Objective
    optimizer: torch.optim.Optimizer
    train: Batches
    val: Batches | None = None
    schedule: Callable[[int], float] = lambda step: 1.0  # noqa: E731  steps applied so far -> multiplier of lr
    callbacks: Sequence[Callback] = ()
    options: FitOptions = field(default_factory=FitOptions)
    seed: int = 0
    scaler: torch.amp.GradScaler | None = None
    monitor: Monitor | None = None
    out: Path | None = None
    card: Mapping[str, Any] = field(default_factory=dict)  # what a weights file says about the model
    spec: Any = None  # the Spec with every default filled in, if there is one
    recipe: Any = None  # what shapes a compiled step, where it is known: such steps are kept for other runs
    closed: bool = False  # whether all code of a step is fitkit's or torch's; it does not change from epoch to epoch
    flops: float | None = None  # floating-point operations of a sample's forward pass, where they were counted
    notes: str = ""  # what the build found worth printing once: class counts a part
    keeper: Keeper | None = None  # writes checkpoints
    resume: Callable[[Trainer], None] | None = None  # puts the trainer where a checkpoint was taken, after train_begin

    # Progress: where the run is. Callbacks may set `lr_factor` and call `stop`.
    epoch: int = 0  # the current one, from 1
    step: int = 0  # optimizer steps applied
    batch: int = 0  # batches taken in this epoch
    skipped_steps: int = 0
    lr_factor: float = 1.0
    stopped: str = ""  # why the fit ends after this epoch
    limited: bool = False  # that is a limit of the options: a resumed run finds it out again, or has a wider one
    row: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0  # of earlier sessions of a resumed run
    interrupted: int = 0  # the signal that asks to leave: the loop writes a checkpoint after the current step
    best: dict[str, Tensor] | None = None
    best_value: float | None = None
    checkpoint: Path | None = None  # the newest of this run

    def __post_init__(self) -> None:
        """Set up the history, whose columns are known from here on."""
        refuse_batchnorm(self.model, self.options)
        for group in self.optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        if self.monitor is None and self.val is not None:
            self.monitor = Monitor("val_loss", "min")
        self.device = self.optimizer.param_groups[0]["params"][0].device
        better = {name: self.direction(name) for name in self.columns if name not in ("lr", "epoch_seconds")}
        self.history = History(self.columns, better)
        self.sums = Sums(self.objective.metrics, self.device)  # of the epoch under way
        self._micro = MicroBatches(self.model, self.options)
        self._hooks = {name: overridden(self.callbacks, f"on_{name}") for name in HOOKS}  # an empty hook costs nothing
        self.tier = choose_tier(
            self.options,
            self.model,
            self.train,
            device=self.device,
            flops=self.flops,
            whole=WholeStep.can(self.options, self.device, self.scaler, self.objective.metrics),
            declared=self.recipe is not None,
            watched=bool(self._hooks["step_end"]),
            total=self.total_steps,
            may_stop=any(callback.may_stop for callback in self.callbacks),
        )
        step = TrainStep(
            self.model,
            self.objective,
            self.optimizer,
            self._micro,
            seed=self.seed,
            accumulate=self.options.accumulate,
            clip_norm=self.options.clip_norm,
            scaler=self.scaler,
            followers=followers(self.callbacks),
        )
        if self.tier.compiles_forward:
            step.compile_forward()
        self._train_step: Any = step  # calls take what its own windows yield
        if self.tier.whole:
            closed, watched = self.closed and all(map(is_ours, self.callbacks)), watched_by_others(self.callbacks)
            self._train_step = WholeStep(step, self.tier, self.recipe, watched=watched, closed=closed)
        self._evaluator = Evaluator(self.model, self.objective, self._micro, compile=self.tier.compiles_evaluation)

    def _call(self, hook: str) -> None:
        for method in self._hooks[hook]:
            method(self)

    @property
    def micro_batch(self) -> int | None:
        """The rows that a forward pass takes at most, since memory ran out and batches were halved; None before."""
        return self._micro.rows

    @micro_batch.setter
    def micro_batch(self, rows: int | None) -> None:
        self._micro.rows = rows

    def running_loss(self) -> float:
        """Return the mean training loss of this epoch so far, 0 before anything counted; this waits for the device."""
        return self.sums.mean_loss()

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the history's columns."""
        measured = ["loss", *(metric.name for metric in self.objective.metrics)]
        val = [f"val_{name}" for name in measured] if self.val is not None else []
        return (*measured, *val, "lr", "epoch_seconds")

    def direction(self, column: str) -> Literal["min", "max"]:
        """Return whether a column is better when it is lower or higher."""
        higher = {metric.name for metric in self.objective.metrics if metric.higher_is_better}
        return "max" if column.removeprefix("val_") in higher else "min"

    @property
    def total_steps(self) -> int | None:
        """Optimizer steps of the whole run, as far as epochs and `max_steps` tell; None if neither does."""
        return total_steps(self.train, self.options)

    @property
    def compiled(self) -> str:
        """What is compiled, or will be: `tier.compiles`, or what is compiled instead where steps were no graphs."""
        return self.tier.without_graphs if self._train_step.refused else self.tier.compiles

    def __str__(self) -> str:
        """Show the plan: what will run on what, for how long."""
        parts = ("train", self.train), ("val", self.val)
        counts = [f"{name} {part.samples:,}" for name, part in parts if part and part.samples]
        size = sum(p.numel() for p in self.model.parameters())
        precision = str(self.objective.precision or next(self.model.parameters()).dtype).removeprefix("torch.")
        steps = f"{self.total_steps:,} steps" if self.total_steps else "no end in steps"
        return (
            f"samples: {', '.join(counts) or 'not known'}; batches of {self.train.batch_size}, {steps}\n"
            f"model: {type(self.model).__name__}, {size:,} parameters; {type(self.optimizer).__name__}; "
            f"{self.device.type}, {precision}\n{self.tier}" + (f"\n{self.notes}" if self.notes else "")
        )

    def stop(self, reason: str) -> None:
        """End the fit after the current epoch."""
        self.stopped = self.stopped or reason

    def _limit(self, reason: str) -> None:
        """End the fit by a limit of its options."""
        if not self.stopped:
            self.stopped, self.limited = reason, True

    def fit(self) -> History:
        """Run the loop and return the history; the model is left with the best epoch's weights.

        Raises TrainingError when the loss is no longer finite or memory runs out; its `history` holds the finished
        epochs.
        """
        if self.epoch:
            raise FitkitError("this trainer has run already: build another, or fit the model again by a spec.")
        begun = time.perf_counter()
        forget_peak(self.device)
        self.model.zero_grad()  # gradients that it brings along are no part of the first step
        if not self.model.training:  # a module that was loaded for prediction; parts frozen in eval mode stay so
            self.model.train()
        order = channels_last(self.model, self.optimizer, self.objective.precision, declared=self.recipe is not None)
        with run_settings(self.options, self.device, self.tier.threads), order, recomputed(self.model, self.options):
            self._call("train_begin")
            if self.resume is not None:
                self.resume(self)
            self._micro.watch()
            begun -= self.seconds
            try:
                while not self.stopped or len(self.history) < self.epoch:  # the latter where a run was resumed
                    self._epoch(begun)
                self._call("train_end")
                self._refuse_no_best()
            except Interrupted:
                self._save(begun)
                raise
            except TrainingError as error:
                self.stopped, error.history = f"{FAILED}{error}", self.history
                raise
            except (IndexError, RuntimeError, MemoryError) as error:
                if (fault := explained(error, f"epoch {self.epoch}, step {self.step + 1:,}")) is None:
                    raise
                if isinstance(fault, TrainingError):
                    self.stopped, fault.history = f"{FAILED}{fault}", self.history
                raise fault from error
            finally:
                if self.best is not None:
                    self.model.load_state_dict(self.best)
                self.history.stopped, self.history.seconds = self.stopped, time.perf_counter() - begun
                self.history.skipped_steps, self.history.micro_batch = self.skipped_steps, self.micro_batch
                self.history.peak_memory_mb = peak_mb(self.device)
        return self.history

    def _refuse_no_best(self) -> None:
        """Refuse to end well with weights that are not finite, or when no evaluation was: no epoch is the best then."""
        if self.best is not None:
            return
        if self.val is None or self.monitor is None:
            if not all_finite(self.model.parameters()):
                raise TrainingError(self._bad_weights())
            return
        raise TrainingError(
            f"{self.monitor.column} was never finite in {len(self.history)} epochs, so no epoch is the best. Look for "
            "NaN or infinity in the validation data, and for layers that behave otherwise in eval mode."
        )

    def _bad_weights(self) -> str:
        kept = f" The last good checkpoint is {self.checkpoint}." if self.checkpoint else ""
        return f"step {self.step:,} left NaN or infinity in the weights.{kept} Lower lr, or set fit.clip_norm."

    def _epoch(self, begun: float) -> None:
        if len(self.history) == self.epoch:  # else a checkpoint in the middle of this epoch was restored
            self.epoch, self.batch = self.epoch + 1, 0
            self.sums = Sums(self.objective.metrics, self.device)
        seed_epoch(self.seed, self.epoch)
        self._call("epoch_begin")
        started = time.perf_counter()
        self._train_step.begin_epoch()
        self._train_epoch(begun)
        if self.batch == 0:
            raise DataError("the training data yields no batch.")
        self.row = {**self.sums.values()}
        if (most := self.options.most_epochs) is not None and self.epoch >= most:
            self._limit(f"all {most} epochs done")
        if self.stopped:  # before the evaluation that a longer run might not have had here
            self._save(begun)
        ended = bool(self.stopped)
        self.row |= self._evaluate()
        self.row |= {"lr": self.lr, "epoch_seconds": time.perf_counter() - started}
        self.history.append({column: self.row.get(column, math.nan) for column in self.columns})
        self._call("epoch_end")
        if self.stopped and not ended:
            self._save(begun)

    def _train_epoch(self, begun: float) -> None:
        """Take one pass over the training batches, or what is left of it."""
        options, step_hooks, train_step = self.options, self._hooks["step_end"], self._train_step
        deadline = begun + options.max_time if options.max_time else math.inf
        next_tick = time.perf_counter() + TICK_SECONDS
        if self.batch and self._is_over(time.perf_counter(), deadline):  # a run resumed at its very end
            return
        left = None if options.max_steps is None else options.max_steps - self.step
        for window in train_step.windows(self.train, self.epoch, self.batch, left):
            applied = train_step(window, self.sums, self.step + self.skipped_steps, self._rates)
            self.batch += len(window)
            self.step += applied
            self.skipped_steps += not applied
            for hook in step_hooks:
                hook(self)
            now = time.perf_counter()
            if now >= next_tick:
                next_tick = now + TICK_SECONDS
                self._call("tick")
            if self.interrupted:
                raise Interrupted(self.interrupted)
            if self.keeper is not None and self.keeper.due(self, now):
                self._save(begun)
            if self._is_over(now, deadline):
                break
        self._call("tick")

    def interrupt(self, signal: int) -> None:
        """Ask the fit to leave with a checkpoint: after the current step, or at once while it compiles."""
        self.interrupted = signal
        if self._train_step.interruptible or self._evaluator.interruptible:
            raise Interrupted(signal)

    def _watched(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        for batch in batches:
            if self.interrupted:
                raise Interrupted(self.interrupted)
            yield batch

    def _is_over(self, now: float, deadline: float) -> bool:
        most = self.options.max_steps
        if most is not None and self.step >= most:
            self._limit(f"max_steps {most} reached")
        elif now >= deadline:
            self._limit(f"max_time {self.options.max_time:g} s reached")
        return bool(self.stopped)

    def _save(self, begun: float) -> None:
        """Write a checkpoint, if there is a keeper; a state that is not finite is never written."""
        if self.keeper is None:
            return
        self._call("tick")  # TerminateOnNaN looks at the loss
        if all_finite(self._train_step.parameters):
            self.seconds = time.perf_counter() - begun
            self.checkpoint = self.keeper.save(self)
        elif not self.stopped:  # at the end there may still be a best epoch
            raise TrainingError(self._bad_weights())

    def _rates(self, ahead: int) -> list[float]:
        """Return each group's learning rate so many steps from here."""
        factor = self.schedule(self.step + ahead) * self.lr_factor
        return [group["initial_lr"] * factor for group in self.optimizer.param_groups]

    @property
    def lr(self) -> float:
        """The learning rate of the first parameter group, as the last step used it."""
        return float(self.optimizer.param_groups[0]["lr"])

    def _evaluate(self) -> dict[str, float]:
        """Evaluate if it is due, and copy the weights if they are the best so far."""
        if self.val is None or (self.epoch % self.options.eval_every and not self.stopped):
            return {}
        self._call("evaluate_begin")
        seed_evaluation(self.device, self.seed, self.epoch)
        try:
            values = {f"val_{name}": value for name, value in self.evaluate(self.val).items()}
            self._keep_best({**self.row, **values})
        finally:
            self._call("evaluate_end")
        return values

    def _keep_best(self, row: Mapping[str, float]) -> None:
        monitor = self.monitor
        if monitor is not None and monitor.better(row[monitor.column], self.best_value):
            self.best_value = row[monitor.column]
            self.best = snapshot(self.model, self.best)
            self.history.monitor, self.history.best_epoch = monitor.column, self.epoch

    def save(self, path: Path) -> None:
        """Write the model's weights as they are now, with the input transform, to a file that `fitkit.load` reads."""
        save(path, self.model.state_dict(), self.objective.transform, self.card)

    def evaluate(self, batches: Batches) -> Mapping[str, float]:
        """Return loss and metrics over the batches, in eval mode, every sample once, with the plain loss."""
        return self._evaluator(self._watched(batches.in_order()), self.device)
