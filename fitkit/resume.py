"""Where a fit stands, as tensors and plain JSON values, and back: what a checkpoint holds and when one is written.

Data order, dropout masks and learning rates are functions of (seed, epoch, step), so two counters stand for them.
What cannot be derived is kept: weights, optimizer, averages, loss scale, best weights, callbacks' memory, the history
so far and the sums of the epoch that is under way.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fitkit.engine import checkpoint
from fitkit.engine.checkpoint import Checkpoint
from fitkit.engine.layout import align_state
from fitkit.engine.saved import is_known, refuse_misfit
from fitkit.engine.weights import snapshot, untie
from fitkit.engine.whole_step import WholeStep
from fitkit.errors import CheckpointError, Fault, SpecError
from fitkit.history import History
from fitkit.parts.callback import Callback
from fitkit.trainer import Trainer

FOLDER = "checkpoints"
MOST_OF_TIME = 0.03  # the share of the time that checkpoints may take unless an interval is asked for
FIRST_SECONDS, LEAST_SECONDS = 5.0, 1.0
GROUPS = ("model", "optimizer", "callbacks", "sums", "best")
COUNTERS = ("epoch", "step", "batch", "skipped_steps", "lr_factor", "best_value", "seconds", "micro_batch")
ENDS = ("fit.epochs", "fit.max_steps", "fit.max_time", "callbacks")  # what may have ended a run


class Checkpoints:
    """Writes checkpoints of a trainer between two steps: so seldom that they cost at most 3 % of the time, or as asked.

    `every_steps` and `every_seconds` set the interval instead. None of this changes what is trained.
    """

    def __init__(self, folder: Path, *, every_steps: int | None = None, every_seconds: float | None = None) -> None:
        self.folder = folder / FOLDER
        self.every_steps, self.every_seconds = every_steps, every_seconds
        self.due_at = time.perf_counter() + (every_seconds or FIRST_SECONDS)
        self.seen: int | None = None  # the steps when it was asked last: several may share a call

    def due(self, trainer: Trainer, now: float) -> bool:
        """Tell whether a checkpoint should be written after this step."""
        if self.every_steps is not None:
            now_at = trainer.step + trainer.skipped_steps
            if self.seen is None:  # the first call of this process: it began where a checkpoint was taken, or at 0
                self.seen = 0 if trainer.checkpoint is None else checkpoint.step_of(trainer.checkpoint)
            before, self.seen = self.seen, now_at
            return now_at // self.every_steps > before // self.every_steps
        return now >= self.due_at

    def save(self, trainer: Trainer) -> Path:
        """Write a checkpoint; raises CheckpointError when the disk refuses, the earlier ones are untouched then."""
        begun = time.perf_counter()
        tensors, state = capture(trainer)
        attempt = trainer.step + trainer.skipped_steps
        path = checkpoint.write(self.folder, attempt, tensors, state)
        took = time.perf_counter() - begun
        self.due_at = time.perf_counter() + (self.every_seconds or max(took / MOST_OF_TIME, LEAST_SECONDS))
        return path


def capture(trainer: Trainer) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Return the state of a trainer between two steps: groups of CPU tensors, and plain JSON values."""
    optimizer, options = _flat(trainer.optimizer.state_dict())
    callbacks = {
        f"{i}.{name}": tensor
        for i, callback in enumerate(_kept(trainer))
        for name, tensor in callback.tensors().items()
    }
    groups: dict[str, Mapping[str, Tensor]] = {
        "model": trainer.model.state_dict(),
        "optimizer": optimizer,
        "callbacks": callbacks,
        "sums": trainer.sums.tensors(),
        "best": trainer.best or {},
    }
    untied = {name: untie(group) for name, group in groups.items()}
    state = {
        "counters": {name: getattr(trainer, name) for name in COUNTERS},
        "optimizer": options,
        "per_epoch": trainer.train.per_epoch,
        "stopped": "" if trainer.limited else trainer.stopped,
        "scaler": None if trainer.scaler is None else trainer.scaler.state_dict(),
        "callbacks": [[type(c).__name__, c.state_dict()] for c in _kept(trainer)],
        "history": trainer.history.to_json(),
        "ties": {name: ties for name, (_, ties) in untied.items()},
        "has_best": trainer.best is not None,
        "refused": trainer._train_step.refused,  # steps that were no graphs then must be none now
    }
    return {name: kept for name, (kept, _) in untied.items()}, state


def _kept(trainer: Trainer) -> list[Callback]:
    """Return the callbacks that a checkpoint holds: a run may be resumed where it is shown in another way."""
    return [callback for callback in trainer.callbacks if not callback.only_shows]


def restore(trainer: Trainer, saved: Checkpoint, changed: Collection[str] = ()) -> None:
    """Put a fresh trainer, whose callbacks have begun, where the checkpoint was taken.

    `changed` are the dotted keys of the spec that were something else then: where there are any, the optimizer keeps
    the arguments that it has now, and what ended the run does so no longer if it is among them. Raises CheckpointError
    when the checkpoint was made by another model, optimizer or set of callbacks.
    """
    with _fitting(saved):
        _restore(trainer, saved, changed)


@contextmanager
def _fitting(saved: Checkpoint) -> Iterator[None]:
    try:
        yield
    except (CheckpointError, LookupError, ValueError, TypeError, RuntimeError, AttributeError, OverflowError) as error:
        first = (str(error).splitlines() or [""])[0]
        raise CheckpointError(f"{saved.path}: does not fit this run: {first}.") from None


def _restore(trainer: Trainer, saved: Checkpoint, changed: Collection[str]) -> None:
    state, ties = saved.state, saved.state["ties"]
    groups = {name: dict(saved.tensors.get(name, {})) for name in GROUPS}
    for name, pairs in ties.items():
        for tied, source in pairs.items():
            groups[name][tied] = groups[name][source]
    names = [type(callback).__name__ for callback in _kept(trainer)]
    if names != [name for name, _ in state["callbacks"]]:
        raise ValueError(f"it was made with the callbacks {[name for name, _ in state['callbacks']]}, not {names}")
    refuse_misfit(trainer, COUNTERS, state, groups)
    history = History.from_json(state["history"])
    if history.columns != trainer.history.columns or state["counters"]["epoch"] - len(history) not in (0, 1):
        raise ValueError(f"its history has {len(history)} epochs of {history.columns}")
    trainer.model.load_state_dict(groups["model"])
    _load_optimizer(trainer.optimizer, groups["optimizer"], state["optimizer"], keep=bool(changed))
    if trainer.scaler is not None and (state["scaler"] is not None or not changed):
        trainer.scaler.load_state_dict(state["scaler"])
    if state["has_best"]:
        trainer.best = snapshot(trainer.model)
        for name, tensor in trainer.best.items():
            tensor.copy_(groups["best"][name])
    for name in COUNTERS:
        setattr(trainer, name, state["counters"][name])
    if trainer.batch == state["per_epoch"] and trainer.train.per_epoch is not None:
        trainer.batch = trainer.train.per_epoch  # the end of an epoch, however many batches it has now
    trainer.stopped = "" if any(key.startswith(ENDS) for key in changed) else state["stopped"]
    if isinstance(trainer._train_step, WholeStep):
        trainer._train_step.resumed = True
        if state["refused"]:
            trainer._train_step.go_without_graphs(state["refused"])
    trainer.checkpoint = saved.path
    trainer.history.history.update(history.history)
    trainer.history.monitor, trainer.history.best_epoch = history.monitor, history.best_epoch
    for i, (callback, (_, memory)) in enumerate(zip(_kept(trainer), state["callbacks"], strict=True)):
        callback.load_state_dict(memory)
        prefix = f"{i}."
        own = {n.removeprefix(prefix): t for n, t in groups["callbacks"].items() if n.startswith(prefix)}
        if own:
            callback.load_tensors(own)
    trainer.sums.load(groups["sums"])


def check_place(trainer: Trainer, saved: Checkpoint, changed: Collection[str]) -> None:
    """Raise SpecError for a change that the place where the checkpoint was taken does not allow."""
    with _fitting(saved):
        _check_place(trainer, saved.state, changed)


def _check_place(trainer: Trainer, state: Mapping[str, Any], changed: Collection[str]) -> None:
    counters, options = state["counters"], trainer.options
    epoch, step, batch = counters["epoch"], counters["step"], counters["batch"]
    whole = len(History.from_json(state["history"])) == epoch  # else the epoch is under way, or still to be evaluated
    if "fit.batch_size" in changed and not whole and batch != state["per_epoch"]:
        place = f"the checkpoint stands in the middle of epoch {epoch}, behind batch {batch} of {state['per_epoch']}"
        raise SpecError(Fault(f"cannot change here: {place}. Change it when an epoch is over.", "fit.batch_size"))
    limits = {
        "epochs": (options.most_epochs, epoch - (not whole)),
        "max_steps": (options.max_steps, step - (not whole)),
    }
    for name, (most, done) in limits.items():
        if f"fit.{name}" in changed and most is not None and most <= done:
            what = f"{epoch} epochs" if name == "epochs" else f"{step:,} steps"
            raise SpecError(Fault(f"is {most}, but {what} are done already: give more.", f"fit.{name}"))


def _flat(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return an optimizer's state as tensors by "parameter.name", and what is no tensor as JSON values."""
    tensors, values = {}, {}
    for index, entries in state["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{name}"] = value
            else:
                values[f"{index}.{name}"] = value
    groups = [{k: _json(v) for k, v in group.items() if k != "param_names"} for group in state["param_groups"]]
    return tensors, {"values": values, "groups": groups}


def _json(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor) else value


def _load_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], options: Mapping[str, Any], keep: bool
) -> None:
    """Take back the state, and the arguments too unless the optimizer is to `keep` its own."""
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**tensors, **options["values"]}.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    own = optimizer.state_dict()["param_groups"]
    groups = [dict(mine) for mine in own]
    if not keep:
        for mine, theirs in zip(groups, options["groups"], strict=True):
            mine |= {"lr": theirs["lr"]} if is_known(optimizer) else theirs
    for mine, group in zip(own, groups, strict=True):
        for name, value in mine.items():
            if isinstance(value, tuple):  # JSON has no tuples
                group[name] = tuple(group[name])
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    # torch casts state to the parameter's dtype; where it was kept in another (NAdam's mu_product), that loses bits.
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, entries in state.items():
        for name, value in entries.items():
            now = optimizer.state[parameters[index]][name]
            if isinstance(value, Tensor) and now.dtype != value.dtype:
                optimizer.state[parameters[index]][name] = value.to(now.device, copy=True)
    align_state(optimizer)  # files hold tensors in contiguous order
