"""The transforms of x that a spec may name: fitted on the training rows, then an `Affine` module with fixed buffers."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from fitkit.data import Data
from fitkit.spec.table import Table

CHUNK = 1 << 24  # numbers that are taken to float64 at a time

transforms = Table("transform")


class Affine(nn.Module):
    """`(x - shift) * scale`, in the dtype of the buffers: (B, ...) -> (B, ...).

    The buffers broadcast against one sample. Where x is of a wider type (float64), the difference is taken in that
    first, so that a large offset cancels before it is rounded.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, shift: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("shift", shift)
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        """Return x moved by `shift` and multiplied by `scale`."""
        wide = torch.promote_types(x.dtype, self.shift.dtype)
        return (x.to(wide) - self.shift).to(self.scale.dtype) * self.scale


@transforms.register
def standardize(x: Tensor) -> nn.Module:
    """Give each feature mean 0 and standard deviation 1 over the training rows.

    A feature is a column of (N, D) or (N, T, D), or a channel of (N, C, H, W). The deviation is the population's, and
    taken in float64; a constant feature is only shifted. A feature that float32 cannot hold is a `ValueError`.
    """
    axes = _feature_axes(x)
    largest, smallest = x.amax(axes, keepdim=True), x.amin(axes, keepdim=True)
    start, count = torch.zeros_like(largest, dtype=torch.float64), x.numel() // largest.numel()
    mean = sum((part.sum(axes, keepdim=True) for part in _wide(x)), start) / count
    variance = sum(((part - mean).square().sum(axes, keepdim=True) for part in _wide(x)), start) / count
    # Rounding in the mean leaves a constant feature a deviation of some 1e-17; a division by it would be noise.
    return _affine(mean, torch.where(largest == smallest, 0.0, variance.sqrt()))


@transforms.register(primary="range")
def scale(x: Tensor, *, range: tuple[float, float] | None = None) -> nn.Module:
    """Bring x to [0, 1]: each feature by its smallest and largest training value, or all by `range`.

    Features are those of `standardize`. Bytes (uint8) are taken for pixels: 0 stays 0, and all of x is divided by its
    largest training value, which is 255 for most images. `range: [low, high]` says which values become 0 and 1.
    """
    if range is not None:
        low, high = (torch.full((1, 1), end, dtype=torch.float64) for end in range)
        if not (low < high).all():
            raise ValueError(f"range [{range[0]:g}, {range[1]:g}] does not rise from the value for 0 to that for 1")
    elif x.dtype is torch.uint8:
        low, high = torch.zeros(1, 1, dtype=torch.float64), x.max().double().reshape(1, 1)
    else:
        axes = _feature_axes(x)
        low, high = x.amin(axes, keepdim=True).double(), x.amax(axes, keepdim=True).double()
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


def _feature_axes(x: Tensor) -> tuple[int, ...]:
    """Return the axes to reduce: all but the channels of (N, C, H, W, …), all but the last of (N, T, D)."""
    if x.dim() < 4:
        return tuple(range(max(1, x.dim() - 1)))
    return (0, *range(2, x.dim()))


def _wide(x: Tensor) -> Iterator[Tensor]:
    for part in torch.split(x, max(1, CHUNK // max(1, x[0].numel()))):
        yield part.double()


def _affine(shift: Tensor, spread: Tensor) -> Affine:  # (1, ...), (1, ...) float64
    shift, spread = shift[0], spread[0]
    factor = torch.where(spread == 0, 1.0, 1 / spread)
    if not (shift.float().isfinite() & factor.float().isfinite() & (factor.float() > 0)).all():
        raise ValueError("x has a feature whose mean or spread is beyond float32: multiply or divide it beforehand")
    return Affine(shift.float(), factor.float())
