"""The card of a weights file: what a model takes and gives, as plain JSON that is checked before anything is built."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fitkit.builder.data import Prepared
from fitkit.builder.objective import Bound
from fitkit.builder.tables import TABLES
from fitkit.data import Inputs
from fitkit.errors import CheckpointError, DataError
from fitkit.trainer import Trainer

CARD_FORMAT = 1
MOST_CARD_BYTES = 4 << 20  # half of what is read of a safetensors header, which names the tensors too
LARGEST = 10**8  # numbers of one sample, token ids or outputs
MOST_SIDES = 25  # of a sample: torch adds no tensors of more
PRECISIONS = {None: None, "bfloat16": torch.bfloat16, "float16": torch.bfloat16}  # of autocast; a CPU has no float16


def make_card(
    trainer: Trainer, prepared: Prepared, inputs: Inputs, outputs: int | None, bound: Bound, ours: bool
) -> dict[str, Any]:
    """Return what a weights file says of itself: enough to rebuild the model and its preprocessing, as plain JSON."""
    data, spec = prepared.data, trainer.spec
    features = None if data is None or data.features is None else [dataclasses.asdict(f) for f in data.features]
    card = {
        "format": CARD_FORMAT,
        "spec": {key: value for key, value in spec.resolved().items() if key in ("model", "loss", "metrics")},
        "inputs": {"shape": list(inputs.shape), "vocabulary": inputs.vocabulary},
        "outputs": outputs,
        "target": prepared.target,
        "classes": None if data is None or data.classes is None else list(data.classes),
        "features": features,
        "class_dim": bound.class_dim,
        "precision": trainer.objective.precision and str(trainer.objective.precision).removeprefix("torch."),
        "squeezed": bound.squeezed,
        "built": ours,
    }
    if len(json.dumps(card)) > MOST_CARD_BYTES:
        raise DataError(
            f"{prepared.name('train')}: the names of classes, columns and texts are longer than {MOST_CARD_BYTES:,} "
            f"bytes together, too long for a weights file. Shorten or number them."
        )
    return card


def check_card(card: Any, transform: Mapping[str, Tensor], path: Path) -> None:
    """Raise CheckpointError unless a card says what `make_card` can say, and the transform fits the samples."""
    try:
        wrong = next((what for what, right in _checks(card, transform).items() if not right), None)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError, OverflowError) as error:
        wrong = f"{type(error).__name__}: {error}"
    if wrong is not None:
        raise CheckpointError(f"{path}: its card does not describe a model ({wrong}).")


def _checks(card: Any, transform: Mapping[str, Tensor]) -> dict[str, bool]:
    shape, vocabulary, outputs = card["inputs"]["shape"], card["inputs"]["vocabulary"], card["outputs"]
    classes, features = card["classes"], card["features"]
    columns = None if features is None else sum(len(f["categories"] or "1") for f in features)
    texts = [text for f in features or () for text in (f["name"], *(f["categories"] or ()))]
    lists = [f["categories"] for f in features or () if f["categories"] is not None]
    return {
        "format": card["format"] == CARD_FORMAT,
        "inputs.shape": len(shape) <= MOST_SIDES
        and all(_whole(size, 0) for size in shape)
        and math.prod(shape) <= LARGEST,
        "inputs.vocabulary": vocabulary is None or _whole(vocabulary, 1),
        "outputs": outputs is None or _whole(outputs, 1),
        "target": card["target"] in ("classes", "values"),
        "classes": classes is None or (isinstance(classes, list) and all(isinstance(name, str) for name in classes)),
        "number of classes": not classes or outputs in (None, 1, len(classes)),
        "features": columns is None or [columns] == shape,
        "names of features": all(isinstance(text, str) for text in texts)
        and len({f["name"] for f in features or ()}) == len(features or ()),
        "categories": all(isinstance(c, list) and 0 < len(c) == len(set(c)) for c in lists),
        "class_dim": card["class_dim"] in (-1, 1),
        "squeezed": isinstance(card["squeezed"], bool) and isinstance(card["built"], bool),
        "precision": card["precision"] in PRECISIONS,
        "temperature": "temperature" not in card or _positive(card["temperature"]),
        "loss": list(card["spec"]["loss"])[0] in TABLES["losses"] and isinstance(card["spec"]["metrics"], dict),
        "transform": not transform or _fits(transform, shape),
    }


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= LARGEST


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0


def _fits(transform: Mapping[str, Tensor], shape: list[int]) -> bool:
    if len(shape) > MOST_SIDES:
        return False
    sample = torch.empty(shape, device="meta")
    if set(transform) != {"shift", "scale"} or not all(tensor.is_floating_point() for tensor in transform.values()):
        return False
    return all((sample + transform[name].to("meta")).shape == sample.shape for name in ("shift", "scale"))
