"""The transforms of x that a spec may name: fitted on the training rows, then an `Affine` module with fixed buffers."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from fitkit.data import Data, Rows
from fitkit.spec.table import Table

ROUNDED = (torch.float64, torch.int32, torch.int64)  # float32 cannot hold all of their values
CHUNK = 1 << 20  # numbers that are taken to float64 at a time

transforms = Table("transform")


class Affine(nn.Module):
    """`(x - shift) * scale` in `dtype`: (B, ...) -> (B, ...).

    The buffers broadcast against one sample and are kept in float64 (float32 where the device has no wider). Where x
    is float64 or holds large whole numbers the difference is taken in that, so that a large offset cancels before
    anything is rounded; otherwise in float32, in which x is exact.
    """

    shift: Tensor
    scale: Tensor
    narrow_shift: Tensor
    narrow_scale: Tensor

    def __init__(self, shift: Tensor, scale: Tensor, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.dtype = dtype
        self.narrow = torch.promote_types(dtype, torch.float32)
        self.wide = torch.float32 if shift.device.type == "mps" else torch.float64
        self.register_buffer("shift", shift.to(self.wide))
        self.register_buffer("scale", scale.to(self.wide))
        self.register_buffer("narrow_shift", shift.to(self.narrow), persistent=False)
        self.register_buffer("narrow_scale", scale.to(self.narrow), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return x moved by `shift` and multiplied by `scale`."""
        if x.dtype in ROUNDED:
            return ((x.to(self.wide) - self.shift) * self.scale).to(self.dtype)
        return ((x.to(self.narrow) - self.narrow_shift) * self.narrow_scale).to(self.dtype)

    def placed(self, device: torch.device, dtype: torch.dtype) -> Affine:
        """Return the same transform on a device, with its results in a dtype; MPS has no float64."""
        wide = torch.float32 if device.type == "mps" else torch.float64
        return Affine(self.shift.to(wide).to(device), self.scale.to(wide).to(device), dtype)


@transforms.register(in_pieces=True)
def standardize(x: Tensor | Rows) -> Affine:
    """Give each feature mean 0 and standard deviation 1 over the training rows.

    A feature is a column of (N, D) or (N, T, D), or a channel of (N, C, H, W). The deviation is the population's, and
    taken in float64; a constant feature is only shifted. A feature that float32 cannot hold is a `ValueError`.
    """
    axes = _feature_axes(x)
    largest, smallest, total = _ends_and_sum(x, axes)
    mean = total / (math.prod(x.shape) // largest.numel())
    squares = sum(((p.double() - mean).square().sum(axes, keepdim=True) for p in _pieces(x)), torch.zeros_like(mean))
    variance = squares / (math.prod(x.shape) // largest.numel())
    # Rounding in the mean leaves a constant feature a deviation of some 1e-17; a division by it would be noise.
    return _affine(mean, torch.where(largest == smallest, 0.0, variance.sqrt()))


@transforms.register(primary="range", in_pieces=True)
def scale(x: Tensor | Rows, *, range: tuple[float, float] | None = None) -> Affine:
    """Bring x to [0, 1]: each feature by its smallest and largest training value, or all by `range`.

    Features are those of `standardize`. Bytes (uint8) are taken for pixels: 0 stays 0, and all of x is divided by its
    largest training value, which is 255 for most images. `range: [low, high]` says which values become 0 and 1.
    """
    if range is not None:
        low, high = (torch.full((1, 1), end, dtype=torch.float64) for end in range)
        if not (low < high).all():
            raise ValueError(f"range [{range[0]:g}, {range[1]:g}] does not rise from the value for 0 to that for 1")
    elif x.dtype is torch.uint8:
        high = torch.stack([part.max() for part in _pieces(x)]).max().double().reshape(1, 1)
        low = torch.zeros_like(high)
    else:
        high, low, _ = (end.double() for end in _ends_and_sum(x, _feature_axes(x)))
    return _affine(low, high - low)


def default_transform(data: Data) -> str | None:
    """Return the name of the transform for data whose spec says "auto"; None for token ids and for what is no table.

    Floats in a table (N, D) are standardized, bytes are scaled.
    """
    if data.vocabulary is not None:
        return None
    if data.x.dtype is torch.uint8:
        return "scale"
    return "standardize" if data.x.is_floating_point() and data.x.dim() <= 2 else None


def _feature_axes(x: Tensor | Rows) -> tuple[int, ...]:
    """Return the axes to reduce: all but the channels of (N, C, H, W, …), all but the last of (N, T, D)."""
    if x.dim() < 4:
        return tuple(range(max(1, x.dim() - 1)))
    return (0, *range(2, x.dim()))


def _pieces(x: Tensor | Rows) -> Iterator[Tensor]:
    yield from x.split(max(1, CHUNK // max(1, math.prod(x.shape[1:]))))


def _ends_and_sum(x: Tensor | Rows, axes: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the largest and smallest value of each feature, and its sum in float64, in one pass."""
    found: tuple[Tensor, Tensor, Tensor] | None = None
    for part in _pieces(x):
        high, low, total = part.amax(axes, True), part.amin(axes, True), part.double().sum(axes, True)
        if found is not None:
            high, low, total = torch.maximum(high, found[0]), torch.minimum(low, found[1]), found[2] + total
        found = high, low, total
    assert found is not None
    return found


def _affine(shift: Tensor, spread: Tensor) -> Affine:  # (1, ...), (1, ...) float64
    shift, spread = shift[0], spread[0]
    factor = torch.where(spread == 0, 1.0, 1 / spread)
    if not (shift.float().isfinite() & factor.float().isfinite() & (factor.float() > 0)).all():
        raise ValueError("x has a feature whose mean or spread is beyond float32: multiply or divide it beforehand")
    return Affine(shift, factor)
