"""What an entry's signature and docstring say, in words for people: `list`, `explain`, the schema and the reference.

Nothing here knows a component by name. Torch's docstrings are reST written for Python: they are cut to what holds in
a spec (first paragraph, first sentence of each argument) and cleaned of markup.
"""

from __future__ import annotations

import inspect
import math
import re
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from fitkit.parts.optimizers import parameter_groups
from fitkit.parts.schedules import warmup_steps
from fitkit.parts.sources import preprocessing
from fitkit.spec.check import TABLE_OF
from fitkit.spec.reader import Node, scalar
from fitkit.spec.table import Argument, Entry
from fitkit.spec.types import Part
from fitkit.spec.values import Mismatch, convert, describe, options

WHERE = {table: f"{section}:" for section, table in TABLE_OF.items()}  # where in a spec the names of a table stand
WHERE |= {"layers": "model:, in a list", "transforms": "data:, as the transform of a source"}
WHERE |= {"augmentations": "data:, in the list augment of a source"}

_SHARED = (parameter_groups, warmup_steps, preprocessing)  # whose docstrings tell of the arguments a table shares
_TORCH = {"torch.nn": torch.nn, "torch.optim": torch.optim, "torch.nn.functional": torch.nn.functional}


class Section(NamedTuple):
    """A top-level key: what it says, what a spec without it gets, and an example."""

    words: str
    default: str
    example: str


SECTIONS = {
    "extends": Section(
        "A base spec beside this one: what it says holds wherever this spec says nothing else.",
        "this spec is all there is",
        "extends: base.yaml\noptimizer: {AdamW: {lr: 0.01}}",
    ),
    "name": Section(
        "What the run is called: 1 to 64 letters, digits, dots, underscores and hyphens. Its folder is runs/<name>.",
        "the name of the spec's file",
        "name: digits-wide",
    ),
    "seed": Section(
        "A whole number from 0: initial weights, splits, the order of the batches and dropout follow from it.",
        "0",
        "seed: 1",
    ),
    "data": Section(
        "Where the samples come from: one source.",
        "an error, unless Python hands over data=(x, y)",
        "data:\n  csv: {path: flowers.csv, target: species}",
    ),
    "splits": Section(
        "How the rows are dealt out to train, val and test: one split; kfold and time_series ask for a run a fold.",
        "the split that the source brings along, else time for text, stratified for classes, random for values",
        "splits: {stratified: {val: 0.15, test: 0.15}}",
    ),
    "model": Section(
        "What is trained: one model by name, or a list of torch.nn layers. Input sizes are inferred from the data; "
        "`outputs` stands for as many outputs as the target needs.",
        "an error, unless Python uses fitkit.Model(module)",
        "model:\n  - Linear: 128\n  - ReLU\n  - Linear: outputs",
    ),
    "loss": Section(
        "What training minimises: one loss.",
        "cross_entropy for classes, mse_loss for values",
        "loss: {cross_entropy: {label_smoothing: 0.1}}",
    ),
    "metrics": Section(
        "What is measured beside the loss, on train and val: a list of metrics, or a mapping with their arguments.",
        "accuracy for classes (it is always measured), none for values",
        "metrics: [accuracy, top_k_accuracy]",
    ),
    "optimizer": Section("How a step moves the weights: one optimizer.", "AdamW", "optimizer: {AdamW: {lr: 0.003}}"),
    "schedule": Section(
        "What the learning rate is multiplied by on its way through the run, whose length it takes from fit: one "
        "schedule.",
        "constant",
        "schedule: {cosine: {warmup: 0.05}}",
    ),
    "callbacks": Section(
        "What is done between epochs: a list of callbacks, or a mapping with their arguments.",
        "none (TerminateOnNaN is always there)",
        "callbacks:\n  EarlyStopping: {monitor: val_loss, patience: 5}",
    ),
    "fit": Section(
        "How the fit runs: how long, how much at once, in which numbers, on which device.",
        "every key of it has its default",
        "fit: {epochs: 30, batch_size: 64}",
    ),
}

# What an example shows, by table, and by argument or entry and argument: the optional arguments that are worth saying
# (with a value, where their default is none, zero or false), and values for required ones. Each is tried, and left out
# where it does not pass the check; what stands here for no argument costs nothing.
_WORTH: dict[str, dict[str, Any]] = {
    "sources": {"target": "label", "length": 64},
    "splits": {"time.column": "date", "val": 0.2, "test": 0.2},
    "transforms": {"range": [0, 255]},
    "augmentations": {"random_flip.direction": "horizontal", "random_crop.padding": 1, "size": 3, "strength": 0.2}
    | {"std": 0.1, "padding": 1},
    "models": {"dropout": 0.1},
    "losses": {"label_smoothing": 0.1, "class_weight": "balanced", "pos_weight": "balanced"},
    "optimizers": {"SGD.momentum": 0.9, "weight_decay": 0.01},
    "schedules": {"warmup": 0.05},
    "layers": {"scale_factor": 2, "p": 0.5},
    "callbacks": {"monitor": "val_loss", "patience": 5, "save_best_only": True},
}
_VALUES: dict[str, dict[str, Any]] = {
    "sources": {"text.path": "book.txt"},
    "splits": {"group.column": "patient", "column.column": "split"},
    "schedules": {"at": [0.5, 0.75]},
    "layers": {"out_features": 128, "out_channels": 32, "embedding_dim": 64, "hidden_size": 128, "kernel_size": 3}
    | {"nhead": 8, "num_groups": 8, "groups": 4, "upscale_factor": 2, "downscale_factor": 2, "size": 5, "norm_type": 2}
    | {"unflattened_size": [1, -1], "Fold.output_size": 8, "value": 0, "threshold": 0.1},
}
_SHOWN = 3  # arguments in an example, or all that are required


def flow(value: Any) -> str:
    """Return a value as YAML on one line, as this package's reader reads it back."""
    if isinstance(value, str):
        if re.fullmatch(r"[A-Za-z_][\w./*-]*", value, re.ASCII) and isinstance(scalar(value), str):
            return value
        return '"' + "".join(map(_escaped, value)) + '"'
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, float):
        short = f"{value:g}"
        if not math.isfinite(value):
            return short.replace("inf", ".inf").replace("nan", ".nan")
        return short if float(short) == value else repr(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{flow(key)}: {flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, Sequence):
        return "[" + ", ".join(map(flow, value)) + "]"
    return str(value)


def _escaped(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    if character.isprintable():
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def torch_name(entry: Entry) -> str | None:
    """Return where torch itself has this class or function, "torch.nn.Linear"; None when it is not torch's."""
    factory = inspect.unwrap(entry.factory)
    return next((f"{path}.{entry.name}" for path in _TORCH if getattr(_TORCH[path], entry.name, 0) is factory), None)


def told_by_torch(entry: Entry) -> bool:
    """Tell whether the docstring is torch's: written for Python, with an item for each argument."""
    return torch_name(entry) is not None and inspect.unwrap(entry.factory) is entry.factory


def sentence(entry: Entry) -> str:
    """Return what the component is or does in one sentence."""
    return _sentences(prose(entry)[0])[0] if prose(entry) else ""


def prose(entry: Entry) -> tuple[str, ...]:
    """Return the paragraphs that describe the component, without the list of its arguments: of torch's, the first."""
    lines, _ = _split(inspect.getdoc(entry.factory) or "", tuple(entry.arguments))
    found = [plain(paragraph) for paragraph in re.split(r"\n\s*\n", "\n".join(lines)) if paragraph.strip()]
    if not told_by_torch(entry):
        return tuple(found)
    first = next((paragraph for paragraph in found if not paragraph.startswith("__init__(")), "")
    return (" ".join(said for said in _sentences(first) if not said.endswith(":")),)


def notes(entry: Entry) -> Mapping[str, str]:
    """Return what is said of each argument: its item in the docstring, or the first sentence with its name in it."""
    _, items = _split(inspect.getdoc(entry.factory) or "", tuple(entry.arguments))
    said = [s for paragraph in prose(entry) for s in _sentences(paragraph)]
    shared = [s for function in _SHARED for s in _sentences(plain(inspect.getdoc(function) or ""))]
    found = {}
    for name, argument in entry.arguments.items():
        near = [s for s in (shared if argument.shared else said) if f"`{name}`" in s]
        text = _without_default(plain(items[name])) if name in items else near[0] if near else ""
        if text[:1].isalnum() or text[:1] == "`":  # not torch's "'zeros', 'reflect' or …", which the type says better
            found[name] = text[0].upper() + text[1:] + "." * (text[-1] != ".")
    return found


def _split(doc: str, names: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Part a docstring into the lines of its prose and its items `name (type): text`, under Args or on their own."""
    lines = doc.splitlines()
    begin = next((i + 1 for i, line in enumerate(lines) if line.strip() in ("Args:", "Parameters:")), 0)
    end = next((i for i in range(begin, len(lines)) if begin and re.match(r"\S", lines[i])), len(lines))
    kept, items, depth = lines[: max(begin - 1, 0)], {}, None
    name = ""
    for line in lines[begin:end]:
        indent = len(line) - len(line.lstrip())
        start = re.match(r"\s*(\w+)\s*[(:]", line)
        if start and start[1] in names and (depth is None or indent <= depth):
            name, depth = start[1], indent
            items[name] = line.strip()
        elif name and line.strip() and depth is not None and indent > depth:
            items[name] += f" {line.strip()}"
        else:
            name = ""
            kept += [] if begin else [line]
    return kept, {name: re.sub(r"^\w+\s*(\(.*?\))?\s*:\s*", "", text) for name, text in items.items()}


def plain(text: str) -> str:
    """Return reST or Markdown as one line of plain text; single backquotes stay."""

    def role(match: re.Match[str]) -> str:
        words = re.sub(r"\s*<[^>]*>$", "", match[1])
        return words.rpartition(".")[2] if words.startswith("~") else words

    text = re.sub(r":\w+:`([^`]*)`", role, text)
    text = re.sub(r"`([^`<]*?)\s*(?:<[^`>]*>)?`__?", r"\1", text)
    text = re.sub(r"``([^`]*)``", r"\1", text)
    text = re.sub(r"\*\*([^*]+)\*\*", r"\1", text)
    text = re.sub(r"\\text\{([^}]*)\}|_\{([^}]*)\}", lambda m: m[1] or f"_{m[2]}", text)
    text = re.sub(r"\\frac\{([^}]*)\}\{([^}]*)\}", r"\1 / \2", text).replace("\\times", "x")
    return " ".join(re.sub(r"\\(?=[a-z_])", "", text).split())


def _sentences(text: str) -> list[str]:
    return re.split(r"(?<=[.!?])\s+(?=[A-Z`(])", text)


def _without_default(text: str) -> str:
    """Return the first sentence about one of torch's arguments, in a spec's words and without its default."""
    value = re.search(r"Default value is (\w+)", text)  # another argument's: worth more than "optional"
    text = re.sub(r"\s*\((default\b.*?\)*|required)\)", "", _sentences(text)[0])
    text = re.sub(r"\s*Default(s to|:)?\s.*$", "", text)
    text += f" Without it: {value[1]}." if value else ""
    for python, yaml in (("True", "true"), ("False", "false"), ("None", "null")):
        text = re.sub(rf"\b{python}\b", yaml, text)
    return text.strip()


def wanted(argument: Argument) -> str:
    """Say in words what values an argument takes; null, where it only means that nothing was said, is left out."""
    choices = [choice for choice in options(argument.annotation) if choice is not types.NoneType]
    words = list(dict.fromkeys(map(describe, choices)))
    return (", or " if any("," in word for word in words) else " or ").join(words)


def tables_in(annotation: Any) -> list[str]:
    """Return the tables whose components an argument of this type takes."""
    choices = options(annotation)
    choices += [item for choice in choices if typing.get_origin(choice) is list for item in typing.get_args(choice)]
    marks = [mark for choice in choices for mark in typing.get_args(choice)[1:]]
    return [mark.table for mark in marks if isinstance(mark, Part)]


def fallback(entry: Entry, argument: Argument) -> str:
    """Say what holds when a spec leaves the argument out."""
    if argument.required:
        return "required"
    if argument.default is not None:
        return f"default {flow(argument.default)}"
    itself = inspect.signature(entry.factory).parameters.get(argument.name)
    wanted_by_torch = itself is None or itself.default is itself.empty
    return "inferred from the data" if wanted_by_torch and not argument.shared else "optional"


def brief(argument: Argument) -> str:
    """Return an argument in short: `lr: 0.001` with its default, `path` when required, `target?` when optional."""
    if argument.required:
        return argument.name
    return f"{argument.name}?" if argument.default is None else f"{argument.name}: {flow(argument.default)}"


def example(table: str, entry: Entry) -> str:
    """Return a few lines of YAML that use the entry, and that a spec may hold as they stand."""
    shown = _arguments(table, entry)
    component = f"{entry.name}: {flow(shown)}" if shown else entry.name
    if table == "layers":
        return _layers(entry, alone(table, entry) or "" if list(shown) == [entry.primary] else component)
    if table == "transforms":
        return f"data:\n  digits: {{transform: {f'{{{component}}}' if shown else component}}}"
    if table == "augmentations":
        return f"data:\n  digits: {{layout: image, augment: [{f'{{{component}}}' if shown else component}]}}"
    if shown:
        return f"{WHERE[table]}\n  {component}"
    return f"{WHERE[table]} [{component}]" if table in ("metrics", "callbacks") else f"{WHERE[table]} {component}"


def alone(table: str, entry: Entry) -> str | None:
    """Return the entry with a value standing alone for its primary argument; None when it has none."""
    if entry.primary is None:
        return None
    value = _value(entry, entry.arguments[entry.primary], _liked(table, entry, entry.primary))
    return f"{entry.name}: {flow(value)}"


def _layers(entry: Entry, component: str) -> str:
    """Put a layer among others that bring it a shape it takes, and make outputs of what it gives."""
    flat = entry.facts.get("takes") in ([], ["BC", "BCL"], ["BD", "BTD"]) and entry.facts.get("tokens") != "only"
    before = ["Linear: 128"] if flat and "tokens" not in entry.facts and entry.name != "Linear" else []
    layers = [*before, component, *([] if flat else ["Flatten"]), "Linear: outputs"]
    return "\n".join(["model:", *(f"  - {layer}" for layer in layers)])


def _arguments(table: str, entry: Entry) -> dict[str, Any]:
    """Choose what an example shows: all that is required, what is worth saying, the primary argument, the first two."""
    worth, arguments = _WORTH.get(table, {}), entry.arguments
    names = [name for name, argument in arguments.items() if argument.required]
    names += [name for name in arguments if name in worth or f"{entry.name}.{name}" in worth]
    if entry.primary and arguments[entry.primary].default is not None and table != "layers":
        names.insert(0, entry.primary)
    if len(names) < 2 and table != "layers" and not any(arguments[name].required for name in names):
        names += [name for name, a in arguments.items() if a.default is not None and not a.shared][:2]
    names = list(dict.fromkeys(names))
    most = max(_SHOWN, sum(argument.required for argument in arguments.values()))
    names = [name for name in arguments if name in names[:most]]
    return {name: _value(entry, arguments[name], _liked(table, entry, name)) for name in names}


def _liked(table: str, entry: Entry, name: str) -> Any:
    known = _WORTH.get(table, {}) | _VALUES.get(table, {})
    return known.get(f"{entry.name}.{name}", known.get(name))


def _value(entry: Entry, argument: Argument, liked: Any) -> Any:
    if not argument.required and argument.default:
        return argument.default
    file = f"{argument.name if argument.name != 'path' else 'data'}.{entry.name}"
    default = [] if argument.required else [argument.default]
    for guess in (liked, *default, file, argument.name, 1, 1.0, [1], [file], True):
        try:
            convert(argument.annotation, _node(guess))
        except Mismatch:
            continue
        if guess is not None:
            return guess
    return None


def _node(value: Any) -> Node:
    return Node([_node(item) for item in value] if isinstance(value, list | tuple) else value)
