"""A callback: hooks that the loop calls, and what they may read and change.

    for callback in callbacks: on_train_begin(trainer)          # a resumed fit then calls load_state_dict, load_tensors
    while not stopped and epochs are left:
        on_epoch_begin(trainer)
        for batch in batches:
            loss, gradients, optimizer step, after_update()     # the latter is part of the step
            on_step_end(trainer)                                # trainer.step has grown, unless the step was skipped
            on_tick(trainer)                                    # ten times a second at most, and before a checkpoint
        on_tick(trainer)
        if this epoch is evaluated:
            on_evaluate_begin(trainer)
            validation loss and metrics; the weights of the best epoch are remembered
            on_evaluate_end(trainer)                            # also when evaluation fails
        history.append(row)
        on_epoch_end(trainer)                                   # may call trainer.stop(reason)
        checkpoint: state_dict and tensors of every callback
    on_train_end(trainer)                                       # also after a stop; not after an error
    the weights of the best epoch are put back

Callbacks are called in the order of the spec, and only the hooks that somebody overrides (`overridden`): an unused one
costs nothing. `on_step_end` is on the hot path and must not read a tensor's value; `on_tick` may. It needs Python after
each step; what is arithmetic alone belongs in `after_update`, with which steps still are compiled, several a call.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from fitkit.errors import SpecError, listing, nearest, show
from fitkit.history import Direction, History

Mode = Literal["auto", "min", "max"]


class TrainerLike(Protocol):
    """What a hook sees of the trainer: all of it may be read, `lr_factor` set, and `stop` called."""

    lr_factor: float  # multiplied onto the scheduled lr; 1.0 when a fit starts, and part of its checkpoints

    @property
    def history(self) -> History:
        """The rows of the epochs that ended; in `on_epoch_end` this epoch's row is the last."""

    @property
    def row(self) -> Mapping[str, float | None]:
        """The row of the epoch that ended, by column; absent, None or NaN where nothing was measured."""

    @property
    def epoch(self) -> int:
        """The number of this epoch, from 1."""

    @property
    def step(self) -> int:
        """How many optimizer steps were applied."""

    @property
    def checkpoint(self) -> Path | None:
        """The newest checkpoint of this run; None when there is none."""

    @property
    def model(self) -> nn.Module:
        """The model itself, not a compiled or wrapped one."""

    @property
    def optimizer(self) -> Optimizer:
        """The optimizer; its param groups hold the lr of the last step."""

    @property
    def callbacks(self) -> Sequence[Callback]:
        """All callbacks of this fit."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns that each row will have."""

    @property
    def out(self) -> Path | None:
        """The run folder; None when the fit writes nothing."""

    def running_loss(self) -> float:
        """Return the mean training loss of this epoch so far, 0 before anything counted; this waits for the device."""

    def direction(self, column: str) -> Direction:
        """Return which end of a column is the good one."""

    def save(self, path: Path) -> None:
        """Write the model's weights as they are now to a file that `fitkit.load` reads; `CheckpointError` if not."""

    def stop(self, reason: str) -> None:
        """End the fit after this epoch; `reason` is what the history says."""


class Callback:
    """Base of all callbacks: override the hooks you need. Memory of a fit starts in `on_train_begin`.

    `remembers` names the attributes that a resumed fit needs again: plain JSON values, no NaN, no infinity.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        """Refuse a method whose name looks like a hook and is none: it would never be called."""
        super().__init_subclass__(**options)
        for name in vars(cls):
            if name.startswith("on_") and name not in HOOKS:
                near = nearest(name, HOOKS)
                hint = f" Did you mean {show(near)}?" if near else ""
                raise SpecError(f"{cls.__name__}.{name}: there is no such hook.{hint} The hooks are {listing(HOOKS)}.")

    remembers: tuple[str, ...] = ()
    writes_files = False  # whether it needs a run folder
    may_stop = False  # whether it may end the fit before its last epoch
    only_shows = (
        False  # whether it only shows the run: it is no part of a checkpoint, and a resumed fit may have others
    )

    def on_train_begin(self, trainer: TrainerLike) -> None:
        """Run once before the first epoch, when model, optimizer and columns are known; start the memory here."""

    def on_epoch_begin(self, trainer: TrainerLike) -> None:
        """Run before the first batch of each epoch."""

    def after_update(self) -> None:
        """Change tensors in place at the end of each optimizer step that is not skipped: averages, a limit on weights.

        A part of the step: where that is one graph, this Python code runs when the graph is made, not in each step. So
        it may read no tensor's value and change nothing but tensors: the model's, and those that `tensors` returns.
        """

    def on_step_end(self, trainer: TrainerLike) -> None:
        """Run after each optimizer step; a skipped one leaves `step` as it is. Hot: read no tensor's value here."""

    def on_tick(self, trainer: TrainerLike) -> None:
        """Run between two steps ten times a second at most, before each checkpoint, and after an epoch's last step."""

    def on_evaluate_begin(self, trainer: TrainerLike) -> None:
        """Run before the validation set is evaluated, in the epochs in which it is."""

    def on_evaluate_end(self, trainer: TrainerLike) -> None:
        """Run after the evaluation, and after the best weights were remembered; also when it failed."""

    def on_epoch_end(self, trainer: TrainerLike) -> None:
        """Run when the row of the epoch is complete and in the history."""

    def on_train_end(self, trainer: TrainerLike) -> None:
        """Run once when the fit ends by itself or by `stop`, before the best weights are put back."""

    def state_dict(self) -> dict[str, Any]:
        """Return the memory as plain JSON values."""
        return {name: getattr(self, name) for name in self.remembers}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the memory back, after `on_train_begin`."""
        for name in self.remembers:
            setattr(self, name, state[name])

    def tensors(self) -> dict[str, Tensor]:
        """Return the part of the memory that is tensors; a checkpoint keeps them beside the weights."""
        return {}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the tensors back, after `on_train_begin`."""


Hook = Callable[[TrainerLike], None]
HOOKS = [name for name in dir(Callback) if name.startswith("on_")]


class LambdaCallback(Callback):
    """Call functions of yours, each taking the trainer: `LambdaCallback(on_epoch_end=lambda t: print(t.row))`.

    For Python only: a spec cannot hold functions.
    """

    def __init__(
        self,
        *,
        on_train_begin: Hook | None = None,
        on_epoch_begin: Hook | None = None,
        on_step_end: Hook | None = None,
        on_tick: Hook | None = None,
        on_evaluate_begin: Hook | None = None,
        on_evaluate_end: Hook | None = None,
        on_epoch_end: Hook | None = None,
        on_train_end: Hook | None = None,
    ) -> None:
        given = {name: hook for name, hook in locals().items() if name.startswith("on_") and hook is not None}
        vars(self).update(given)


def overridden(callbacks: Iterable[Callback], hook: str) -> list[Hook]:
    """Return the hooks of this name that do something, in order, ready to be called with the trainer."""
    empty = getattr(Callback, hook)
    found = [getattr(callback, hook) for callback in callbacks]
    return [method for method in found if getattr(method, "__func__", None) is not empty]


def followers(callbacks: Iterable[Callback]) -> list[Callback]:
    """Return the callbacks that have a part in each step, by `after_update`, in order."""
    empty = Callback.after_update
    return [callback for callback in callbacks if getattr(callback.after_update, "__func__", None) is not empty]


def watched_by_others(callbacks: Iterable[Callback]) -> bool:
    """Tell whether code that is not fitkit's runs within epochs, which may change the model between two steps."""
    callbacks = list(callbacks)
    watching = [one for one in callbacks if overridden([one], "on_step_end") or overridden([one], "on_tick")]
    return not all(map(is_ours, [*watching, *followers(callbacks)]))


def is_ours(callback: Callback) -> bool:
    """Tell whether what a callback does is fitkit's code: its class is, and no hook was put on the object itself."""
    methods = [callback.after_update, *(method for hook in HOOKS for method in overridden([callback], hook))]
    own = all(getattr(method, "__self__", None) is callback for method in methods)
    return own and type(callback).__module__.startswith("fitkit.")


def run_folder(trainer: TrainerLike, callback: Callback) -> Path:
    """Return the run folder; `SpecError` when the fit has none."""
    if trainer.out is None:
        raise SpecError(f"{type(callback).__name__} writes files, and this fit has no run folder: give it out=.")
    return trainer.out


class Monitor(Callback):
    """A callback that follows one column: `best` is its best value so far, `wait` how often it was not better since.

    A value that was not measured, or is NaN, counts for nothing; an infinity is never better. Better means better by
    more than `min_delta`. Mode "auto" takes the direction of the column itself.
    """

    remembers: tuple[str, ...] = ("best", "best_epoch", "wait")

    def __init__(self, monitor: str, mode: Mode, min_delta: float = 0.0) -> None:
        self.monitor = monitor
        self.mode: Mode = mode
        self.min_delta = min_delta
        self.direction: Direction = "min"
        self.best: float | None = None
        self.best_epoch = 0
        self.wait = 0

    def on_train_begin(self, trainer: TrainerLike) -> None:
        """Forget the last fit and find the direction; `SpecError` when no column has the name."""
        if self.monitor not in trainer.columns:
            guess = nearest(self.monitor, trainer.columns)
            raise SpecError(
                f"{type(self).__name__} monitors {show(self.monitor)}, which this run does not measure."
                + (f' Did you mean "{guess}"?' if guess else "")
                + f" It measures {listing(trainer.columns)}."
            )
        self.direction = trainer.direction(self.monitor) if self.mode == "auto" else self.mode
        self.best, self.best_epoch, self.wait = None, 0, 0

    def improved(self, trainer: TrainerLike) -> bool | None:
        """Take in this epoch's value: True if it is the best so far, False if not, None if there is none."""
        value = trainer.row.get(self.monitor)
        if value is None or math.isnan(value):
            return None
        if math.isfinite(value) and self._better(value):
            self.best, self.best_epoch, self.wait = value, trainer.epoch, 0
            return True
        self.wait += 1
        return False

    def _better(self, value: float) -> bool:
        if self.best is None:
            return True
        if self.direction == "min":
            return value < self.best - self.min_delta
        return value > self.best + self.min_delta
