"""A training loop written by hand in plain PyTorch, against which the engine's numbers are held.

Only the order of rows comes from fitkit: it says what is computed. An accumulated step is written here as what it
must equal, one batch as large as the whole window, and an evaluation as one call on the whole validation set.
"""

import copy
import math
from typing import NamedTuple

import torch

from fitkit.engine.seeds import order


class Epoch(NamedTuple):
    weights: dict  # after the last step of the epoch
    averages: dict  # their exponential moving averages; the weights themselves without `ema`
    loss: float
    val_loss: float
    lr: float  # of the last step


def decayed(module, weight_decay):
    matrices = [p for p in module.parameters() if p.ndim >= 2]
    vectors = [p for p in module.parameters() if p.ndim < 2]  # biases and norms
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def warmup_cosine(step, warmup, total):
    if step < warmup:
        return (step + 1) / warmup
    return (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2


def train(module, data, val, loss, weigh, optimizer, *, lr, batch, epochs=3, seed=0, clip_norm=None, ema=None):
    """Train `module` in place: `loss` is torch's mean, `weigh` what it divides by, `lr` a function of steps taken."""
    average, step, record = copy.deepcopy(module), 0, []
    for epoch in range(1, epochs + 1):
        total = count = 0.0
        for rows in order(torch.arange(len(data[0])), seed, epoch).split(batch):
            for group in optimizer.param_groups:
                group["lr"] = lr(step)
            value = loss(module.train()(data[0][rows]), data[1][rows])
            optimizer.zero_grad()
            value.backward()
            if clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(module.parameters(), clip_norm)
            optimizer.step()
            step += 1
            with torch.no_grad():
                for mean, weight in zip(average.parameters(), module.parameters(), strict=True):
                    mean.copy_(weight if ema is None else ema * mean + (1 - ema) * weight)
            total, count = total + value.item() * float(weigh(data[1][rows])), count + float(weigh(data[1][rows]))
        with torch.no_grad():
            val_loss = loss(average.eval()(val[0]), val[1]).item()
        states = [copy.deepcopy(dict(m.named_parameters())) for m in (module, average)]
        record.append(Epoch(*states, total / count, val_loss, lr(step - 1)))
    return record
