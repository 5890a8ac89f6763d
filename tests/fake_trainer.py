"""A trainer that plays scripted rows to callbacks, for their tests."""

import json
import math
import typing
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from fitkit.engine.weights import save
from fitkit.history import History
from fitkit.parts.callback import followers, overridden

NAN = math.nan
DIRECTIONS = {"loss": "min", "val_loss": "min", "val_accuracy": "max"}


@dataclass
class FakeTrainer:
    """Plays scripted rows; each epoch takes `steps` steps, which `move` makes and whose numbers in `skipped` fail."""

    rows: list
    callbacks: list
    out: Path | None = None
    model: nn.Module = field(default_factory=lambda: nn.Linear(1, 1))
    lr: float = 1.0
    steps: int = 1
    skipped: frozenset = frozenset()
    move: typing.Callable = lambda model: None
    lr_factor: float = 1.0
    epoch: int = 0
    step: int = 0
    stopped: str = ""
    checkpoint: Path | None = None

    def __post_init__(self):
        self.columns = tuple(self.rows[0])
        self.history = History(self.columns, DIRECTIONS)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=self.lr)
        self.row = {}
        self.lrs = []

    def running_loss(self):
        return self.scripted.get("loss", 0.0)

    def direction(self, column):
        return DIRECTIONS[column]

    def save(self, path):
        save(path, self.model.state_dict(), None, {})

    def stop(self, reason):
        self.stopped = reason

    def call(self, hook):
        for method in overridden(self.callbacks, hook):
            method(self)

    def epochs(self, first=0):
        attempt = first * self.steps
        for row in self.rows[first:]:
            self.epoch += 1
            self.scripted = row
            self.call("on_epoch_begin")
            self.optimizer.param_groups[0]["lr"] = self.lr * self.lr_factor
            self.lrs.append(self.lr * self.lr_factor)
            for _ in range(self.steps):
                if attempt not in self.skipped:
                    self.move(self.model)
                    for callback in followers(self.callbacks):
                        callback.after_update()
                    self.step += 1
                self.call("on_step_end")
                attempt += 1
            self.call("on_tick")
            self.call("on_evaluate_begin")
            self.call("on_evaluate_end")
            self.row = row
            self.history.append(row)
            self.call("on_epoch_end")
            if self.stopped:
                break

    def fit(self):
        self.call("on_train_begin")
        self.epochs()
        self.call("on_train_end")
        return self


def fit(callback, rows, **more):
    return FakeTrainer(rows, [callback], **more).fit()


def series(column, values):
    return [{column: value} for value in values]


def checkpointed(callback):
    """What a resumed process gets: the memory as JSON text and as tensors."""
    state = json.loads(json.dumps(callback.state_dict(), allow_nan=False))
    return state, {name: tensor.clone() for name, tensor in callback.tensors().items()}


def count_up(model):
    with torch.no_grad():
        model.weight.fill_(float(model.weight) + 1)


def counter():
    model = nn.Linear(1, 1)
    nn.init.zeros_(model.weight)
    return model
