"""The augmentations that a spec may name: what training samples go through, differently in each epoch.

Each is a pure function of a batch and of random numbers, `(x, draw, *, arguments) -> x`, of the same shape: `draw(n)`
gives n numbers in [0, 1) for each sample, (B, n), the same ones at every call. They are a function of the seed, the
epoch and the sample's row. No sample is looked at in Python, and nothing waits for the device. Samples that an
augmentation cannot take are a `ValueError` in plain words; the caller adds where the spec asked for it.

Facts of an entry, for whoever reads the table:

    units    "input": the function takes a tensor after `draw`, what 1 in the model's input is in x as the source gives
             it, for each feature; left out: it needs no units
    values   true where x is returned in floating point; left out: in its own dtype
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from fitkit.spec.table import Table
from fitkit.spec.types import Positive, PositiveInt, Probability

Draw = Callable[[int], Tensor]

augmentations = Table("augmentation")


@augmentations.register(primary="direction")
def random_flip(
    x: Tensor,  # (B, C, H, W)
    draw: Draw,
    *,
    direction: Literal["horizontal", "vertical", "both"] = "horizontal",
    p: Probability = 0.5,
) -> Tensor:
    """Mirror an image with probability `p`: left to right, upside down, or each of both on its own."""
    _image("random_flip", x)
    chosen = draw(2)[:, :, None, None, None] < p
    if direction != "vertical":
        x = torch.where(chosen[:, 0], x.flip(3), x)
    if direction != "horizontal":
        x = torch.where(chosen[:, 1], x.flip(2), x)
    return x


@augmentations.register(primary="padding")
def random_crop(
    x: Tensor,  # (B, C, H, W)
    draw: Draw,
    *,
    padding: PositiveInt,
    fill: Literal["zeros", "reflect", "edge"] = "zeros",
) -> Tensor:
    """Pad an image by `padding` pixels on each side and cut its own size out at random: a shift by up to that many.

    `fill` says what stands around it: zeros (before the transform), the image mirrored at its outermost pixels, or
    these pixels themselves.
    """
    height, width = _image("random_crop", x)
    if padding >= min(height, width):
        raise ValueError(f"random_crop by {padding} pixels can leave nothing of {height} x {width}: say a smaller one")
    places = (draw(2) * (2 * padding + 1)).long() - padding  # never rounds up to 2 padding + 1
    rows = torch.arange(height, device=x.device) + places[:, :1]  # (B, H)
    columns = torch.arange(width, device=x.device) + places[:, 1:]  # (B, W)
    samples = torch.arange(len(x), device=x.device)[:, None, None, None]
    channels = torch.arange(x.shape[1], device=x.device)[None, :, None, None]
    near = [_inside(at, size, fill) for at, size in ((rows, height), (columns, width))]
    moved = x[samples, channels, near[0][:, None, :, None], near[1][:, None, None, :]]
    if fill != "zeros":
        return moved
    there = _there(rows, height)[:, None, :, None] & _there(columns, width)[:, None, None, :]
    return torch.where(there, moved, 0)


@augmentations.register
def cutout(x: Tensor, draw: Draw, *, size: PositiveInt) -> Tensor:  # (B, C, H, W) -> (B, C, H, W)
    """Erase a square of `size` pixels around a random pixel, to 0 before the transform (DeVries and Taylor 2017).

    The part of the square that lies outside of the image is lost, so that less is erased near its border.
    """
    height, width = _image("cutout", x)
    if size >= 2 * min(height, width):
        raise ValueError(f"cutout of {size} pixels erases all of {height} x {width}: say a smaller size")
    numbers = draw(2)
    erased = []
    for number, side in ((numbers[:, :1], height), (numbers[:, 1:], width)):
        begin = (number * side).long() - size // 2  # (B, 1)
        at = torch.arange(side, device=x.device)
        erased.append((at >= begin) & (at < begin + size))
    return torch.where(erased[0][:, None, :, None] & erased[1][:, None, None, :], 0, x)


@augmentations.register(values=True)
def random_brightness(x: Tensor, draw: Draw, *, strength: Probability) -> Tensor:  # (B, C, H, W) -> (B, C, H, W)
    """Multiply an image by a number between 1 - `strength` and 1 + `strength`, before the transform."""
    _image("random_brightness", x)
    x = _floating(x)
    return x * _factor(draw, strength).to(x.dtype)


@augmentations.register(values=True)
def random_contrast(x: Tensor, draw: Draw, *, strength: Probability) -> Tensor:  # (B, C, H, W) -> (B, C, H, W)
    """Multiply an image's distance from its own mean by a number between 1 - `strength` and 1 + `strength`."""
    _image("random_contrast", x)
    x = _floating(x)
    mean = x.mean((1, 2, 3), keepdim=True)
    return mean + (x - mean) * _factor(draw, strength).to(x.dtype)


@augmentations.register(units="input", values=True)
def gaussian_noise(x: Tensor, draw: Draw, units: Tensor, *, std: Positive) -> Tensor:  # (B, ...) -> (B, ...)
    """Add to each number a normal one of standard deviation `std`, as the model gets them: after the transform.

    With the transform standardize, `std: 0.1` is a tenth of each feature's own deviation.
    """
    x = _floating(x)
    numbers = draw(x[0].numel()).reshape(x.shape)
    normal = math.sqrt(2) * torch.erfinv(2 * numbers - (1 - 2.0**-24))  # in the middle of 2^24 steps: never infinite
    return x + normal.to(x.dtype) * (std * units).to(x.dtype)


def _factor(draw: Draw, strength: float) -> Tensor:  # -> (B, 1, 1, 1)
    return 1 + strength * (2 * draw(1)[:, :, None, None] - 1)


def _inside(at: Tensor, size: int, fill: str) -> Tensor:
    """Return the pixels to look at instead of those before 0 and from `size` on."""
    if fill == "reflect":
        at = at.abs()
        return torch.where(at >= size, 2 * (size - 1) - at, at)
    return at.clamp(0, size - 1)


def _there(at: Tensor, size: int) -> Tensor:
    return (at >= 0) & (at < size)


def _floating(x: Tensor) -> Tensor:
    """Return x in floating point that holds all of its whole numbers; MPS has no float64."""
    if x.is_floating_point():
        return x
    return x.double() if x.element_size() > 2 and x.device.type != "mps" else x.float()


def _image(name: str, x: Tensor) -> tuple[int, int]:
    """Return height and width of images; a `ValueError` for samples that are none."""
    shape = tuple(x.shape[1:])
    if len(shape) != 3:
        rather = f"; give it one channel, (1, {shape[0]}, {shape[1]})" if len(shape) == 2 else ""
        raise ValueError(f"{name} takes images, (C, H, W), but one sample has shape {shape}{rather}")
    if shape[0] == shape[1] > shape[2] and shape[2] in (1, 3, 4):
        raise ValueError(f"{name} takes images as (C, H, W), but {shape} looks like (H, W, C): move the channels first")
    return shape[1], shape[2]
