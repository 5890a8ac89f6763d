"""What a person sees while a fit runs: a bar on a terminal, and a line an epoch on standard output."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fitkit.cross_validation import CrossValidation
from fitkit.errors import printable
from fitkit.history import History
from fitkit.parts.callback import Callback


class Bar(Callback):
    """A bar on standard error, redrawn ten times a second; nothing where that is not a terminal."""

    only_shows = True

    def on_epoch_begin(self, trainer: Any) -> None:
        """Start the bar of this epoch."""
        self.bar: Any = None
        self.shown = sys.stderr.isatty()

    def on_tick(self, trainer: Any) -> None:
        """Move the bar to where the epoch is; this never waits for the device. A short epoch has none."""
        if not self.shown or (self.bar is None and trainer.batch == trainer.train.per_epoch):
            return
        if self.bar is None:
            total = trainer.train.per_epoch
            name = f"epoch {trainer.epoch}"
            self.bar = tqdm(total=total, desc=name, leave=False, unit="batch", file=sys.stderr, mininterval=0)
        self.bar.update(trainer.batch - self.bar.n)

    def on_epoch_end(self, trainer: Any) -> None:
        """Take the bar away."""
        if self.bar is not None:
            self.bar.close()


class Lines(Callback):
    """One line an epoch on standard output, or one JSON object; the plan first and the result last.

    A fold of a cross-validation says which one it is; the plan is that of the first one that runs.
    """

    only_shows = True

    def __init__(self, as_json: bool = False, quiet: bool = False) -> None:
        self.as_json, self.quiet = as_json, quiet
        self.begun = False
        self.fold: int | None = None

    def on_train_begin(self, trainer: Any) -> None:
        """Show what will run, on standard error."""
        splits = None if trainer.spec is None else trainer.spec.splits
        self.fold = None if splits is None else splits.get("fold")
        if not self.quiet and not self.begun:
            print(printable(str(trainer)), file=sys.stderr)
            if trainer.tier.compiles:
                print("compiling takes up to a minute the first time; the next run starts compiled", file=sys.stderr)
        self.begun = True

    def on_epoch_end(self, trainer: Any) -> None:
        """Print the row of the epoch."""
        row = trainer.history.last
        if self.as_json:
            values = {"fold": self.fold, **row} if self.fold is not None else row
            print(json.dumps({key: None if math.isnan(v) else v for key, v in values.items()}), flush=True)
        elif not self.quiet:
            most = trainer.options.most_epochs
            epoch = f"{trainer.epoch:>{len(str(most))}}/{most}" if most else str(trainer.epoch)
            fold = "" if self.fold is None else f"fold {self.fold}  "
            print(f"{fold}epoch {epoch}  {_words(row)}", flush=True)

    def say_end(self, history: History, out: Path, worked: bool = True) -> None:
        """Print the best epoch, what the numbers say in one line, where the run is, and if it was finished before."""
        if not worked:
            print(f"{out}: this run is finished; nothing was done.", file=sys.stderr)
        if self.as_json:
            return
        if self.quiet:
            print(out)
            return
        peak = f", at most {history.peak_memory_mb:,.0f} MB" if history.peak_memory_mb else ""
        print(f"{printable(history.stopped)}, {history.seconds:.1f} s{peak}")
        if history.best_epoch and history.monitor:
            row = history.best(history.monitor)
            values = ", ".join(f"{k} {v:.4g}" for k, v in row.items() if k.startswith("val_"))
            print(f"best epoch {history.best_epoch} by {history.monitor}: {values}")
        print(f"diagnosis: {printable(history.diagnose().verdict)}")
        print(f"run: {out}")

    def say_folds(self, found: CrossValidation, out: Path, worked: bool) -> None:
        """Print the values of all folds and their mean, where the runs are, and whether all were finished before."""
        if not worked:
            print(f"{out}: all {len(found)} folds are finished; nothing was done.", file=sys.stderr)
        if self.as_json:
            print(json.dumps(found.to_plain()))
        elif self.quiet:
            print(out)
        else:
            print(f"{printable(str(found))}\nruns: {out}")


def _words(row: dict[str, float]) -> str:
    hidden = ("epoch", "epoch_seconds")
    words = [f"{name} {value:.4g}" for name, value in row.items() if name not in hidden and not math.isnan(value)]
    return "  ".join([*words, f"{row['epoch_seconds']:.2f} s"])
