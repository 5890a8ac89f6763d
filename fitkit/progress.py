"""What a person sees while a fit runs: a bar on a terminal, and a line an epoch on standard output."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fitkit.errors import printable
from fitkit.history import History
from fitkit.parts.callback import Callback


class Bar(Callback):
    """A bar on standard error, redrawn ten times a second; nothing where that is not a terminal."""

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
    """One line an epoch on standard output, or one JSON object; the plan first and the result last."""

    def __init__(self, as_json: bool = False, quiet: bool = False) -> None:
        self.as_json, self.quiet = as_json, quiet

    def on_train_begin(self, trainer: Any) -> None:
        """Show what will run, on standard error."""
        if not self.quiet:
            print(printable(str(trainer)), file=sys.stderr)
            if trainer.tier.compiles:
                print("compiling takes up to a minute the first time; the next run starts compiled", file=sys.stderr)

    def on_epoch_end(self, trainer: Any) -> None:
        """Print the row of the epoch."""
        row = trainer.history.last
        if self.as_json:
            print(json.dumps({key: None if math.isnan(v) else v for key, v in row.items()}), flush=True)
        elif not self.quiet:
            most = trainer.options.most_epochs
            epoch = f"{trainer.epoch:>{len(str(most))}}/{most}" if most else str(trainer.epoch)
            print(f"epoch {epoch}  {_words(row)}", flush=True)

    def say_end(self, history: History, out: Path) -> None:
        """Print the best epoch, what the numbers say in one line, and where the run is."""
        if self.as_json:
            return
        if self.quiet:
            print(out)
            return
        peak = f", at most {history.peak_memory_mb:,.0f} MB" if history.peak_memory_mb else ""
        print(f"{history.stopped}, {history.seconds:.1f} s{peak}")
        if history.best_epoch and history.monitor:
            row = history.best(history.monitor)
            values = ", ".join(f"{k} {v:.4g}" for k, v in row.items() if k.startswith("val_"))
            print(f"best epoch {history.best_epoch} by {history.monitor}: {values}")
        print(f"diagnosis: {printable(history.diagnose().verdict)}")
        print(f"run: {out}")


def _words(row: dict[str, float]) -> str:
    hidden = ("epoch", "epoch_seconds")
    words = [f"{name} {value:.4g}" for name, value in row.items() if name not in hidden and not math.isnan(value)]
    return "  ".join([*words, f"{row['epoch_seconds']:.2f} s"])
