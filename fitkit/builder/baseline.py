"""What the best constant prediction would reach: the mark below which a model has learnt nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from fitkit.builder.data import Prepared
from fitkit.builder.objective import Contract
from fitkit.builder.recipe import is_ours
from fitkit.engine.batches import RowBatches
from fitkit.engine.step import Loss

Placed = Callable[[Tensor, Tensor], tuple[float, float]]  # outputs, targets -> sum and count of the loss

MOST_ROWS = 1_000_000  # of values that are looked at, evenly spaced
MEDIAN = ("l1_loss", "smooth_l1_loss", "huber_loss")  # the others are least at the mean


def sample_counts(prepared: Prepared) -> dict[str, int]:
    """Return the samples of train, val and test, where they are known."""
    return {name: part.samples for name, part in prepared.parts.items() if part.samples is not None}


def class_count(prepared: Prepared, contract: Contract) -> int | None:
    """Return how many classes the target has, None for values or where the data does not tell."""
    if contract.kind == "values":
        return None
    named = prepared.data.classes if prepared.data is not None else None
    parts = [y for y in (_targets(prepared, name) for name in ("train", "val")) if y is not None and len(y)]
    return (
        2
        if contract.kind != "classes"
        else len(named or ()) or 1 + max((int(y.max()) for y in parts), default=-1) or None
    )


def constant_baseline(
    prepared: Prepared, contract: Contract, weights: Sequence[float] | None, loss: Loss, like: Tensor
) -> dict[str, float]:
    """Return what one constant prediction, the best for the training targets, reaches in columns of the history.

    That are `loss` and `val_loss`, by the `loss` of evaluation, and for classes `accuracy` and `val_accuracy` of the
    class that most training rows have. Empty where the targets are not at hand (a Dataset, a sequence of tokens), are
    several a sample, the outputs are scores, or the loss is the user's own. `weights` are the loss's, one a class, and
    outputs are made in the dtype and on the device of `like`.
    """
    parts = {name: _targets(prepared, name) for name in ("train", "val")}
    train, output = parts["train"], contract.loss.entry.facts["output"]
    if train is None or not len(train) or output == "scores":
        return {}
    if not is_ours(contract.loss.entry.factory):
        return {}

    def placed(outputs: Tensor, targets: Tensor) -> tuple[float, float]:
        total, count = loss(
            outputs.to(like), targets.to(like.device, like.dtype if targets.is_floating_point() else None)
        )
        return float(total), float(count)

    kept = {name: y for name, y in parts.items() if y is not None and len(y)}
    if contract.kind == "values":
        return _of_values(kept, output, contract.loss.name in MEDIAN, placed)
    classes = max(class_count(prepared, contract) or 2, len(weights or ()))
    return _of_classes(kept, classes, output, contract.kind == "binary", placed)


def _targets(prepared: Prepared, part: str) -> Tensor | None:
    batches = prepared.parts.get(part)
    if not isinstance(batches, RowBatches) or batches.y is None:
        return None
    rows = batches.rows.to(batches.y.device)
    y = batches.y.index_select(0, rows[:: -(-len(rows) // MOST_ROWS) or 1]).cpu()
    return y if y.ndim == 1 else y.squeeze(1) if y.ndim == 2 and y.shape[1] == 1 else None


def _of_values(parts: Mapping[str, Tensor], output: str, median: bool, loss: Placed) -> dict[str, float]:
    train = parts["train"].float()
    constant = train.median() if median else train.mean()
    constant = constant.log() if output == "log_rates" else constant
    if not constant.isfinite():  # a log rate of nothing but zeros
        return {}
    return {_column(part, "loss"): _mean(loss, constant.expand(len(y)), y.float()) for part, y in parts.items()}


def _of_classes(parts: Mapping[str, Tensor], classes: int, output: str, binary: bool, loss: Placed) -> dict[str, float]:
    if classes < 2 or min(int(y.min()) for y in parts.values()) < 0:  # a negative class is one to be ignored
        return {}
    counts = {part: y.long().bincount(minlength=classes).float() for part, y in parts.items()}
    uniform = torch.full((classes,), 1 / classes)
    weights = torch.tensor([total for total, _ in _each(loss, uniform, output, binary)])  # 0 for a class ignored
    shares = counts["train"].clamp(min=0.5) * weights
    found = {}
    for part, number in counts.items():
        each = _each(loss, shares / shares.sum(), output, binary)
        pairs = [(n * total, n * count) for n, (total, count) in zip(number.tolist(), each, strict=True) if count]
        if divisor := sum(count for _, count in pairs):
            found[_column(part, "loss")] = sum(total for total, _ in pairs) / divisor
        found[_column(part, "accuracy")] = float(number[counts["train"].argmax()] / number.sum())
    return found


def _each(loss: Placed, shares: Tensor, output: str, binary: bool) -> list[tuple[float, float]]:
    """Return sum and count of the loss of one sample of each class, when these shares (C,) are predicted."""
    shares = shares.clamp(1e-6, 1 - 1e-6)
    found = []
    for number in range(len(shares)):
        if binary:
            one = shares[1:] if output == "probabilities" else shares[1:].logit()
            found.append(loss(one, torch.tensor([float(number)])))
        else:
            found.append(loss(shares.log()[None], torch.tensor([number])))
    return found


def _mean(loss: Placed, output: Tensor, target: Tensor) -> float:
    total, count = loss(output, target)
    return total / count


def _column(part: str, name: str) -> str:
    return name if part == "train" else f"val_{name}"
