"""Spec -> Trainer: the only package that knows every table.

`load_spec` checks what a spec says by itself; `build` then goes through its sections in their order, and says whatever
can be known from the data before the first step.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fitkit.builder.baseline import class_count, constant_baseline, sample_counts
from fitkit.builder.card import make_card
from fitkit.builder.data import Prepared, prepare
from fitkit.builder.folds import training_seed
from fitkit.builder.look import warn
from fitkit.builder.metrics import CLASSIFYING
from fitkit.builder.objective import (
    Bound,
    Contract,
    check_values,
    choose_loss,
    count_outputs,
    make_objective,
    try_model,
)
from fitkit.builder.outline import Outline, make_model
from fitkit.builder.recipe import is_closed, make_recipe
from fitkit.builder.tables import PLATEAU, TABLES, default
from fitkit.engine.batches import Batches, RowBatches
from fitkit.engine.devices import check_compile, choose_device, choose_precision
from fitkit.engine.monitor import Monitor
from fitkit.engine.recompute import describe, find
from fitkit.engine.step import eval_mode
from fitkit.engine.tier import bf16_pays, evaluation_batch
from fitkit.errors import DataError, Fault, SpecError, listing, nearest, show
from fitkit.parts.callback import Callback
from fitkit.parts.callbacks import TerminateOnNaN, columns_in
from fitkit.parts.layers import OUTPUTS
from fitkit.parts.optimizers import build_optimizer
from fitkit.parts.schedules import bind_schedule
from fitkit.spec import check, compose, reader
from fitkit.spec.component import Component
from fitkit.spec.reader import Node
from fitkit.spec.spec import Spec, name_from
from fitkit.trainer import Trainer, total_steps

SpecLike = str | Path | Mapping[str, Any] | Spec
Overrides = Iterable[str] | Mapping[str, Any] | None


def load_spec(source: SpecLike, overrides: Overrides = None) -> Spec:
    """Read and check a spec: a path, a text, a dict, or a Spec as it is.

    `overrides` are "key=value" texts or a mapping of dotted keys. Raises SpecError with every mistake in file order.
    """
    if isinstance(source, Spec):
        if not overrides:
            return source
        source = source.given
    return check_tree(compose.read(source, overrides), source, bool(overrides))


def check_tree(tree: Node, source: Any = None, changed: bool = False) -> Spec:
    """Check a tree that `compose.read` made of a source; a spec without a name takes that of its file."""
    path = Path(source) if compose.is_path(source) else None
    spec = check.check(tree, TABLES, "run" if path is None else name_from(path))
    if path is None or changed or not path.is_file() or "extends" in reader.read_file(path).items():
        return spec
    return dataclasses.replace(spec, text=path.read_text("utf-8-sig"))


def build(
    spec: SpecLike,
    *,
    model: nn.Module | None = None,
    data: Any = None,
    out: Path | str | None = None,
    callbacks: Sequence[Callback] = (),
    overrides: Overrides = None,
) -> Trainer:
    """Return the Trainer that a spec asks for.

    Args:
        spec: a Spec, a path, a text or a dict.
        model: a module of your own, used instead of `model:` as it is, in its own dtype.
        data: `(x, y)`, a Dataset, a DataLoader, or {"train": …, "val": …, "test": …} of these, instead of `data:`.
        out: the run folder, for callbacks that write files.
        callbacks: callbacks of your own, after those of the spec.

    Raises SpecError or DataError for anything that would fail later; warns of what the check of the data finds.
    """
    trainer, prepared = assemble(load_spec(spec, overrides), model, data, None if out is None else Path(out), callbacks)
    warn(prepared)
    return trainer


def assemble(
    spec: Spec, model: nn.Module | None, data: Any, out: Path | None, callbacks: Sequence[Callback] = ()
) -> tuple[Trainer, Prepared]:
    """Return the Trainer and the data that it was built on, test part included."""
    begun = begin(spec, model, data)
    try:
        begun.refuse_too_large()
        return finish(begun, out, callbacks), begun.prepared
    except SpecError as error:
        raise spec.located(error) from error.__cause__


def begin(spec: Spec, model: nn.Module | None, data: Any) -> Outline:
    """Prepare the data of a run and find what they ask of its model; SpecError or DataError where they do not fit."""
    try:
        return _begin(spec, model, data)
    except SpecError as error:
        raise spec.located(error) from error.__cause__


def _begin(given: Spec, model: nn.Module | None, data: Any) -> Outline:
    device, precision = _settings(given, model, data)
    dtype = torch.get_default_dtype() if model is None else _float_dtype(model)
    prepared = prepare(given, data, dtype=dtype, device=device)
    spec = prepared.spec
    if prepared.parts["train"].per_epoch == 0:
        raise DataError("the training data yields no batch: its loader drops the only one. Take a smaller batch_size.")
    contract = choose_loss(spec, prepared.target, prepared)
    check_values(prepared, contract.loss)
    ours = model is None
    inputs = prepared.inputs
    outputs = count_outputs(contract, prepared) if ours and _asks_outputs(spec.model) else None
    if not ours:
        spec = dataclasses.replace(spec, model=None)  # the module stands in for what the spec says
    return Outline(
        spec=spec,
        model=model,
        prepared=prepared,
        contract=contract,
        inputs=inputs,
        outputs=outputs,
        device=device,
        precision=precision,
    )


def finish(begun: Outline, out: Path | None, callbacks: Sequence[Callback] = ()) -> Trainer:
    """Build the model of an outline, unless it is the user's own, and return the Trainer."""
    spec, prepared, contract = begun.spec, begun.prepared, begun.contract
    device, precision, ours = begun.device, begun.precision, begun.model is None
    model = begun.make() if begun.model is None else begun.model
    model.to(device)
    bound = make_objective(spec, contract, prepared, model, precision, ours)
    if spec.fit.precision == "auto" and device.type == "cpu":
        bound = _with_precision(bound, contract, prepared, model)
    objective, spec, precision = bound.objective, bound.spec, bound.objective.precision
    _refuse_single_batchnorm(model, objective.transform, prepared, spec)
    optimizer, schedule, spec = _make_updates(spec, model, prepared, device)
    scaler = torch.amp.GradScaler(device.type) if precision is torch.float16 else None
    recipe = make_recipe(begun, bound)
    if recipe is not None:  # in code of the user's own, or a norm without running statistics, a batch may matter
        for part in (part for name, part in prepared.parts.items() if name != "train"):
            if isinstance(part, RowBatches) and not _norms_by_batch(model):
                part.batch_size = evaluation_batch(model, part, bound.flops)
    trainer = Trainer(
        model=model,
        objective=objective,
        optimizer=optimizer,
        train=prepared.parts["train"],
        val=prepared.parts.get("val"),
        schedule=schedule,
        callbacks=_make_callbacks(spec, out, callbacks),
        options=_with_epochs(spec),
        seed=training_seed(spec),
        scaler=scaler,
        out=out,
        spec=dataclasses.replace(spec, fit=_with_epochs(spec)),
        recipe=recipe,
        closed=is_closed(begun, bound),
        flops=bound.flops,
        notes=_notes(spec, model, prepared),
    )
    _check_monitors(trainer, spec, callbacks)
    trainer.card = make_card(trainer, prepared, begun.inputs, begun.outputs, bound, ours)
    trainer.history.spec = trainer.spec.resolved()
    trainer.history.samples = sample_counts(prepared)
    trainer.history.classes = class_count(prepared, contract)
    like = torch.empty((), device=device, dtype=_float_dtype(model))
    like = like if like.dtype is torch.float64 else like.float()
    weights = bound.spec.loss.get("class_weight") if bound.spec.loss else None
    trainer.history.baseline = constant_baseline(prepared, contract, weights, objective.val_loss, like)
    return trainer


def _with_precision(bound: Bound, contract: Contract, prepared: Prepared, model: nn.Module) -> Bound:
    """Return the objective in bf16 where that is faster on this CPU, and the model can: some code asks for float32.

    Not for predictions of values, whose digits bf16 would take.
    """
    train = prepared.parts["train"]
    if contract.kind not in CLASSIFYING or _float_dtype(model) is not torch.float32:
        return bound
    if not bf16_pays(model, train, bound.flops, bound.convolutions):
        return bound
    objective = dataclasses.replace(bound.objective, precision=torch.bfloat16)
    try:
        try_model(objective, model, prepared.first[0])
    except DataError:
        return bound
    return dataclasses.replace(bound, objective=objective)


def _norms_by_batch(model: nn.Module) -> bool:
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_mean is None for m in model.modules())


def _notes(spec: Spec, model: nn.Module, prepared: Prepared) -> str:
    again = describe(find(model)) if spec.fit.activation_checkpointing else ""
    return "\n".join(filter(None, (again, prepared.counts)))


def _settings(spec: Spec, model: Any, data: Any) -> tuple[torch.device, torch.dtype | None]:
    """Return device and precision; say at once what is missing or not to be had."""
    faults: list[Fault] = []
    if data is None and spec.data is None:
        faults.append(Fault("a spec needs `data:`, or hand the data to fit(spec, data=(x, y)).", "data"))
    if model is None and spec.model is None:
        faults.append(Fault("a spec needs `model:`, or use fitkit.Model(module).fit(spec).", "model"))
    if model is not None and not isinstance(model, nn.Module):
        faults.append(Fault(f"model= takes a torch.nn.Module, not a {type(model).__name__}."))
    dtype = _float_dtype(model) if isinstance(model, nn.Module) else torch.get_default_dtype()
    try:
        device = choose_device(spec.fit.device)
        precision = choose_precision(spec.fit.precision, device, dtype)
        check_compile(spec.fit.compile)
    except SpecError as error:
        raise SpecError([*faults, *error.faults]) from None
    if faults:
        raise SpecError(faults)
    return device, precision


def _asks_outputs(model: Any) -> bool:
    """Tell whether the number of outputs has to be known: not where a list of layers gives every size as a number."""
    return not isinstance(model, tuple) or any(OUTPUTS in layer.args.values() for layer in model)


def _float_dtype(model: nn.Module) -> torch.dtype:
    floats = (p.dtype for p in model.parameters() if p.is_floating_point())
    return next(floats, torch.get_default_dtype())


def _with_epochs(spec: Spec) -> Any:
    return dataclasses.replace(spec.fit, epochs=spec.fit.most_epochs)


def _refuse_single_batchnorm(model: nn.Module, transform: nn.Module | None, prepared: Prepared, spec: Spec) -> None:
    """Refuse a last batch of one sample where a BatchNorm would see a single value a channel: it has no variance."""
    train = prepared.parts["train"]
    if train.samples is None or train.per_epoch is None:
        return
    if min(train.batch_size, train.samples - (train.per_epoch - 1) * train.batch_size) != 1:
        return
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    norms = [m for m in norms if m.training or m.running_mean is None]
    single: list[str] = []

    def look(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if args[0].numel() == args[0].shape[0] * args[0].shape[1]:
            single.append(type(module).__name__)

    handles = [norm.register_forward_pre_hook(look) for norm in norms]
    try:
        x, _ = prepared.first
        with eval_mode(model), torch.no_grad():
            model(x if transform is None else transform(x))
    finally:
        for handle in handles:
            handle.remove()
    if single:
        size, rows = train.batch_size, train.samples
        fine = [n for n in range(max(2, size - 2), size + 8) if rows % n != 1][:3]
        message = (
            f"{rows:,} training rows in batches of {size} leave a last batch of 1, for which {single[0]} has "
            f"no variance. Choose another batch_size, such as {listing(map(str, fine))}, or LayerNorm."
        )
        raise SpecError(Fault(message, "fit.batch_size"))


def _make_updates(spec: Spec, model: nn.Module, prepared: Prepared, device: torch.device) -> tuple[Any, Any, Spec]:
    """Return the optimizer, the schedule, and the spec with both as used."""
    optimizer = spec.optimizer or default("optimizers", "AdamW", "optimizer")
    schedule = spec.schedule or default("schedules", "constant", "schedule")
    if optimizer.entry.facts.get("initial_lr_only") and schedule.name != "constant":
        raise schedule.error(f"{optimizer.name} reads its lr at the first step only: no schedule moves it.")
    spec = dataclasses.replace(spec, optimizer=optimizer, schedule=schedule)
    return build_optimizer(optimizer, model, device), _make_schedule(schedule, spec, prepared.parts["train"]), spec


def _make_schedule(component: Component, spec: Spec, train: Batches) -> Any:
    if component.name == PLATEAU:
        component = default("schedules", "constant", "schedule")
    total = total_steps(train, spec.fit)
    if total is None:
        if component.name == "constant" and not component.get("warmup"):
            return lambda step: 1.0
        needs = "fit.max_steps" if train.per_epoch is None else "fit.epochs or fit.max_steps"
        raise component.error(f"{component.name} needs to know how long the run is. Give {needs}.")
    return bind_schedule(component, total)


def _make_callbacks(spec: Spec, out: Path | None, more: Sequence[Callback]) -> tuple[Callback, ...]:
    components = list(spec.callbacks)
    if spec.schedule is not None and spec.schedule.name == PLATEAU:
        if any(component.name == PLATEAU for component in components):
            raise spec.schedule.error(f"{PLATEAU} is here twice, under schedule and under callbacks. Keep one.")
        components.append(spec.schedule)
    given: Sequence[Any] = more
    for callback in given:
        if not isinstance(callback, Callback):
            what = f"the class {callback.__name__}" if isinstance(callback, type) else f"a {type(callback).__name__}"
            raise SpecError(f"callbacks= takes fitkit.Callback objects, such as LambdaCallback(…), not {what}.")
    made: list[Callback] = [TerminateOnNaN()] if all(c.name != "TerminateOnNaN" for c in components) else []
    for component in components:
        callback = component.build()
        if callback.writes_files and out is None:
            raise component.error(f"{component.name} writes into the run folder: give fit(..., out=FOLDER).")
        made.append(callback)
    return (*made, *more)


def _check_monitors(trainer: Trainer, spec: Spec, more: Sequence[Callback]) -> None:
    """Refuse a monitor that no column bears; let ModelCheckpoint or EarlyStopping choose the best epoch's column."""
    components = [c for c in (*spec.callbacks, spec.schedule) if c is not None and "monitor" in c.entry.arguments]
    faults: list[Fault] = []
    for component in components:
        column = component.get("monitor")
        if column not in trainer.columns:
            near = nearest(column, trainer.columns)
            hint = f" Did you mean {show(near)}?" if near else ""
            if column.startswith("val_") and trainer.val is None:
                hint = " There is no validation split: give splits a val above 0."
            message = f"this run has no column {show(column)}.{hint} The columns are {listing(trainer.columns)}."
            faults += component.error(message, "monitor").faults
        elif column in ("lr", "epoch_seconds"):
            message = f"{column} does not tell how good the model is. Monitor a loss or a metric."
            faults += component.error(message, "monitor").faults
        else:
            better = trainer.direction(column)
            if component.get("mode") not in ("auto", better):
                message = f"{column} is better the {'higher' if better == 'max' else 'lower'} it is. Leave mode out."
                faults += component.error(message, "mode").faults
        for column in columns_in(component.get("filepath") or "") - set(trainer.columns):
            message = f"this run has no column {show(column)}. Write epoch, {listing(trainer.columns)}."
            faults += component.error(message, "filepath").faults
    if faults:
        raise SpecError(faults)
    for name in ("EarlyStopping", "ModelCheckpoint"):  # the later one wins
        for component in components:
            if component.name == name and trainer.val is not None:
                column, mode = component.get("monitor"), component.get("mode")
                if not column.startswith("val_"):
                    message = f"{name} monitors {column}, taken while the weights still move; val_{column} tells more"
                    warnings.warn(message, stacklevel=2)
                trainer.monitor = Monitor(column, trainer.direction(column) if mode == "auto" else mode)


__all__ = ["DataError", "Outline", "Spec", "Trainer", "assemble", "begin", "build", "check_tree", "finish"]
__all__ += ["load_spec", "make_model"]
