"""Fits so small that a test can do many: float64 modules, drawn data, and specs that name only what matters."""

import dataclasses
import random

import numpy
import torch
from torch import nn
from torch.utils.data import Dataset

import fitkit

SECTIONS = ("seed", "data", "splits", "loss", "metrics", "optimizer", "schedule", "callbacks")


def numbers(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def labels(top, *shape, seed=0):
    return torch.randint(top, shape, generator=torch.Generator().manual_seed(seed))


def linear(inputs, outputs, *tail, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(inputs, outputs), *tail).double()


def spec(lr=0.1, **fit):
    """Return a spec of one epoch by plain SGD; a fit key that is a section of the spec goes there.

    The data of these tests number their rows and stand in two parts on purpose, so they are not checked for that.
    """
    sections = {key: fit.pop(key) for key in list(fit) if key in SECTIONS}
    return {
        "optimizer": {"SGD": lr},
        "fit": {"epochs": 1, "batch_size": 4, "device": "cpu", "precision": "fp32", "check_data": False, **fit},
        **sections,
    }


def each_step(look):
    """Return a callback and the list to which it adds `look(trainer)` after each step."""
    seen = []
    return fitkit.LambdaCallback(on_step_end=lambda trainer: seen.append(look(trainer))), seen


def state_of(trainer):
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def same_bits(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def scaled(trainer, scale):
    """Return the trainer with the loss scale that fp16 has on a GPU."""
    scaler = None if scale is None else torch.amp.GradScaler("cpu", init_scale=scale)
    return dataclasses.replace(trainer, scaler=scaler)


def overflow(module, at):
    """Make the gradient of a module infinite in its backward pass number `at`, from 1."""
    passes = []

    def hook(gradient):
        passes.append(1)
        return torch.full_like(gradient, torch.inf) if len(passes) == at else gradient

    module.weight.register_hook(hook)


class Noisy(Dataset):
    """Samples (row, and noise from the three generators that a user's code may draw from) of two classes."""

    def __init__(self, rows=10):
        self.rows = rows

    def __len__(self):
        return self.rows

    def __getitem__(self, row):
        noise = [random.gauss(0, 1), numpy.random.randn(), torch.randn(()).item()]
        return torch.tensor([float(row), *noise], dtype=torch.float64), torch.tensor(row % 2)
