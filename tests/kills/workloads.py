"""Twelve small runs, of which every pair of choices (optimizer, accumulation, schedule, …) is in at least one."""

import random
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from typing import NamedTuple

import numpy
import torch
from torch import nn
from torch.utils.data import Dataset

SAMPLES, VALIDATION, FEATURES, CLASSES = 203, 60, 6, 3
BATCH_SIZE = 16  # 203 = 12 * 16 + 11: the last batch is smaller


class Workload(NamedTuple):
    optimizer: str
    accumulate: int
    schedule: str
    averages: bool
    precision: str
    compile: bool
    read: str  # "arrays", or a Dataset read by so many workers

    def __str__(self):
        words = [self.optimizer, f"accumulate {self.accumulate}", self.schedule, "EMA" * self.averages, self.precision]
        return ", ".join(filter(None, [*words, "compiled" if self.compile else "eager", self.read]))

    @property
    def workers(self):
        return int(self.read[0]) if self.read != "arrays" else 0

    def spec(self):
        callbacks = {"EarlyStopping": {"patience": 9}}
        if self.averages:
            callbacks["EMA"] = {"decay": 0.9}
        plateau = {"ReduceLROnPlateau": {"patience": 2, "factor": 0.5}}
        return {
            "seed": 11,
            "optimizer": {"SGD": {"lr": 0.05, "momentum": 0.9}} if self.optimizer == "SGD" else {"AdamW": {"lr": 0.01}},
            "schedule": plateau if self.schedule == "plateau" else {"cosine": {"warmup": 5}},
            "metrics": ["accuracy"],
            "callbacks": callbacks,
            "fit": {
                "epochs": 24,
                "batch_size": BATCH_SIZE,
                "accumulate": self.accumulate,
                "clip_norm": 1.0,
                "precision": self.precision,
                "compile": self.compile,
                "device": "cpu",
                "workers": self.workers,
            },
        }

    def parts(self):
        """Return the module and the data that are handed to fit."""
        train, val = samples(SAMPLES, 1), samples(VALIDATION, 2)
        if self.read != "arrays":
            train, val = Augmented(*train), Augmented(*val)
        return network(), {"train": train, "val": val}


EAGER, COMPILED = False, True
WORKLOADS = (
    Workload("AdamW", 1, "plateau", True, "fp32", EAGER, "2 workers"),
    Workload("SGD", 3, "cosine", False, "bf16", EAGER, "0 workers"),
    Workload("SGD", 3, "cosine", True, "fp32", EAGER, "2 workers"),
    Workload("AdamW", 1, "plateau", False, "bf16", EAGER, "0 workers"),
    Workload("AdamW", 3, "cosine", False, "bf16", EAGER, "arrays"),
    Workload("SGD", 1, "plateau", True, "bf16", EAGER, "2 workers"),
    Workload("AdamW", 3, "plateau", False, "fp32", EAGER, "0 workers"),
    Workload("SGD", 1, "cosine", True, "fp32", EAGER, "2 workers"),
    Workload("AdamW", 1, "cosine", False, "fp32", COMPILED, "arrays"),
    Workload("SGD", 3, "plateau", True, "bf16", COMPILED, "arrays"),
    Workload("SGD", 1, "cosine", True, "fp32", COMPILED, "0 workers"),
    Workload("AdamW", 3, "plateau", False, "bf16", COMPILED, "2 workers"),
)


def uncovered_pairs():
    """Return the pairs of choices that no workload has together."""
    choices = [sorted({workload[i] for workload in WORKLOADS}, key=str) for i in range(len(Workload._fields))]
    return [
        (one, other)
        for i, j in combinations(range(len(choices)), 2)
        for one in choices[i]
        for other in choices[j]
        if not any(workload[i] == one and workload[j] == other for workload in WORKLOADS)
    ]


def samples(count, seed):
    """Return x, whose first column is the sample's number, and y; a third of the labels are noise."""
    source = torch.Generator().manual_seed(seed)
    x = torch.randn(count, FEATURES, generator=source)
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0.5).long()
    noise = torch.rand(count, generator=source) < 0.33
    y = y.where(~noise, torch.randint(CLASSES, (count,), generator=source))
    return torch.cat([torch.arange(count)[:, None].float(), x], dim=1), y


@dataclass
class Augmented(Dataset):
    """Samples with noise from all three generators that the code of a user may draw from."""

    x: torch.Tensor
    y: torch.Tensor

    def __len__(self):
        return len(self.x)

    def __getitem__(self, row):
        noise = 0.1 * torch.randn(FEATURES) + random.gauss(0, 0.05) + numpy.random.normal(0, 0.05)
        return torch.cat([self.x[row, :1], self.x[row, 1:] + noise.float()]), self.y[row]


class WithoutNumber(nn.Module):
    """Hides the sample's number, which only the log reads."""

    def forward(self, x):  # (B, 1 + F) -> (B, F)
        return x[:, 1:]


def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            WithoutNumber(),
            nn.Linear(FEATURES, 24),
            nn.BatchNorm1d(24),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(24, CLASSES),
        )


@cache
def by_name(name):
    return next(workload for workload in WORKLOADS if str(workload) == name)
