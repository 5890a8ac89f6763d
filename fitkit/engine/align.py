"""The contract between what a model returns and what a loss compares it with; checked once, on the first batch.

Nothing is ever broadcast: shapes either fit or are an error that says what to change.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from fitkit.errors import DataError

Kind = Literal["classes", "binary", "signs", "values"]
Aligned = tuple[Tensor, Tensor, Tensor | None]  # output, target, and which positions count (None: all)
Align = Callable[[Tensor, Tensor], Aligned]


def make_align(kind: Kind, output: Tensor, target: Tensor, *, squeeze: bool, ignore_index: int | None) -> Align:
    """Return the function that brings a batch's output and target into the form that losses and metrics take.

    Class targets: output (M, C), target (M,) int64, M over all positions. One logit or sign: (M,), (M,) float. Values:
    the same shape twice. `squeeze` drops a last dimension of 1 that the target does not have, for models that fitkit
    built itself with one output.
    """
    shape = tuple(output.shape)
    if squeeze and output.ndim == target.ndim + 1 and output.shape[-1] == 1 and kind != "classes":
        inner = make_align(kind, output.squeeze(-1), target, squeeze=False, ignore_index=ignore_index)
        return lambda output, target: inner(output.squeeze(-1), target)
    if kind == "classes":
        return _classes(shape, tuple(target.shape), ignore_index)
    if shape != tuple(target.shape):
        raise DataError(_mismatch(shape, tuple(target.shape)))
    flat = kind != "values"

    def align(output: Tensor, target: Tensor) -> Aligned:
        if output.shape != target.shape:  # a later batch, or one of another part
            raise DataError(_mismatch(tuple(output.shape), tuple(target.shape)))
        target = target.to(_wide(output.dtype))
        if flat:
            output, target = output.flatten(), target.flatten()
        return output, target * 2 - 1 if kind == "signs" else target, None  # classes 0 and 1 become -1 and +1

    return align


def class_dimensions(output: tuple[int, ...], target: tuple[int, ...]) -> tuple[bool, bool]:
    """Tell whether the classes of an output of this shape can stand in its last dimension, and in dimension 1."""
    return output[:-1] == target, len(output) > 1 and (output[0], *output[2:]) == target


def _classes(output: tuple[int, ...], target: tuple[int, ...], ignore_index: int | None) -> Align:
    last, second = class_dimensions(output, target)
    if not (last or second):
        message = f"the model gives {_letters(output)}, but class targets of shape {_letters(target)} need an output "
        want = ", ".join(["B", *(str(size) for size in target[1:]), "classes"])
        if len(output) == len(target) and output == target or output[1:] == (1,) and len(target) == 1:
            message += f"({want}). For one output and two classes, use binary_cross_entropy_with_logits."
        elif len(output) == len(target) + 2 and output[0] == target[0]:
            message += f"({want}). If dimension 1 is time, end the model with `- Last`, or take one step of it."
        elif len(output) > len(target) + 1:
            message += f"({want}). End the model with Flatten and {{Linear: outputs}}."
        elif target[1:] == (1,):
            message += "one dimension longer. Give the targets as (B,): y.squeeze(-1)."
        else:
            message += f"({want})."
        raise DataError(message)
    if last and second and len(output) > 2:
        raise DataError(
            f"the model gives {_letters(output)} for targets {_letters(target)}: the classes may stand in dimension 1 "
            "or in the last, and fitkit does not guess. Return (B * T, classes) for targets (B * T,)."
        )

    def align(output: Tensor, target: Tensor) -> Aligned:
        if target.dtype != torch.int64:
            target = target.long()
        if output.ndim > 2:
            output = (output if last else output.movedim(1, -1)).flatten(0, -2)
            target = target.flatten()
        return output, target, None if ignore_index is None else target != ignore_index

    return align


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Return a dtype in which a target keeps its digits even when the model's outputs have few."""
    return torch.promote_types(dtype, torch.float32)


def _mismatch(output: tuple[int, ...], target: tuple[int, ...]) -> str:
    message = f"the model gives {_letters(output)}, the target is {_letters(target)}"
    if output == (*target, 1):
        both = f"({output[0]}, {output[0]})" if len(target) == 1 else "a larger shape"
        return f"{message}: they would broadcast to {both}. End the model with .squeeze(-1), or give y as (N, 1)."
    if (*output, 1) == target:
        return f"{message}: they would broadcast. Give y as (N,): y.squeeze(-1)."
    return f"{message}; this loss compares them one by one, so the shapes must be equal."


def _letters(shape: tuple[int, ...]) -> str:
    return "(" + ", ".join(["B", *(str(size) for size in shape[1:])]) + ("," if len(shape) == 1 else "") + ")"


def looks_like_probabilities(output: Tensor) -> bool:  # (M, C) -> whether every row is a distribution
    """Tell whether a model that should give logits gives probabilities: softmax twice trains, slowly and wrongly."""
    if output.ndim != 2 or output.shape[1] < 2 or len(output) == 0:
        return False
    sums = output.float().sum(1)  # MPS has no float64
    return bool((output >= 0).all() and torch.allclose(sums, torch.ones_like(sums), atol=1e-4))
