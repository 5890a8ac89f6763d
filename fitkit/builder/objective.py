"""What is minimised and measured: the loss and metrics of a spec, bound to the shapes that the model really gives."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fitkit.builder.data import Prepared
from fitkit.builder.metrics import bind_metric, choose_metrics
from fitkit.builder.tables import default
from fitkit.data import Target
from fitkit.engine.align import class_dimensions, looks_like_probabilities, make_align
from fitkit.engine.batches import RowBatches
from fitkit.engine.memory import is_out_of_memory, single_row
from fitkit.engine.step import Loss, Objective, eval_mode
from fitkit.errors import DataError, FitkitError, listing
from fitkit.parts.layers import OUTPUTS
from fitkit.parts.losses import default_loss, resolve_class_weight, resolve_pos_weight
from fitkit.spec.component import Component
from fitkit.spec.spec import Spec
from fitkit.spec.types import Range

MOST_GUESSED = 20  # different whole numbers that are taken for classes without a word


@dataclass(frozen=True)
class Contract:
    """What a spec's loss asks of model and data."""

    loss: Component
    kind: Any  # "classes", "binary", "signs" or "values"


def choose_loss(spec: Spec, target: Target, prepared: Prepared) -> Contract:
    """Return the loss of the spec, or the data's default, after checking that it can compare with such targets."""
    classes = None if prepared.data is None or prepared.data.classes is None else len(prepared.data.classes)
    loss = spec.loss or default("losses", default_loss(target, classes), "loss")
    kind = loss.entry.facts["target"]
    if kind == "classes":
        _refuse_one_hot(prepared)
    if kind == "classes" and target == "values":
        rather = _say_task(spec, "classes") or "give them as integers"
        raise loss.error(
            f"{loss.name} compares class numbers, but the target holds real numbers{_example(prepared)}. For "
            f"regression write loss: mse_loss; if they are classes, {rather}."
        )
    if kind == "values" and target == "classes" and spec.loss is not None and _vector_classes(prepared):
        rather = _say_task(spec, "values")
        rather = f" Write loss: cross_entropy{f'; if they are quantities, {rather}' if rather else ''}."
        raise loss.error(f"{loss.name} compares numbers, but the target holds classes.{rather}")
    if kind == "values" and spec.loss is None:
        _refuse_one_hot(prepared)
    if kind == "classes" and spec.loss is None:
        _refuse_quantities(prepared)
    if kind in ("binary", "signs"):
        for batches in prepared.parts.values():
            whole = batches.y if isinstance(batches, RowBatches) else None
            _check_binary(loss, prepared.first[1] if whole is None else whole)
    return Contract(loss, kind)


def _refuse_quantities(prepared: Prepared) -> None:
    """Refuse whole numbers from Python that look like quantities where no loss says what they are."""
    data = prepared.data
    if data is None or not data.given_in_python or data.y is None or data.classes is not None or data.window:
        return
    different, rows = len(torch.unique(data.y)), data.y.numel()
    if different > MOST_GUESSED and (2 * different > rows or different < int(data.y.max()) // 2 or data.y.min() < 0):
        raise DataError(
            f"{data.name}: y holds {different} different whole numbers. For a regression write loss: mse_loss; for "
            "classes write loss: cross_entropy."
        )


def _say_task(spec: Spec, task: str) -> str:
    """Return the words that make a source read its target otherwise; nothing for a source that cannot."""
    source = spec.data
    return f"write data.{source.name}.task: {task}" if source and "task" in source.entry.arguments else ""


def _refuse_one_hot(prepared: Prepared) -> None:
    y = None if prepared.data is None else prepared.data.y
    if y is None or y.ndim != 2 or y.shape[1] < 2 or prepared.data is None:
        return
    if bool(((y == 0) | (y == 1)).all() and (y.sum(1) == 1).all()):
        raise DataError(f"{prepared.data.name}: y is one-hot. Give the numbers of the classes: y.argmax(1).")


def _vector_classes(prepared: Prepared) -> bool:
    return prepared.data is not None and prepared.data.classes is not None and prepared.data.y is not None


def _example(prepared: Prepared) -> str:
    if prepared.data is None or prepared.data.y is None:
        return ""
    return f" (the first is {prepared.data.y.flatten()[0].item():g})"


def _check_binary(loss: Component, y: Tensor) -> None:
    values = torch.unique(y.flatten())
    if len(values) > 2 or not all(value in (0, 1) for value in values.tolist()):
        found = listing([f"{value:g}" for value in values.tolist()], 6)
        more = " For more classes write loss: cross_entropy." if len(values) > 2 else " Number the classes 0 and 1."
        raise loss.error(f"{loss.name} needs targets 0 and 1, but here are {found}.{more}")


def count_outputs(contract: Contract, prepared: Prepared) -> int:
    """Return how many numbers a sample the model must give: `outputs` in a spec."""
    data = prepared.data
    if contract.kind != "classes":
        shape = prepared.first[1].shape[1:]
        return int(torch.Size(shape).numel()) if shape else 1
    if data is not None and data.window is not None:
        return data.vocabulary or 0
    if data is not None and data.classes is not None:
        return len(data.classes)
    if data is None or data.y is None:
        rather = "Write it in place of `outputs` in a list of layers, or give fit(…, model=module)"
        raise DataError(f"the number of classes is not known for a Dataset. {rather}.")
    labels = data.y[data.y != ignored(contract.loss)] if ignored(contract.loss) is not None else data.y
    if not len(labels) or int(labels.max()) < 1:
        raise DataError(f"{data.name}: y holds no class but 0: as a target it leaves nothing to learn.")
    return int(labels.max()) + 1


def ignored(loss: Component) -> int | None:
    """Return the target that the loss leaves out, if the spec names one."""
    value = loss.get("ignore_index")
    return None if value is None else int(value)


@dataclass(frozen=True)
class Bound:
    """An objective that fits the model's outputs, and how to read them."""

    objective: Objective
    spec: Spec  # with loss and metrics as used
    class_dim: int  # where the classes stand in the model's output
    squeezed: bool  # whether its one output a sample is compared without the last dimension
    flops: float  # floating-point operations of a sample's forward pass, as far as torch counts them
    convolutions: float  # those of convolutions alone


def make_objective(
    spec: Spec, contract: Contract, prepared: Prepared, model: nn.Module, precision: torch.dtype | None, ours: bool
) -> Bound:
    """Return the objective for these parts, after running the model on the first batch.

    `ours` says that fitkit built the model, so that one output may be squeezed to the shape of the target.
    """
    loss = contract.loss
    x, y = prepared.first
    nothing: Any = None
    objective = Objective(nothing, nothing, nothing, (), prepared.transform, precision)
    with FlopCounterMode(display=False) as counter:
        output = try_model(objective, model, x)
    ignore = ignored(loss)
    try:
        align = make_align(contract.kind, output, y, squeeze=ours, ignore_index=ignore)
        aligned, target, _ = align(output, y)
        if contract.kind == "classes":
            check_labels(prepared, aligned.shape[1], ignore, loss)
    except DataError as error:
        raise _at_layer(spec.model, error, contract, prepared, output.ndim - y.ndim) from None
    _check_output(loss, aligned, spec.model, model)
    loss = _with_numbers(loss, contract, prepared, aligned)
    train_loss, val_loss = _bind_loss(loss, aligned)
    metrics = choose_metrics(spec, loss, contract.kind, aligned)
    _check_pair(loss, train_loss, aligned, target)
    bound = tuple(bind_metric(metric, loss.entry.facts["output"], aligned, target) for metric in metrics)
    objective = replace(objective, align=align, loss=train_loss, val_loss=val_loss, metrics=bound)
    last, _ = class_dimensions(tuple(output.shape), tuple(y.shape))
    return Bound(
        objective,
        replace(spec, loss=loss, metrics=metrics),
        class_dim=-1 if last or contract.kind != "classes" else 1,
        squeezed=contract.kind != "classes" and output.ndim > y.ndim,
        flops=counter.get_total_flops() / len(x),
        convolutions=counter.get_flop_counts().get("Global", {}).get(torch.ops.aten.convolution, 0) / len(x),
    )


def try_model(objective: Objective, model: nn.Module, x: Tensor) -> Tensor:
    """Return the model's output for one batch, in eval mode; a batch that it refuses is a DataError in plain words.

    Where memory does not suffice for the whole batch it is tried in halves: training will say so, or halve it too.
    """
    try:
        with eval_mode(model), torch.no_grad():
            output: Any = objective.output(model, x)
    except (RuntimeError, ValueError, IndexError, TypeError, MemoryError) as error:
        if is_out_of_memory(error):
            if len(x) == 1:
                raise single_row(error) from error
            return torch.cat([try_model(objective, model, half) for half in torch.tensor_split(x, 2)])
        dtype = str(x.dtype).removeprefix("torch.")
        lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        hint = ""
        if not x.is_floating_point() and objective.transform is None:
            hint = " If these are measurements, convert x to float, or write data: {arrays: {transform: scale}}."
        raise DataError(f"the model refuses a batch of shape {tuple(x.shape)}, {dtype}: {lines[0]}.{hint}") from error
    if not isinstance(output, Tensor):
        raise DataError(f"the model must return one tensor, not a {type(output).__name__}.")
    return output


def _at_layer(model: Any, error: DataError, contract: Contract, prepared: Prepared, more: int) -> FitkitError:
    """Return the error at the layer that is to blame, where the model is a list of layers and the data is not.

    `more` is how many dimensions the output has beyond the target's.
    """
    layers: tuple[Component, ...] = model if isinstance(model, tuple) else ()
    if prepared.data is None:
        return error
    if layers and more > 1:
        return layers[-1].error(str(error))
    sizes = ((layer, name) for layer in reversed(layers) for name in ("out_features", "out_channels"))
    for layer, name in sizes:
        size, right = layer.get(name), count_outputs(contract, prepared)
        if size is not None:
            wrong = size not in (OUTPUTS, right)
            return layer.error(f"{error} Write `outputs`, which is {right} here.", name) if wrong else error
    return error


def _check_output(loss: Component, output: Tensor, layers: Any, model: nn.Module) -> None:
    """Refuse outputs of another kind than the loss takes; `layers` is the spec's model, if the spec has one."""
    kind, name = loss.entry.facts["output"], loss.name
    ends = layers[-1] if isinstance(layers, tuple) else loss
    if kind == "logits" and loss.entry.facts["target"] == "classes" and looks_like_probabilities(output):
        raise ends.error(
            f"{name} takes logits, but the model gives probabilities (each row adds up to 1): a softmax would be taken "
            "twice. Remove the model's last softmax."
        )
    inside = bool(((output >= 0) & (output <= 1)).all())
    shapes = (nn.Flatten, nn.Unflatten, nn.Identity, nn.Dropout)
    last = next((m for m in reversed(list(model.modules())) if not isinstance(m, shapes)), model)
    if kind in ("logits", "scores") and inside and isinstance(last, nn.Sigmoid | nn.Softmax):
        twice = f"{name} takes logits, and takes their {'sigmoid' if kind == 'logits' else 'sign'} itself"
        raise ends.error(f"{twice}, but the model ends with {type(last).__name__}. Remove it.")
    if kind == "log_probabilities" and not looks_like_probabilities(output.exp()):
        raise loss.error(f"{name} takes log-probabilities. End the model with LogSoftmax, or use cross_entropy.")
    if kind == "probabilities" and (not inside or isinstance(layers, Component)):
        raise loss.error(f"{name} takes probabilities. End the model with Sigmoid, or use {name}_with_logits.")


def check_labels(prepared: Prepared, classes: int, ignore: int | None, loss: Component) -> None:
    """Raise DataError naming the first row whose class number the model has no output for."""
    for part, batches in prepared.parts.items():
        if not isinstance(batches, RowBatches) or batches.y is None:
            continue
        y = batches.y.index_select(0, batches.rows)
        wrong = (y < 0) | (y >= classes)
        if ignore is not None:
            wrong &= y != ignore
        if bool(wrong.any()):
            row = int(_rows(wrong)[0])
            at, bad = int(batches.rows[row]), int(y[row][wrong[row]].flatten()[0])
            where = f"{prepared.name(part)}: row {at} of y{prepared.among(part)}"
            message = f"{where} is class {bad}, but the model has outputs for 0 to {classes - 1}."
            if bad == -100 and ignore is None:
                message += f" If -100 marks what to leave out, write loss: {{{loss.name}: {{ignore_index: -100}}}}."
            elif bad < 0 or (bad == classes and not bool((y == 0).any())):
                message += " Classes count from 0."
            elif part in prepared.names and part != "train":
                message = f"{where} is class {bad}, and no training row is."
            else:
                message = f"{message[:-1]}, and needs {int(y.max()) + 1}."
            raise DataError(message)


def _rows(marked: Tensor) -> Tensor:  # (N, ...) -> (n,)
    """Return the numbers of the rows in which something is marked."""
    return (marked.flatten(1).any(1) if marked.ndim > 1 else marked).nonzero().flatten()


def _with_numbers(loss: Component, contract: Contract, prepared: Prepared, output: Tensor) -> Component:
    """Return the loss with "balanced" weights as the numbers that the training rows give."""
    args = dict(loss.args)
    for name, resolve in (("class_weight", resolve_class_weight), ("pos_weight", resolve_pos_weight)):
        if args.get(name) is not None:
            width = output.shape[1] if contract.kind == "classes" else 2
            try:
                args[name] = resolve(args[name], _class_counts(loss, name, prepared, width)).tolist()
            except ValueError as error:
                raise loss.error(f"{error}.", name) from None
    return replace(loss, args=args)


def _bind_loss(loss: Component, output: Tensor) -> tuple[Loss, Loss]:
    dtype = output.dtype if output.dtype == torch.float64 else torch.float32
    arguments = loss.own()
    for name in ("class_weight", "pos_weight"):
        if arguments.get(name) is not None:
            arguments[name] = torch.tensor(arguments[name], dtype=dtype, device=output.device)
    plain = {name: v for name, v in arguments.items() if name not in loss.entry.facts.get("training_only", ())}
    function = loss.entry.factory
    return functools.partial(function, **arguments), functools.partial(function, **plain)


def _class_counts(loss: Component, argument: str, prepared: Prepared, classes: int) -> Tensor:
    batches = prepared.parts["train"]
    if not isinstance(batches, RowBatches) or batches.y is None:
        if loss.args[argument] == "balanced":
            raise loss.error("balanced weights need the targets in memory. Give the weights as numbers.", argument)
        return torch.ones(classes)
    y = batches.y.index_select(0, batches.rows).flatten().long()
    return torch.bincount(y[(y >= 0) & (y < classes)].cpu(), minlength=classes)


def _check_pair(loss: Component, function: Loss, output: Tensor, target: Tensor) -> None:
    """Check that a loss returns a sum and a count: both are twice as large for the batch twice over."""
    once: Any = function(output, target)
    if not isinstance(once, tuple) or len(once) != 2 or not isinstance(once[0], Tensor) or once[0].ndim:
        raise loss.error(f"{loss.name} must return (sum, count): a tensor of one number, and what divides it.")
    twice = function(torch.cat([output, output]), torch.cat([target, target]))
    total, count = float(once[0]), float(once[1])
    for what, one, two in (("sum", total, float(twice[0])), ("count", count, float(twice[1]))):
        if not abs(two - 2 * one) <= 1e-3 * abs(two) + 1e-6 and one == one:
            raise loss.error(f"the {what} that {loss.name} returns does not add up over samples: use reduction='sum'.")


def target_range(loss: Component) -> Range | None:
    """Return the range outside which a target has no meaning for this loss, if it has one."""
    found = loss.entry.facts.get("target_range")
    return found if isinstance(found, Range) else None


def check_values(prepared: Prepared, loss: Component) -> None:
    """Raise DataError when a target lies where the loss has no meaning, such as a negative count."""
    limits = target_range(loss)
    for part, batches in prepared.parts.items():
        if limits is None or not isinstance(batches, RowBatches) or batches.y is None:
            continue
        y = batches.y.index_select(0, batches.rows)
        for value in (float(y.min()), float(y.max())):
            if not limits.holds(value):
                row = int(batches.rows[_rows(y == value)[0]])
                at = f"{prepared.name(part)}: row {row} of y{prepared.among(part)} is {value:g}"
                raise DataError(f"{at}, but {loss.name} needs targets of {limits}.")
