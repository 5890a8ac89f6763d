"""Rows that stand both in training and in validation: a model that knows them by heart looks better than it is."""

from __future__ import annotations

import torch
from torch import Tensor

MOST_BYTES = 1 << 28  # of x; beyond that counting would cost noticeable time
CHUNK = 1 << 22


def say_shared(x: Tensor, train: Tensor | None, other: Tensor, val: Tensor | None) -> str:
    """Return a line that counts the rows of val that train has too, or an empty one where none is, or one is large.

    Train is the rows `train` of x (N, ...), val the rows `val` of `other` (M, ...); None stands for all rows.
    """
    size = max(x.numel(), other.numel()) * x.element_size()
    if size > MOST_BYTES or not len(x) or not len(other) or x[0].numel() == 0 or x.dtype != other.dtype:
        return ""
    codes = [_codes(t if rows is None else t[rows.to(t.device)]) for t, rows in ((x, train), (other, val))]
    shared = int(torch.isin(codes[1].cpu(), codes[0].cpu()).sum())
    return f"{shared} of {len(codes[1])} rows of val are duplicates of rows of train" if shared else ""


def _codes(x: Tensor) -> Tensor:  # (N, ...) -> (N,) int64
    """Return a 64-bit code of each row's bytes: equal rows have equal codes, others by chance one pair in 2^64."""
    raw = x.contiguous().flatten(1) if x.ndim > 1 else x.contiguous()[:, None]
    raw = raw.view(torch.uint8).flatten(1)
    generator = torch.Generator().manual_seed(0)
    factors = torch.randint(-(2**62), 2**62, (raw.shape[1],), generator=generator) * 2 + 1
    factors = factors.to(x.device)
    rows = max(1, CHUNK // raw.shape[1])
    return torch.cat([((part.long() + 1) * factors).sum(1) for part in torch.split(raw, rows)])
