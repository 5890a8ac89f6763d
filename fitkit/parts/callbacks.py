"""Callbacks, by their Keras names. What a hook is, and when each is called: `fitkit.parts.callback`.

`fit` itself leaves the weights of the best epoch in the model, whatever ends it; no callback is needed for that.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from fitkit.errors import CheckpointError, SpecError, TrainingError, listing, show
from fitkit.parts.callback import Callback, Mode, Monitor, TrainerLike, run_folder
from fitkit.spec.table import Table
from fitkit.spec.types import Fraction, NonNegative, NonNegativeInt, PositiveInt, Range, WritePath

callbacks = Table("callback")


@callbacks.register
class EarlyStopping(Monitor):
    """Stop when a column has not become better for `patience` epochs.

    A column that stays as it is stops the run exactly `patience` epochs after its first value. Epochs that did not
    measure the column, or made it NaN, are not counted. The first `start_from_epoch` epochs are not looked at. With a
    `baseline`, only values better than it are improvements.
    """

    may_stop = True

    def __init__(
        self,
        *,
        monitor: str = "val_loss",
        patience: PositiveInt = 5,
        min_delta: NonNegative = 0.0,
        mode: Mode = "auto",
        baseline: float | None = None,
        start_from_epoch: NonNegativeInt = 0,
    ) -> None:
        super().__init__(monitor, mode, min_delta)
        self.patience = patience
        self.baseline = baseline
        self.start_from_epoch = start_from_epoch

    def on_train_begin(self, trainer: TrainerLike) -> None:
        """Start from the baseline, or from nothing."""
        super().on_train_begin(trainer)
        self.best = self.baseline

    def on_epoch_end(self, trainer: TrainerLike) -> None:
        """Count, and stop the run when patience is at an end."""
        if trainer.epoch <= self.start_from_epoch or self.improved(trainer) is None or self.wait < self.patience:
            return
        since = f"since epoch {self.best_epoch}" if self.best_epoch else "in any epoch"
        best = "" if self.best is None else f", {'' if self.best_epoch else 'the baseline is '}{self.best:.6g}"
        trainer.stop(f"{self.monitor} has not improved {since}{best} (EarlyStopping, patience {self.patience})")


@callbacks.register
class ReduceLROnPlateau(Monitor):
    """Multiply the learning rate by `factor` when a column has not become better for `patience` epochs.

    After a drop, `cooldown` epochs are not counted. Counting is Keras's: torch's class drops one epoch later for the
    same `patience`. The drop is a factor on whatever the schedule says. `min_lr` is a floor on the optimizer's lr at
    the moment of the drop, for every param group: with lr 0.01, factor 0.1 and min_lr 0.004 the lr goes to 0.004.
    """

    remembers = (*Monitor.remembers, "pause")

    def __init__(
        self,
        *,
        monitor: str = "val_loss",
        factor: Annotated[float, Range(0, 1, open_low=True, open_high=True)] = 0.1,
        patience: PositiveInt = 10,
        mode: Mode = "auto",
        min_delta: NonNegative = 1e-4,
        cooldown: NonNegativeInt = 0,
        min_lr: NonNegative = 0.0,
    ) -> None:
        super().__init__(monitor, mode, min_delta)
        self.factor = factor
        self.patience = patience
        self.cooldown = cooldown
        self.min_lr = min_lr
        self.pause = 0  # epochs of the cooldown that are left

    def on_train_begin(self, trainer: TrainerLike) -> None:
        """Forget the last fit."""
        super().on_train_begin(trainer)
        self.pause = 0

    def on_epoch_end(self, trainer: TrainerLike) -> None:
        """Count, and lower the lr when patience is at an end."""
        if self.improved(trainer) is None:
            return
        if self.pause:
            self.pause -= 1
            self.wait = 0
        if self.wait >= self.patience:
            trainer.lr_factor *= self._drop(trainer)
            self.pause = self.cooldown
            self.wait = 0

    def _drop(self, trainer: TrainerLike) -> float:
        lrs = [float(group["lr"]) for group in trainer.optimizer.param_groups]
        floor = max((self.min_lr / lr for lr in lrs if lr > 0), default=0.0)
        return min(max(self.factor, floor), 1.0)


@callbacks.register
class TerminateOnNaN(Callback):
    """End the run with an error within a tenth of a second after the training loss became NaN or infinite."""

    def __init__(self) -> None:
        self.finite = 0  # the last step after which the loss was seen to be finite

    def on_epoch_begin(self, trainer: TrainerLike) -> None:
        """Start from the step that the epoch, or what is left of it, begins with."""
        self.finite = trainer.step

    def on_tick(self, trainer: TrainerLike) -> None:
        """Raise `TrainingError`, with the history of the epochs before, when the loss is not finite."""
        loss = trainer.running_loss()
        if math.isfinite(loss):
            self.finite = trainer.step
            return
        first, last = min(self.finite + 1, trainer.step), trainer.step
        steps = f"step {last:,}" if first == last else f"one of the steps {first:,} to {last:,}"
        kept = f" The last good checkpoint is {trainer.checkpoint}." if trainer.checkpoint else ""
        error = TrainingError(
            f'The column "loss" is {loss} in epoch {trainer.epoch}, since {steps}.{kept} Try a smaller lr, gradient '
            f"clipping (fit.clip_norm: 1.0) or full precision (fit.precision: fp32)."
        )
        error.history = trainer.history
        raise error


@callbacks.register(primary="decay")
class EMA(Callback):
    """Evaluate, and keep, an exponential moving average of the weights instead of the last weights.

    After each applied step, average = decay * average + (1 - decay) * weight, from the initial weights on and without
    bias correction (Polyak and Juditsky 1992, with exponential weights): it looks back about 1 / (1 - decay) steps. The
    average has the dtype of its parameter. Buffers (the statistics of BatchNorm) are not averaged: evaluation takes the
    model's own. Validation columns, the best epoch and ModelCheckpoint's files are those of the averages.
    """

    def __init__(self, *, decay: Fraction = 0.999) -> None:
        self.decay = decay
        self.update = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        self.names: list[str] = []
        self.weights: list[Tensor] = []
        self.averages: list[Tensor] = []

    def on_train_begin(self, trainer: TrainerLike) -> None:
        """Start the averages at the initial weights."""
        if sum(isinstance(callback, EMA) for callback in trainer.callbacks) > 1:
            raise SpecError("A run can keep one EMA only: leave the others out.")
        named = {name: weight for name, weight in trainer.model.named_parameters() if weight.dtype.is_floating_point}
        self.names, self.weights = list(named), list(named.values())
        self.averages = [weight.detach().clone() for weight in self.weights]

    def after_update(self) -> None:
        """Move the averages."""
        if self.averages:
            self.update(self.averages, self.weights, None)

    def on_evaluate_begin(self, trainer: TrainerLike) -> None:
        """Put the averages into the model."""
        self._swap()

    def on_evaluate_end(self, trainer: TrainerLike) -> None:
        """Put the weights back, bit for bit."""
        self._swap()

    def on_train_end(self, trainer: TrainerLike) -> None:
        """Leave the averages in the model."""
        with torch.no_grad():
            for weight, average in zip(self.weights, self.averages, strict=True):
                weight.copy_(average)

    def tensors(self) -> dict[str, Tensor]:
        """Return the averages by the names of their parameters."""
        return dict(zip(self.names, self.averages, strict=True))

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy the averages back; `CheckpointError` when they are not those of this model."""
        if set(tensors) != set(self.names):
            raise CheckpointError("The averages (EMA) of the checkpoint are not those of this model's parameters.")
        for name, average in zip(self.names, self.averages, strict=True):
            average.copy_(tensors[name])

    @torch.no_grad()
    def _swap(self) -> None:
        for weight, average in zip(self.weights, self.averages, strict=True):
            kept = weight.clone()
            weight.copy_(average)  # in place: a compiled or captured step holds on to the memory
            average.copy_(kept)


@callbacks.register
class ModelCheckpoint(Monitor):
    """Write weights as safetensors while training: the last epoch's, and those of the epoch with the best `monitor`.

    The files are `weights/last.safetensors`, unless `save_best_only`, and `weights/best.safetensors` in the run folder.
    With a `filepath`, that file is written instead after every epoch, or after every better one; it may hold `{epoch}`,
    `{epoch:03d}`, `{val_loss}` and `{val_loss:.4f}`, and any other column. With EMA they are the averaged weights.
    `fitkit` writes the best weights at the end of a run in any case.
    """

    writes_files = True

    def __init__(
        self,
        *,
        monitor: str = "val_loss",
        mode: Mode = "auto",
        save_best_only: bool = False,
        filepath: WritePath | None = None,
    ) -> None:
        super().__init__(monitor, mode)
        self.save_best_only = save_best_only
        self.filepath = filepath
        if filepath and re.search(r"[{}]", FIELD.sub("", filepath)):
            raise ValueError(f"{show(filepath)} may hold only {{epoch}}, {{epoch:03d}}, {{val_loss}}, {{val_loss:.4f}}")
        if filepath and not filepath.endswith(".safetensors"):
            raise ValueError(f'{show(filepath)} must end with ".safetensors"')

    def on_train_begin(self, trainer: TrainerLike) -> None:
        """Find the run folder, and every column that the file name holds; `SpecError` when one is missing."""
        super().on_train_begin(trainer)
        run_folder(trainer, self)
        for column in columns_in(self.filepath or ""):
            if column not in trainer.columns:
                raise SpecError(
                    f"ModelCheckpoint.filepath holds {{{column}}}, which is no column of this run. "
                    f"Choose from epoch, {listing(trainer.columns)}."
                )

    def on_epoch_end(self, trainer: TrainerLike) -> None:
        """Write what this epoch calls for."""
        best = self.improved(trainer) is True
        if self.filepath:
            names = [_filled(self.filepath, trainer)] if best or not self.save_best_only else []
        else:
            names = ["weights/best.safetensors"] * best + ["weights/last.safetensors"] * (not self.save_best_only)
        if names:
            with averaged(trainer):
                for name in names:
                    trainer.save(run_folder(trainer, self) / name)


@callbacks.register
class CSVLogger(Callback):
    """Write each epoch's row to a CSV file in the run folder; empty where nothing was measured.

    With `append`, rows of earlier fits in the file are kept. A resumed fit leaves no row twice.
    """

    writes_files = True
    remembers = ("start",)

    def __init__(self, *, filename: WritePath = "log.csv", separator: str = ",", append: bool = False) -> None:
        if len(separator) != 1 or separator in '\n\r"':
            raise ValueError(f'separator is {show(separator)}: give one character, such as "," or ";"')
        self.filename = filename
        self.separator = separator
        self.append = append
        self.start = 0  # where this fit begins in the file, in bytes
        self.begun = False

    def on_train_begin(self, trainer: TrainerLike) -> None:
        """Find the file."""
        path = run_folder(trainer, self) / self.filename
        self.start = path.stat().st_size if self.append and path.is_file() else 0
        self.begun = False

    def on_epoch_end(self, trainer: TrainerLike) -> None:
        """Add the row; the first time, every row that the history holds, in place of whatever follows the start."""
        path = run_folder(trainer, self) / self.filename
        rows = [trainer.history.last] if self.begun else list(trainer.history)
        text = io.StringIO()
        writer = csv.writer(text, delimiter=self.separator, lineterminator="\n")
        if not self.begun and not self.start:
            writer.writerow(["epoch", *trainer.columns])
        writer.writerows([["" if math.isnan(value) else value for value in row.values()] for row in rows])
        with written(path), path.open("ab") as file:
            if not self.begun:
                file.truncate(min(self.start, file.seek(0, 2)))
            file.write(text.getvalue().encode())
        self.begun = True


@contextmanager
def averaged(trainer: TrainerLike) -> Iterator[None]:
    """Put the averages of the fit's EMA into the model inside a `with`; without an EMA, leave the weights alone."""
    ema = next((callback for callback in trainer.callbacks if isinstance(callback, EMA)), Callback())
    ema.on_evaluate_begin(trainer)
    try:
        yield
    finally:
        ema.on_evaluate_end(trainer)


# {epoch} {epoch:03d} {column} {column:.4f}, and nothing else that str.format would do
FIELD = re.compile(r"\{epoch(?::(?P<width>0[1-9]d))?\}|\{(?!epoch\b)(?P<column>\w+)(?::(?P<digits>\.[1-9]f))?\}")


def columns_in(template: str) -> set[str]:
    """Return the columns that a `filepath` asks for, `epoch` aside."""
    return {match["column"] for match in FIELD.finditer(template)} - {None}


def _filled(template: str, trainer: TrainerLike) -> str:
    def fill(match: re.Match[str]) -> str:
        column = match["column"]
        if column is None:
            return format(trainer.epoch, match["width"] or "")
        value = trainer.row.get(column)
        return format(math.nan if value is None else value, match["digits"] or "")

    return FIELD.sub(fill, template)


@contextmanager
def written(path: Path) -> Iterator[None]:
    """Make the folder of `path` and turn what goes wrong in writing it into a `CheckpointError`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be written: {error}.") from error
