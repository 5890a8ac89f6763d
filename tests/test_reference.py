"""The engine's numbers against a loop written by hand: parameters and losses in float64, epoch by epoch."""

import copy
import math
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from reference_loop import decayed, train, warmup_cosine
from torch import nn

import fitkit
from fitkit.data import Data
from fitkit.engine.seeds import SPLIT, derive
from fitkit.parts.splits import random

EPOCHS, SEED, ROWS = 3, 7, 53
CLOSE = {"rtol": 1e-10, "atol": 1e-13}
WEIGHTS = torch.tensor([0.3, 1.7, 2.9], dtype=torch.float64)  # of classes: no float32 holds them exactly


def numbers(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(math.prod(shape)))


def whole(top, *shape):
    return torch.randint(top, shape, generator=torch.Generator().manual_seed(sum(shape)))


def network(*sizes, tail=()):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        inner = [nn.Linear(sizes[0], sizes[1]), nn.Tanh(), nn.LayerNorm(sizes[1]), nn.Linear(*sizes[1:])]
        return nn.Sequential(*inner, *tail).double()


def unevenly_masked(top, rows, length):
    """Return classes of which each row keeps its first 1 to `length` only."""
    kept = 1 + whole(length, rows, 1)
    return whole(top, rows, length).where(torch.arange(length) < kept, -100)


@dataclass
class Task:
    x: torch.Tensor
    y: torch.Tensor
    module: nn.Module
    loss_name: Any
    loss: Any  # torch's mean
    optimizer: dict  # as a spec says it
    torch_optimizer: Any  # module -> optimizer
    lr: float
    weigh: Any = torch.numel
    fit: dict = field(default_factory=dict)
    warmup: int = 0  # 0: no schedule
    ema: float | None = None

    @property
    def window(self):
        return self.fit["batch_size"] * self.fit.get("accumulate", 1)

    def multiplier(self, rows):
        total = EPOCHS * math.ceil(rows / self.window)
        return lambda step: self.lr * (warmup_cosine(step, self.warmup, total) if self.warmup else 1.0)


TASKS = {
    "regression of one value": Task(
        x=numbers(ROWS, 4),
        y=numbers(ROWS),
        module=network(4, 6, 1, tail=[nn.Flatten(0)]),
        loss_name="mse_loss",
        loss=F.mse_loss,
        optimizer={"SGD": {"lr": 0.05, "momentum": 0.9}},
        torch_optimizer=lambda m: torch.optim.SGD(m.parameters(), momentum=0.9),
        lr=0.05,
        fit={"batch_size": 8},
    ),
    "regression of three values": Task(
        x=numbers(ROWS, 4),
        y=numbers(ROWS, 3),
        module=network(4, 6, 3),
        loss_name="mse_loss",
        loss=F.mse_loss,
        optimizer={"AdamW": {"lr": 0.02, "weight_decay": 0.3}},
        torch_optimizer=lambda m: torch.optim.AdamW(decayed(m, 0.3)),
        lr=0.02,
        fit={"batch_size": 5, "accumulate": 3, "clip_norm": 0.5},
        warmup=3,
    ),
    "binary": Task(
        x=numbers(ROWS, 4),
        y=whole(2, ROWS),
        module=network(4, 6, 1, tail=[nn.Flatten(0)]),
        loss_name={"binary_cross_entropy_with_logits": {"pos_weight": 1.7}},
        loss=lambda o, y: F.binary_cross_entropy_with_logits(
            o, y.double(), pos_weight=torch.tensor(1.7, dtype=torch.float64)
        ),
        optimizer={"Adam": {"lr": 0.01, "weight_decay": 0.1}},
        torch_optimizer=lambda m: torch.optim.Adam(decayed(m, 0.1)),
        lr=0.01,
        fit={"batch_size": 10, "clip_norm": 0.1},
    ),
    "multi-class": Task(
        x=numbers(ROWS, 4),
        y=whole(3, ROWS),
        module=network(4, 6, 3),
        loss_name="cross_entropy",
        loss=F.cross_entropy,
        optimizer={"SGD": {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.05, "nesterov": True}},
        torch_optimizer=lambda m: torch.optim.SGD(decayed(m, 0.05), momentum=0.9, nesterov=True),
        lr=0.1,
        fit={"batch_size": 16},
        warmup=2,
    ),
    "masked sequence": Task(
        x=numbers(ROWS, 7, 4),
        y=unevenly_masked(5, ROWS, 7),
        module=network(4, 6, 5),
        loss_name={"cross_entropy": {"ignore_index": -100}},
        loss=lambda o, y: F.cross_entropy(o.flatten(0, 1), y.flatten(), ignore_index=-100),
        optimizer={"AdamW": {"lr": 0.02, "weight_decay": 0.1}},
        torch_optimizer=lambda m: torch.optim.AdamW(decayed(m, 0.1)),
        lr=0.02,
        weigh=lambda y: (y != -100).sum(),
        fit={"batch_size": 4, "accumulate": 3},
        warmup=4,
    ),
    "class weights": Task(
        x=numbers(ROWS, 4),
        y=whole(3, ROWS),
        module=network(4, 6, 3),
        loss_name={"cross_entropy": {"class_weight": WEIGHTS.tolist()}},
        loss=lambda o, y: F.cross_entropy(o, y, WEIGHTS),
        optimizer={"SGD": {"lr": 0.1, "momentum": 0.5}},
        torch_optimizer=lambda m: torch.optim.SGD(m.parameters(), momentum=0.5),
        lr=0.1,
        weigh=lambda y: WEIGHTS[y].sum(),
        fit={"batch_size": 3, "accumulate": 3, "clip_norm": 1.0},
    ),
    "averaged weights": Task(
        x=numbers(ROWS, 4),
        y=whole(3, ROWS),
        module=network(4, 6, 3),
        loss_name="cross_entropy",
        loss=F.cross_entropy,
        optimizer={"AdamW": {"lr": 0.05}},
        torch_optimizer=lambda m: torch.optim.AdamW(decayed(m, 0.01)),
        lr=0.05,
        fit={"batch_size": 6, "accumulate": 3},
        ema=0.8,
    ),
}


def by_hand(task, data, val):
    module = copy.deepcopy(task.module)
    return train(
        module,
        data,
        val,
        task.loss,
        task.weigh,
        task.torch_optimizer(module),
        lr=task.multiplier(len(data[0])),
        batch=task.window,
        epochs=EPOCHS,
        seed=SEED,
        clip_norm=task.fit.get("clip_norm"),
        ema=task.ema,
    )


def by_fitkit(task, data, **spec):
    """Return the history, the weights at the end of each epoch, and those that the fit left in the module."""
    spec |= {"seed": SEED, "loss": task.loss_name, "optimizer": task.optimizer}
    spec["fit"] = {"epochs": EPOCHS, "device": "cpu", "precision": "fp32", **task.fit}
    if task.warmup:
        spec["schedule"] = {"cosine": {"warmup": task.warmup}}
    if task.ema is not None:
        spec["callbacks"] = {"EMA": {"decay": task.ema}}
    module, weights = copy.deepcopy(task.module), []
    keep = fitkit.LambdaCallback(
        on_epoch_end=lambda t: weights.append({name: p.detach().clone() for name, p in t.model.named_parameters()})
    )
    history = fitkit.Model(module).fit(spec, data=data, callbacks=[keep])
    return history, weights, dict(module.named_parameters())


def parts_of(task):
    return (task.x[:43], task.y[:43]), (task.x[43:], task.y[43:])


def agree(found, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], **CLOSE)


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_parameters_agree_with_the_loop_by_hand_after_each_epoch(task):
    data, val = parts_of(task)
    expected = by_hand(task, data, val)
    _, weights, _ = by_fitkit(task, {"train": data, "val": val})
    assert len(weights) == EPOCHS
    for found, epoch in zip(weights, expected, strict=True):
        agree(found, epoch.weights)


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_losses_and_learning_rates_agree_with_the_loop_by_hand(task):
    data, val = parts_of(task)
    expected = by_hand(task, data, val)
    history, _, _ = by_fitkit(task, {"train": data, "val": val})
    for column in ("loss", "val_loss", "lr"):
        by_epoch = [getattr(epoch, column) for epoch in expected]
        assert history.history[column] == pytest.approx(by_epoch, rel=1e-10, abs=0), column


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_fit_leaves_the_weights_of_the_best_epoch_by_hand(task):
    data, val = parts_of(task)
    expected = by_hand(task, data, val)
    _, _, left = by_fitkit(task, {"train": data, "val": val})
    agree(left, min(expected, key=lambda epoch: epoch.val_loss).averages)


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_without_validation_fit_leaves_the_weights_of_the_last_epoch(task):
    data, val = parts_of(task)
    _, _, left = by_fitkit(task, {"train": data})
    agree(left, by_hand(task, data, val)[-1].averages)


def test_a_random_split_trains_on_its_train_rows_and_validates_on_its_val_rows():
    task = TASKS["multi-class"]
    rows = random(Data(x=task.x, y=task.y, target="classes"), derive(SEED, SPLIT), val=0.25)
    parts = [(task.x[rows[part]], task.y[rows[part]]) for part in ("train", "val")]
    expected = by_hand(task, *parts)
    history, weights, _ = by_fitkit(task, (task.x, task.y), splits={"random": {"val": 0.25}})
    agree(weights[-1], expected[-1].weights)
    assert history.history["val_loss"] == pytest.approx([epoch.val_loss for epoch in expected], rel=1e-10)


def test_balanced_class_weights_are_those_of_the_training_rows():
    data, val = parts_of(TASKS["class weights"])
    counts = data[1].bincount().double()
    weights = len(data[1]) / (3 * counts)  # n / (C * count)
    task = replace(
        TASKS["class weights"],
        loss_name={"cross_entropy": {"class_weight": "balanced"}},
        loss=lambda o, y: F.cross_entropy(o, y, weights),
        weigh=lambda y: weights[y].sum(),
    )
    expected = by_hand(task, data, val)
    history, found, _ = by_fitkit(task, {"train": data, "val": val})
    agree(found[-1], expected[-1].weights)
    assert history.history["val_loss"] == pytest.approx([epoch.val_loss for epoch in expected], rel=1e-10)


def test_a_dataset_read_by_a_loader_gives_the_same_numbers_as_tensors():
    task = TASKS["masked sequence"]
    parts = dict(zip(("train", "val"), parts_of(task), strict=True))
    datasets = {name: torch.utils.data.TensorDataset(*part) for name, part in parts.items()}
    expected, weights, _ = by_fitkit(task, parts)
    history, found, _ = by_fitkit(task, datasets)
    assert history.history["val_loss"] == pytest.approx(expected.history["val_loss"], rel=1e-12)
    agree(found[-1], weights[-1])
