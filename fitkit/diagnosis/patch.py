"""Overrides of a run's own spec to try: of the optimizer, model and options that it has, never what it says already."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from fitkit.diagnosis.evidence import Evidence

Patch = tuple[str, ...]

# Where a learning rate usually works; of others the default of torch is near enough.
USUAL_LR = {"SGD": 0.05, "ASGD": 0.05, "Adagrad": 0.01, "RMSprop": 1e-3, "Adadelta": 1.0, "Muon": 0.02, "Rprop": 0.01}
ADAPTIVE_LR = 2e-3  # of Adam and its kin
DECOUPLED = ("AdamW", "Muon")  # whose weight decay is no part of the gradient
LAYERS_OF_DROPOUT = ("Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout")


def rounded(value: float) -> str:
    """Return a number of two digits, as YAML reads it."""
    return f"{float(f'{value:.2g}'):g}"


def scaled_lr(run: Evidence, factor: float) -> Patch:
    """Multiply the learning rate."""
    name, _ = run.component("optimizer")
    lr = run.number("optimizer", "lr")
    return (f"optimizer.{name}.lr={rounded(lr * factor)}",) if lr else ()


def raised_lr(run: Evidence, factor: float) -> Patch:
    """Multiply the learning rate by what the pace of a run asks for, 2 to 10 times: more is a guess."""
    return scaled_lr(run, min(max(factor, 2.0), 10.0))


def usual_lr(run: Evidence) -> Patch:
    """Bring a learning rate that is ten times off to where it usually works."""
    name, _ = run.component("optimizer")
    lr, usual = run.number("optimizer", "lr"), USUAL_LR.get(name, ADAPTIVE_LR)
    return (f"optimizer.{name}.lr={rounded(usual)}",) if lr and lr > 0 and abs(math.log10(lr / usual)) >= 0.99 else ()


def scaled_inputs(run: Evidence) -> Patch:
    """Standardize arrays that Python gave, which go as they are unless the spec says so; token ids have no scale."""
    source, arguments = run.component("data")
    first = run.layers[0] if run.layers else run.component("model")[0]
    first = next(iter(first), "") if isinstance(first, Mapping) else first
    takes_numbers = isinstance(first, str) and first.startswith(("Linear", "Conv", "Flatten", "mlp", "cnn"))
    as_it_is = source == "arrays" and arguments.get("transform", "auto") in ("auto", None)
    return ("data.arrays.transform=standardize",) if as_it_is and takes_numbers else ()


def calmer(run: Evidence) -> Patch:
    """Make smaller steps: a momentum near 1 first, else the learning rate."""
    name, _ = run.component("optimizer")
    if (run.number("optimizer", "momentum") or 0) >= 0.97:
        return (f"optimizer.{name}.momentum=0.9",)
    return scaled_lr(run, 0.1)


def more_decay(run: Evidence) -> Patch:
    """Raise the weight decay tenfold, up to what still lets a model learn."""
    name, arguments = run.component("optimizer")
    decay = run.number("optimizer", "weight_decay")
    if decay is None or "weight_decay" not in arguments:
        return ()
    least, most = (0.05, 0.5) if name in DECOUPLED else (1e-4, 1e-2)
    new = min(max(10 * decay, least), most)
    return (f"optimizer.{name}.weight_decay={rounded(new)}",) if new > decay else ()


def less_decay(run: Evidence) -> Patch:
    """Bring a weight decay that holds a model down to a usual one."""
    name, _ = run.component("optimizer")
    usual, high = (0.01, 0.5) if name in DECOUPLED else (1e-4, 5e-3)
    if (run.number("optimizer", "weight_decay") or 0) < high:
        return ()
    return (f"optimizer.{name}.weight_decay={rounded(usual)}",)


def early_stopping(run: Evidence) -> Patch:
    """Stop when the validation loss does not fall any more; where a run does already, do so sooner."""
    given = run.callback("EarlyStopping")
    if given is None:
        return ("callbacks.EarlyStopping.patience=5",)
    patience = given.get("patience")
    return ("callbacks.EarlyStopping.patience=5",) if isinstance(patience, int) and patience > 10 else ()


def dropout_of(run: Evidence) -> float:
    """Return the highest dropout of the model that the spec tells of, 0 where there is none."""
    found = [run.number("model", "dropout") or 0.0]
    for layer in run.layers:
        if isinstance(layer, Mapping) and len(layer) == 1:
            [(name, arguments)] = layer.items()
            if name in LAYERS_OF_DROPOUT and isinstance(arguments, Mapping):
                p = arguments.get("p")
                found.append(p if isinstance(p, float) else 0.0)
    return max(found)


def more_dropout(run: Evidence) -> Patch:
    """Let a named model that has a dropout of its own leave out more."""
    name, arguments = run.component("model")
    given = run.number("model", "dropout")
    return (f"model.{name}.dropout=0.3",) if "dropout" in arguments and given is not None and given < 0.3 else ()


def less_dropout(run: Evidence) -> Patch:
    """Leave out at most a tenth; a list of layers is given whole, since an override cannot name one of them."""
    name, arguments = run.component("model")
    if dropout_of(run) <= 0.1:
        return ()
    if "dropout" in arguments:
        return (f"model.{name}.dropout=0.1",)
    return (f"model={json.dumps([_lower(layer) for layer in run.layers])}",)


def _lower(layer: Any) -> Any:
    if not isinstance(layer, Mapping) or len(layer) != 1:
        return layer
    [(name, arguments)] = layer.items()
    if not isinstance(arguments, Mapping):
        return layer
    arguments = {key: value for key, value in arguments.items() if value is not None}
    if name in LAYERS_OF_DROPOUT and isinstance(arguments.get("p"), float):
        arguments["p"] = min(arguments["p"], 0.1)
    return {name: arguments} if arguments else name


def wider(run: Evidence) -> Patch:
    """Double the hidden layers of an mlp."""
    name, arguments = run.component("model")
    hidden = arguments.get("hidden")
    if name != "mlp" or not isinstance(hidden, list) or not all(isinstance(size, int) for size in hidden):
        return ()
    sizes = [min(1024, 2 * max(size, 32)) for size in hidden] or [64]
    return (f"model.mlp.hidden={json.dumps(sizes)}",) if sizes != hidden else ()


def longer(run: Evidence, factor: float = 2) -> Patch:
    """Run so many times as long, by whatever limit ended the run."""
    for key, said in (("max_steps", "max_steps"), ("max_time", "max_time"), ("epochs", "")):
        limit = run.fit(key)
        if limit and run.stopped.startswith(said):
            new = limit * factor
            return (f"fit.{key}={rounded(new) if key == 'max_time' else math.ceil(new)}",)
    return ()


def cosine(run: Evidence) -> Patch:
    """Let the learning rate fall over the whole run."""
    name, _ = run.component("schedule")
    return ("schedule=cosine",) if name != "cosine" else ()


def smaller_batches(run: Evidence) -> Patch:
    """Take batches of 32 and no accumulation."""
    size, accumulate = run.fit("batch_size") or 0, run.fit("accumulate") or 1
    return (*(("fit.batch_size=32",) if size > 32 else ()), *(("fit.accumulate=1",) if accumulate > 1 else ()))


def more_validation(run: Evidence) -> Patch:
    """Validate on a fifth of the rows, where the split has a share."""
    name, _ = run.component("splits")
    share = run.number("splits", "val")
    return (f"splits.{name}.val=0.2",) if share is not None and 0 < share < 0.2 else ()


def balanced(run: Evidence) -> Patch:
    """Give every class the same weight in the loss."""
    name, arguments = run.component("loss")
    for argument in ("class_weight", "pos_weight"):
        if argument in arguments and arguments[argument] != "balanced":
            return (f"loss.{name}.{argument}=balanced",)
    return ()
