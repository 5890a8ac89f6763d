"""Callbacks that send each epoch's row to a tracker. A tracker that fails warns once and never stops a run."""

from __future__ import annotations

import math
import warnings
from typing import Any

from fitkit.errors import SpecError
from fitkit.parts.callback import Callback, TrainerLike, run_folder
from fitkit.spec.table import Table
from fitkit.spec.types import WritePath

trackers = Table("callback")


@trackers.register
class TensorBoard(Callback):
    """Write every column to TensorBoard, one point an epoch.

    The event files lie in `log_dir` in the run folder: `tensorboard --logdir runs` shows all runs. A resumed fit hides
    the points that it repeats.
    """

    writes_files = True

    def __init__(self, *, log_dir: WritePath = "tensorboard") -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise SpecError('TensorBoard needs an extra: pip install "fitkit[tensorboard]".') from None
        self.log_dir = log_dir
        self.open: Any = SummaryWriter
        self.writer: Any = None
        self.failed = False

    def on_train_begin(self, trainer: TrainerLike) -> None:
        """Forget the last fit; `SpecError` when there is no run folder."""
        run_folder(trainer, self)
        self.writer, self.failed = None, False

    def on_epoch_end(self, trainer: TrainerLike) -> None:
        """Write the row's measured values."""
        if self.failed:
            return
        try:
            if self.writer is None:
                self.writer = self.open(str(run_folder(trainer, self) / self.log_dir), purge_step=trainer.epoch)
            for column, value in trainer.row.items():
                if value is not None and not math.isnan(value):
                    self.writer.add_scalar(column, value, trainer.epoch)
            self.writer.flush()
        except Exception as error:  # whatever it is, the run is worth more than its log
            self._give_up(error)

    def on_train_end(self, trainer: TrainerLike) -> None:
        """Close the file."""
        try:
            if self.writer is not None and not self.failed:
                self.writer.close()
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self.failed = True
        warnings.warn(f"TensorBoard stopped logging, the run goes on: {error}", RuntimeWarning, stacklevel=2)
