"""Losses: what training minimises, each as a sum and the count that divides it.

A loss is a function `(output, target, *, arguments) -> (sum, count)`: the sum of the loss over everything that
counts, and how much that is. `sum / count` is torch's `reduction="mean"`, and because sums and counts add up, the mean
over an accumulated batch or over an epoch is exact too. The count is a Python int where the shapes tell it, a 0-d
tensor where the targets do (class weights, `ignore_index`). With nothing to count both are 0: no loss is NaN by itself.
Half precision is computed in float32.

Facts of an entry, for whoever builds the run:

    output          what the model must give: "logits", "log_probabilities", "probabilities" of class 1, "values",
                    "log_rates", or "scores" (the highest or the positive one wins, but they are no logits)
    target          "classes": (M, C) and (M,) int64; "binary": 0.0 or 1.0, "signs": -1.0 or +1.0, "values": real
                    numbers, each of these in the shape of the output
    target_range    the `Range` outside which a target has no meaning
    training_only   the arguments that the validation loss leaves out

Of `torch.nn.functional` these are not here: losses of pairs and triplets (`cosine_embedding_loss`,
`hinge_embedding_loss`, `margin_ranking_loss`, `triplet_margin_loss`), `ctc_loss` (lengths), `gaussian_nll_loss` (a
variance), `kl_div` (a distribution as target), `multilabel_margin_loss` (lists of classes), `linear_cross_entropy`
(weights of a layer).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fitkit.errors import listing
from fitkit.spec.table import Table
from fitkit.spec.types import Fraction, NonNegative, Positive, Range

Total = tuple[Tensor, int | Tensor]  # sum (), count

losses = Table(
    "loss",
    facts={
        "output": ("logits", "log_probabilities", "probabilities", "values", "log_rates", "scores"),
        "target": ("classes", "binary", "signs", "values"),
    },
    # log_input and eps of poisson_nll_loss: the model gives log rates, so that its output has one meaning
    omit=("input", "target", "weight", "size_average", "reduce", "reduction", "log_input", "eps"),
    refine={
        # what a spec says; the functions take the tensors that the two resolve functions below make of it
        "class_weight": list[Positive] | Literal["balanced"] | None,
        "pos_weight": Positive | Literal["balanced"] | None,
        "beta": Range(low=0),
        "delta": Range(low=0, open_low=True),
    },
)

# Stands for "no class is ignored". Torch's own default, -100, would leave a row with a stray -100 out without a word.
_NO_CLASS = -(2**31)


def default_loss(target: Literal["classes", "values"], classes: int | None) -> str:
    """Return the name of the loss for a spec that names none; two classes are classes like any other."""
    return "cross_entropy" if target == "classes" or classes is not None else "mse_loss"


def resolve_class_weight(value: Sequence[float] | Literal["balanced"], counts: Tensor) -> Tensor:
    """Return one weight a class, (C,) float64, for `class_weight` as a spec says it.

    `counts` (C,) holds the number of training rows of each class. "balanced" is n / (C * count), as in scikit-learn's
    `compute_class_weight`. A list of another length, or a class that no row has, is a `ValueError`.
    """
    if value == "balanced":
        _refuse_empty(counts)
        rows = counts.double()
        return rows.sum() / (len(rows) * rows)
    if len(value) != len(counts):
        raise ValueError(f"the list has {len(value)} weights and the data has {len(counts)} classes; give one a class")
    return torch.tensor(value, dtype=torch.float64)


def resolve_pos_weight(value: float | Literal["balanced"], counts: Tensor) -> Tensor:
    """Return the weight of the positive class, () float64, for `pos_weight` as a spec says it.

    `counts` (2,) holds the number of training rows of the negative and of the positive class. "balanced" is negative /
    positive, which gives both classes the same weight in the loss. A class that no row has is a `ValueError`.
    """
    if value != "balanced":
        return torch.tensor(value, dtype=torch.float64)
    _refuse_empty(counts)
    negative, positive = counts.tolist()
    return torch.tensor(negative / positive, dtype=torch.float64)


def _refuse_empty(counts: Tensor) -> None:
    empty = [str(number) for number, count in enumerate(counts.tolist()) if not count]
    if empty:
        raise ValueError(
            f'no training row has class {listing(empty)}, which "balanced" cannot weigh; give the weights as numbers'
        )


@losses.register(output="logits", target="classes", training_only=("label_smoothing",))
def cross_entropy(
    output: Tensor,
    target: Tensor,
    *,
    label_smoothing: Fraction = 0.0,
    class_weight: Tensor | None = None,
    ignore_index: int | None = None,
) -> Total:  # (M, C), (M,) -> (), ()
    """Cross entropy of the softmax of logits, for any number of classes from two.

    The count is the sum of the weights of the targets, also under label smoothing: torch's own rule.
    """
    output = _widened(output)
    weight = None if class_weight is None else class_weight.to(output.dtype)
    total = F.cross_entropy(
        output,
        target,
        weight,
        ignore_index=_NO_CLASS if ignore_index is None else ignore_index,
        reduction="sum",
        label_smoothing=label_smoothing,
    )
    return total, _count(target, weight, ignore_index)


@losses.register(output="log_probabilities", target="classes")
def nll_loss(
    output: Tensor,
    target: Tensor,
    *,
    class_weight: Tensor | None = None,
    ignore_index: int | None = None,
) -> Total:  # (M, C), (M,) -> (), ()
    """Negative log likelihood of log-probabilities: `cross_entropy` for a model that ends in LogSoftmax."""
    output = _widened(output)
    weight = None if class_weight is None else class_weight.to(output.dtype)
    ignored = _NO_CLASS if ignore_index is None else ignore_index
    total = F.nll_loss(output, target, weight, ignore_index=ignored, reduction="sum")
    return total, _count(target, weight, ignore_index)


def _count(target: Tensor, weight: Tensor | None, ignore_index: int | None) -> int | Tensor:
    """Return what torch divides by: the sum of the weights of the targets that are not ignored."""
    if ignore_index is None:
        return target.numel() if weight is None else weight[target].sum()
    kept = target != ignore_index
    return kept.sum() if weight is None else (weight[target.where(kept, 0)] * kept).sum()


@losses.register(output="scores", target="classes")
def multi_margin_loss(
    output: Tensor,
    target: Tensor,
    *,
    p: Literal[1, 2] = 1,
    margin: NonNegative = 1.0,
    class_weight: Tensor | None = None,
) -> Total:  # (M, C), (M,) -> (), M
    """Hinge loss of classes: how far each other score comes within `margin` of the right one, to the power `p`.

    Torch divides by the number of rows, whatever the class weights are.
    """
    output = _widened(output)
    weight = None if class_weight is None else class_weight.to(output.dtype)
    return F.multi_margin_loss(output, target, p, margin, weight, reduction="sum"), len(target)


@losses.register(output="probabilities", target="binary")
def binary_cross_entropy(output: Tensor, target: Tensor) -> Total:  # (M,), (M,) -> (), M
    """Binary cross entropy of probabilities: `binary_cross_entropy_with_logits` for a model that ends in Sigmoid."""
    with torch.autocast(output.device.type, enabled=False):  # torch refuses this loss under autocast on a GPU
        output = _widened(output)
        return F.binary_cross_entropy(output, target.to(output.dtype), reduction="sum"), output.numel()


@losses.register(output="logits", target="values", target_range=Range(low=0, high=1))
def multilabel_soft_margin_loss(output: Tensor, target: Tensor) -> Total:  # (M, ...), (M, ...) -> (), M
    """Mean over labels of the binary cross entropy: one logit and one target of 0 or 1 for each label."""
    output = _widened(output)
    elements = F.binary_cross_entropy_with_logits(output, target.to(output.dtype), reduction="none")
    return elements.reshape(len(output), -1).mean(1).sum(), len(output)


def _row(function: Callable[..., Tensor], summary: str, **facts: Any) -> None:
    """Enter a loss of torch that is a mean over all elements: its name, its arguments, and our first docstring line."""

    @functools.wraps(function)
    def summed(output: Tensor, target: Tensor, **arguments: Any) -> Total:  # (M, ...), (M, ...) -> (), int
        output = _widened(output)
        return function(output, target.to(output.dtype), reduction="sum", **arguments), output.numel()

    summed.__doc__ = summary
    losses.add(summed, **facts)


def _widened(output: Tensor) -> Tensor:
    """Return half precision as float32, anything else as it is: sums of many small terms need the digits."""
    return output.float() if output.dtype in (torch.float16, torch.bfloat16) else output


_row(
    F.binary_cross_entropy_with_logits,
    "Binary cross entropy of one logit; `pos_weight` multiplies the loss of the positive rows.",
    output="logits",
    target="binary",
)
_row(F.soft_margin_loss, "Logistic loss of a score: log(1 + exp(-target * output)).", output="scores", target="signs")
_row(F.mse_loss, "Mean squared error: (output - target)^2.", output="values", target="values")
_row(F.l1_loss, "Mean absolute error: |output - target|.", output="values", target="values")
_row(
    F.smooth_l1_loss,
    "Squared error / (2 beta) where the error is below `beta`, absolute error - beta / 2 elsewhere.",
    output="values",
    target="values",
)
_row(
    F.huber_loss,
    "Squared error / 2 where the error is below `delta`, delta * (absolute error - delta / 2) elsewhere.",
    output="values",
    target="values",
)
_row(
    F.poisson_nll_loss,
    "Negative log likelihood of counts, Poisson with the log rate that the model gives; `full` adds Stirling's term.",
    output="log_rates",
    target="values",
    target_range=Range(low=0),
)
