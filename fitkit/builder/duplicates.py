"""Rows that stand both in training and in validation: a model that knows them by heart looks better than it is."""

from __future__ import annotations

import torch
from torch import Tensor

MOST_BYTES = 1 << 28  # of x; beyond that counting would cost noticeable time
CHUNK = 1 << 22


def say_shared(train: Tensor, val: Tensor) -> str:  # (N, ...), (M, ...)
    """Return a line that counts the rows of val that train has too, or an empty one where none is, or x is large."""
    size = train.numel() * train.element_size()
    if size > MOST_BYTES or not len(train) or not len(val) or train[0].numel() == 0 or train.dtype != val.dtype:
        return ""
    shared = int(torch.isin(_codes(val), _codes(train)).sum())
    return f"{shared} of {len(val)} rows of val are duplicates of rows of train" if shared else ""


def _codes(x: Tensor) -> Tensor:  # (N, ...) -> (N,) int64
    """Return a 64-bit code of each row's bytes: equal rows have equal codes, others by chance one pair in 2^64."""
    raw = x.contiguous().flatten(1) if x.ndim > 1 else x.contiguous()[:, None]
    raw = raw.view(torch.uint8).flatten(1)
    generator = torch.Generator().manual_seed(0)
    factors = torch.randint(-(2**62), 2**62, (raw.shape[1],), generator=generator) * 2 + 1
    factors = factors.to(x.device)
    rows = max(1, CHUNK // raw.shape[1])
    return torch.cat([((part.long() + 1) * factors).sum(1) for part in torch.split(raw, rows)])
