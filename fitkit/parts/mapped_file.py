"""Arrays that stay in their file: .npy and safetensors files are mapped, so that only what is read takes memory."""

from __future__ import annotations

import math
import warnings
from io import BufferedReader
from typing import Any, Literal

import torch
from torch import Tensor

from fitkit.errors import DataError
from fitkit.files import ARRAY_SHARE, MappedFile, too_much

Read = Literal["auto", "memory", "map"]

MAPPABLE = {  # dtypes that torch computes with, by the names that NumPy and safetensors give them
    **{"u1": torch.uint8, "i1": torch.int8, "<i2": torch.int16, "<i4": torch.int32, "<i8": torch.int64},
    **{"<f2": torch.float16, "<f4": torch.float32, "<f8": torch.float64},
    **{"U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64},
    **{"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64},
}


def is_to_be_mapped(read: Read, needed: int, place: str) -> bool:
    """Tell whether an array of `needed` bytes is left in its file; DataError where `memory` is asked for and too small.

    `auto` leaves it there when it would take more than half of the memory that is available.
    """
    fault = too_much(needed, ARRAY_SHARE)
    if fault and read == "memory":
        raise DataError(f"{place} {fault}. Save fewer rows, or a smaller dtype such as uint8 or float16.")
    return read == "map" or (read == "auto" and fault is not None)


class Mapped:
    """The arrays of one file, as views of a map of it."""

    def __init__(self, file: BufferedReader, path: str) -> None:
        self.file = MappedFile(file, path)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given buffer is not writable")  # and nothing writes to it
            self.bytes = torch.frombuffer(self.file.view(), dtype=torch.uint8)

    def array(self, dtype: str, shape: tuple[Any, ...], begin: int, end: int, place: str) -> Tensor:
        """Return the array that lies at these bytes, (N, ...); DataError where it cannot be used as it lies there."""
        kind = MAPPABLE.get(dtype.lstrip("|="), None)
        if kind is None:
            raise DataError(
                f"{place} is {dtype}, with which no step can compute as it lies in the file. {self._save()}"
            )
        if not all(type(length) is int and length >= 0 for length in shape):
            raise DataError(f"{place} has the shape {shape}, which no array has.")
        if not 0 <= begin <= end <= len(self.bytes) or end - begin != math.prod(shape) * kind.itemsize:
            there = len(self.bytes) - begin
            raise DataError(f"{place} has shape {shape} of {dtype}, bytes {begin:,} to {end:,}; {there:,} are there.")
        if begin % kind.itemsize:
            raise DataError(f"{place} begins at byte {begin:,}, no multiple of {kind.itemsize}. {self._save()}")
        if shape and (fault := too_much((end - begin) // max(1, shape[0]), ARRAY_SHARE)):
            raise DataError(f"{place}: a single row {fault}. Save smaller samples.")
        if 0 in shape:
            return torch.empty(shape, dtype=kind)
        return self.bytes[begin:end].view(kind).view(shape)

    @staticmethod
    def _save() -> str:
        return "Save it as uint8, int32 or float32; a smaller file may say read: memory."


def joined(tensors: list[Tensor]) -> Tensor | None:
    """Return one view of arrays that lie in one map side by side, in this order; None where they do not."""
    first = tensors[0]
    at = first.storage_offset()
    for tensor in tensors:
        same = tensor.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        if not same or tensor.storage_offset() != at or tensor.dtype != first.dtype or not tensor.is_contiguous():
            return None
        at += tensor.numel()
    shape = (sum(map(len, tensors)), *first.shape[1:])
    return first.as_strided(shape, first.stride(), first.storage_offset())
