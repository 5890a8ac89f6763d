"""What a sample is to somebody who looks at it: an image, a text, a row of a table, or numbers."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from fitkit.engine.weights import first_bytes
from fitkit.errors import printable
from fitkit.evaluation.outcomes import Outcomes

CHANNELS = {1: 0, 3: 2, 4: 6}  # of an image, and PNG's number for that kind of colour
MOST_PIXELS = 512  # a side; of a larger image every second, third, … row and column is kept
MOST_NUMBERS = 12  # of a sample that is none of the others

Cells = Mapping[str, float | str]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One sample as it was before the transform: `kind` tells which of the other fields holds it."""

    kind: Literal["image", "text", "row", "numbers"]
    shape: tuple[int, ...]  # as the data has it
    pixels: Tensor | None = field(default=None, repr=False)  # (C, H, W) uint8, C of 1 (grey), 3 or 4
    text: str | None = None
    row: Cells | None = None  # by column
    numbers: tuple[float, ...] = ()  # the first of them

    def png(self) -> bytes:
        """Return an image as a PNG file."""
        assert self.pixels is not None
        channels, height, width = self.pixels.shape
        lines = torch.zeros(height, 1 + width * channels, dtype=torch.uint8)  # each begins with 0: not filtered
        lines[:, 1:] = self.pixels.permute(1, 2, 0).flatten(1)
        about = struct.pack(">IIBBBBB", width, height, 8, CHANNELS[channels], 0, 0, 0)
        chunks = ((b"IHDR", about), (b"IDAT", zlib.compress(bytes(first_bytes(lines)))), (b"IEND", b""))
        return b"\x89PNG\r\n\x1a\n" + b"".join(
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
            for name, data in chunks
        )

    def data_uri(self) -> str:
        """Return an image as the `src` of an HTML `img`."""
        return "data:image/png;base64," + base64.b64encode(self.png()).decode("ascii")

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data, without an image's pixels."""
        held = {"text": self.text, "row": dict(self.row) if self.row is not None else None}
        found = {name: value for name, value in held.items() if value is not None}
        numbers = {"numbers": list(self.numbers)} if self.kind == "numbers" else {}
        return {"kind": self.kind, "shape": list(self.shape), **found, **numbers}

    def __str__(self) -> str:
        size = " x ".join(map(str, self.shape))
        if self.row is not None:
            return printable(", ".join(f"{name}={show_cell(value)}" for name, value in self.row.items()))
        if self.text is not None:
            return printable(self.text).replace("\n", "\\n")
        if self.kind == "image":
            return f"image, {' x '.join(map(str, self.pixels.shape if self.pixels is not None else self.shape))}"
        return f"{size or 'number'}: {', '.join(f'{v:.4g}' for v in self.numbers)}{', …' if self._cut else ''}"

    @property
    def _cut(self) -> bool:
        return torch.Size(self.shape).numel() > len(self.numbers)


def show_cell(value: float | str) -> str:
    """Return a cell of a row as text, numbers with the digits that float32 has."""
    return value if isinstance(value, str) else f"{value:.9g}"


def read_samples(outcomes: Outcomes, chosen: Sequence[int]) -> list[Sample]:
    """Return the samples with these numbers, 0 to N - 1. Images are shown in the range of all that are chosen."""
    inputs = outcomes.inputs(chosen)
    if not inputs:
        return []
    kind, look = _kind(outcomes, inputs[0])
    if kind != "image":
        return [look(x) for x in inputs]
    shape = outcomes.image if outcomes.image is not None and inputs[0].ndim == 1 else tuple(inputs[0].shape)
    shape = shape if len(shape) == 3 else (1, *shape)
    images = [x.reshape(shape).nan_to_num(0, 0, 0).double() for x in inputs]
    low, high = min(float(x.min()) for x in images), max(float(x.max()) for x in images)
    return [
        Sample(kind="image", shape=tuple(x.shape), pixels=_pixels(image, low, high))
        for x, image in zip(inputs, images, strict=True)
    ]


def _pixels(image: Tensor, low: float, high: float) -> Tensor:
    step = -(-max(image.shape[1:]) // MOST_PIXELS)
    scaled = (image[:, ::step, ::step] - low) / (high - low or 1.0) * 255
    return scaled.round().to(torch.uint8)


def _kind(outcomes: Outcomes, x: Tensor) -> tuple[str, Callable[[Tensor], Sample]]:
    """Return what samples like this one are, and how one of them is looked at."""
    features = outcomes.card.get("features")
    if features is not None and x.ndim == 1:
        return "row", lambda x: Sample(kind="row", shape=tuple(x.shape), row=decode_row(x, features))
    if (characters := text_of(outcomes)) is not None and x.ndim == 1:
        return "text", lambda x: Sample(kind="text", shape=tuple(x.shape), text=decode(x.tolist(), characters))
    tokens = (outcomes.card.get("inputs") or {}).get("vocabulary") is not None
    shaped = x.ndim == 2 or (x.ndim == 3 and x.shape[0] in CHANNELS)
    if not tokens and (outcomes.image is not None or (shaped and min(x.shape[-2:]) > 1)):
        return "image", lambda x: Sample(kind="image", shape=tuple(x.shape))
    return "numbers", _numbers


def _numbers(x: Tensor) -> Sample:
    return Sample(kind="numbers", shape=tuple(x.shape), numbers=tuple(x.flatten()[:MOST_NUMBERS].double().tolist()))


def text_of(outcomes: Outcomes) -> Sequence[str] | None:
    """Return the characters that token ids and classes stand for, where samples are texts; else None."""
    names, inputs = outcomes.classes, outcomes.card.get("inputs") or {}
    if names is None or outcomes.one_each or inputs.get("vocabulary") != len(names):
        return None
    return names if all(len(name) == 1 for name in names) else None


def decode(ids: Sequence[int], characters: Sequence[str]) -> str:
    """Return the text that token ids stand for."""
    return "".join(characters[i] if 0 <= i < len(characters) else "\ufffd" for i in ids)


def decode_row(x: Tensor, features: Sequence[Mapping[str, Any]]) -> dict[str, float | str]:  # (D,)
    """Return the cells of a table's row by column: numbers as they are, 0/1 columns as the category that they name."""
    values, cells, at = x.double().tolist(), {}, 0
    for feature in features:
        categories = feature["categories"]
        width = len(categories) if categories else 1
        part = values[at : at + width]
        at += width
        cells[feature["name"]] = categories[part.index(max(part))] if categories else _shortest(part[0])
    return cells


def _shortest(value: float) -> float:
    """Return the shortest decimal number that float32 takes for this one: 42.2, not 42.20000076."""
    for digits in (6, 7, 8):
        rounded = float(f"{value:.{digits}g}")
        if struct.unpack("f", struct.pack("f", rounded))[0] == value:
            return rounded
    return value
