"""Where a fit stands, as tensors and plain JSON values, and back: what a checkpoint holds and when one is written.

Data order, dropout masks and learning rates are functions of (seed, epoch, step), so two counters stand for them.
What cannot be derived is kept: weights, optimizer, averages, loss scale, best weights, callbacks' memory, the history
so far and the sums of the epoch that is under way.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fitkit.engine import checkpoint
from fitkit.engine.checkpoint import Checkpoint
from fitkit.engine.weights import snapshot, untie
from fitkit.errors import CheckpointError
from fitkit.history import History
from fitkit.trainer import Trainer

FOLDER = "checkpoints"
MOST_OF_TIME = 0.03  # the share of the time that checkpoints may take unless an interval is asked for
FIRST_SECONDS, LEAST_SECONDS = 5.0, 1.0
GROUPS = ("model", "optimizer", "callbacks", "sums", "best")
COUNTERS = ("epoch", "step", "batch", "skipped_steps", "lr_factor", "best_value", "seconds")


class Checkpoints:
    """Writes checkpoints of a trainer between two steps: so seldom that they cost at most 3 % of the time, or as asked.

    `every_steps` and `every_seconds` set the interval instead. None of this changes what is trained.
    """

    def __init__(self, folder: Path, *, every_steps: int | None = None, every_seconds: float | None = None) -> None:
        self.folder = folder / FOLDER
        self.every_steps, self.every_seconds = every_steps, every_seconds
        self.due_at = time.perf_counter() + (every_seconds or FIRST_SECONDS)
        self.saved_step = -1

    def due(self, trainer: Trainer, now: float) -> bool:
        """Tell whether a checkpoint should be written after this step."""
        if self.every_steps is not None:
            return (trainer.step + trainer.skipped_steps) % self.every_steps == 0
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
        for i, callback in enumerate(trainer.callbacks)
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
        "scaler": None if trainer.scaler is None else trainer.scaler.state_dict(),
        "callbacks": [[type(c).__name__, c.state_dict()] for c in trainer.callbacks],
        "history": trainer.history.to_json(),
        "ties": {name: ties for name, (_, ties) in untied.items()},
        "has_best": trainer.best is not None,
    }
    return {name: kept for name, (kept, _) in untied.items()}, state


def restore(trainer: Trainer, saved: Checkpoint) -> None:
    """Put a fresh trainer, whose callbacks have begun, where the checkpoint was taken.

    Raises CheckpointError when the checkpoint was made by another model, optimizer or set of callbacks.
    """
    try:
        _restore(trainer, saved)
    except (KeyError, ValueError, TypeError, RuntimeError, IndexError) as error:
        first = (str(error).splitlines() or [""])[0]
        raise CheckpointError(f"{saved.path}: does not fit this run: {first}.") from None


def _restore(trainer: Trainer, saved: Checkpoint) -> None:
    state, ties = saved.state, saved.state["ties"]
    groups = {name: dict(saved.tensors.get(name, {})) for name in GROUPS}
    for name, pairs in ties.items():
        for tied, source in pairs.items():
            groups[name][tied] = groups[name][source]
    names = [type(callback).__name__ for callback in trainer.callbacks]
    if names != [name for name, _ in state["callbacks"]]:
        raise ValueError(f"it was made with the callbacks {[name for name, _ in state['callbacks']]}, not {names}")
    trainer.model.load_state_dict(groups["model"])
    _load_optimizer(trainer.optimizer, groups["optimizer"], state["optimizer"])
    if trainer.scaler is not None:
        trainer.scaler.load_state_dict(state["scaler"])
    if state["has_best"]:
        trainer.best = snapshot(trainer.model)
        for name, tensor in trainer.best.items():
            tensor.copy_(groups["best"][name])
    for name in COUNTERS:
        setattr(trainer, name, state["counters"][name])
    history = History.from_json(state["history"])
    trainer.history.history.update(history.history)
    trainer.history.monitor, trainer.history.best_epoch = history.monitor, history.best_epoch
    for i, (callback, (_, memory)) in enumerate(zip(trainer.callbacks, state["callbacks"], strict=True)):
        callback.load_state_dict(memory)
        prefix = f"{i}."
        own = {n.removeprefix(prefix): t for n, t in groups["callbacks"].items() if n.startswith(prefix)}
        if own:
            callback.load_tensors(own)
    trainer.sums.load(groups["sums"])


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
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], options: Mapping[str, Any]
) -> None:
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**tensors, **options["values"]}.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    own = optimizer.state_dict()["param_groups"]
    groups = [{**mine, **theirs} for mine, theirs in zip(own, options["groups"], strict=True)]
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
