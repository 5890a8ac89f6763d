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
    codes = [_codes(*part) for part in ((x, train), (other, val))]
    shared = int(torch.isin(codes[1].cpu(), codes[0].cpu()).sum())
    return f"{shared} of {len(codes[1])} rows of val are duplicates of rows of train" if shared else ""


def _codes(x: Tensor, chosen: Tensor | None) -> Tensor:  # (N, ...), (n,) -> (n,) int64
    """Return a 64-bit code of each chosen row's bytes: equal ones have equal codes, others seldom."""
    chosen = torch.arange(len(x), device=x.device) if chosen is None else chosen.to(x.device)
    bytes_a_row = x[0].numel() * x.element_size()
    generator = torch.Generator().manual_seed(0)
    factors = (torch.randint(-(2**62), 2**62, (bytes_a_row,), generator=generator) * 2 + 1).to(x.device)
    codes = []
    for rows in torch.split(chosen, max(1, CHUNK // bytes_a_row)):  # a copy of all of them may not fit
        raw = x.index_select(0, rows).contiguous().view(len(rows), -1).view(torch.uint8)
        codes.append(((raw.long() + 1) * factors).sum(1))
    return torch.cat(codes)
