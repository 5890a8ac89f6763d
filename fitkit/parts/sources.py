"""The sources that a spec may name: each reads, maps or makes samples and returns them as `Data`."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from safetensors import safe_open

from fitkit.data import Data, Feature
from fitkit.errors import DataError
from fitkit.files import too_much
from fitkit.parts import array_file, csv_table
from fitkit.parts.input_file import read_text
from fitkit.spec.table import Table
from fitkit.spec.types import NonNegative, NonNegativeInt, Part, PositiveInt, ReadPath

BUNDLED = Path(__file__).with_name("bundled")  # see ORIGIN.md there


def preprocessing(
    *,
    transform: Literal["auto", "none"] | Annotated[object, Part("transforms")] = "auto",
    augment: list[Annotated[object, Part("augmentations")]] | None = None,
) -> None:
    """Declare what every source takes.

    `transform` is that of x, fitted on the training rows. `augment` lists what training samples go through in this
    order, before the transform, differently in each epoch; validation and predictions never do.
    """


sources = Table("source", shared=preprocessing)


@sources.register(primary="layout")
def digits(*, layout: Literal["flat", "image", "rows"] = "flat") -> Data:
    """1797 handwritten digits of 8 x 8 pixels from 0 to 16, ten classes; UCI, CC BY 4.0.

    `layout` gives each sample the shape (64,), (1, 8, 8) or (8, 8).
    """
    data = _bundled("digits")
    shape = {"flat": (64,), "image": (1, 8, 8), "rows": (8, 8)}[layout]
    return replace(data, x=data.x.reshape(-1, *shape), image=(1, 8, 8) if layout == "flat" else None)


@sources.register
def iris() -> Data:
    """150 iris flowers, 4 lengths in cm, three species; Fisher 1936, UCI, CC BY 4.0."""
    return _bundled("iris")


@sources.register
def breast_cancer() -> Data:
    """569 tumours, 30 measurements of cell nuclei, malignant or benign; UCI, CC BY 4.0."""
    return _bundled("breast_cancer")


@sources.register
def diabetes() -> Data:
    """442 patients, 10 measurements, progress of the disease after a year as a number; Efron et al. 2004."""
    return _bundled("diabetes")


@sources.register(last_is_target=True)
def csv(
    *,
    path: ReadPath,
    target: str | list[str] | None = None,
    columns: list[str] | None = None,
    ignore: list[str] | None = None,
    task: Literal["auto", "classes", "values"] = "auto",
    delimiter: str = ",",
) -> Data:
    """Read a CSV file with a header: numbers as they are, text one-hot, the last column as target.

    `target` names the column to predict, or several columns of numbers; `columns` those to predict from (default: all
    others but `ignore`). With `task: auto`, text and up to 20 repeated whole numbers are classes. x is float32 (N, D);
    every column stays in `Data.columns` as text, for splits. Any fault is a `DataError` with line and column.
    """
    table = csv_table.read_table(path, delimiter)
    wanted = [target] if isinstance(target, str) else target
    if wanted is None:
        wanted = [list(table.columns)[-1]]
    table.require(wanted, "target")
    table.require(ignore or [], "ignore")
    table.require(columns or [], "columns")
    for name in wanted:
        if name in (ignore or []) or name in (columns or []):
            raise table.column_fault(name, "this is the target, so it cannot be under ignore or columns too.")
    left = [name for name in table.columns if name not in wanted and name not in (ignore or [])]
    used = left if columns is None else list(dict.fromkeys(columns))
    if not wanted or not used:
        raise DataError(f"{path}: no column is left as {'feature' if wanted else 'target'}. Name at least one.")
    for name in used:
        if name in (ignore or []):
            raise table.column_fault(name, "this is under columns and under ignore. Name it in one of them.")
    features = csv_table.features(table, used)
    x = csv_table.encode_table(table, features)
    y, kind, classes = csv_table.targets(table, wanted, task)
    about: dict[str, Any] = {"name": Path(path).name, "columns": table.columns, "lines": table.lines}
    return Data(x=x, y=y, target=kind, classes=classes, features=features, **about)


@sources.register
def text(*, path: ReadPath, length: PositiveInt = 64, stride: PositiveInt | None = None) -> Data:
    """Read the characters of a UTF-8 text file in windows, each with its next characters as target.

    A window has `length` characters and starts `stride` (default: `length`) after the one before. Token ids number the
    file's characters in sorted order: uint8 up to 256 of them, int32 beyond.
    """
    content = read_text(path)
    if len(content) <= length:
        raise DataError(
            f"{path}: {len(content)} characters are too few for a window of {length} and the character after it. "
            f"Say a smaller length."
        )
    code = bytearray(content, f"utf-32-{sys.byteorder[0]}e")
    points, ids = torch.unique(torch.frombuffer(code, dtype=torch.int32), return_inverse=True)
    characters = tuple(map(chr, points.tolist()))
    return Data(
        x=ids.to(torch.uint8 if len(characters) <= 256 else torch.int32),
        y=None,
        target="classes",
        name=Path(path).name,
        classes=characters,
        vocabulary=len(characters),
        window=length,
        starts=torch.arange(0, len(content) - length, stride or length),
    )


@sources.register
def npy(
    *,
    x: ReadPath,
    y: ReadPath,
    task: Literal["auto", "classes", "values"] = "auto",
    read: Literal["auto", "memory", "map"] = "auto",
) -> Data:
    """Read inputs and targets from two .npy files; needs NumPy.

    With `task: auto`, whole numbers are classes (0 to C-1) and floats are values. Nothing is unpickled. `read: map`
    leaves x in its file, from where each batch is read when it is needed; `auto` does so where x would take more than
    half of the available memory. The numbers are the same.
    """
    pairs, file = array_file.read_npy(x, y, read)
    return array_file.from_parts(pairs, task, f"{Path(x).name}, {Path(y).name}", file)


@sources.register
def npz(*, path: ReadPath, x: str = "x", y: str = "y", task: Literal["auto", "classes", "values"] = "auto") -> Data:
    """Read two arrays of an .npz file, or x_train, y_train, x_val, … as a given split; needs NumPy.

    `task` is as for npy. Nothing is unpickled.
    """
    return array_file.from_parts(array_file.read_npz(path, x, y), task, Path(path).name)


@sources.register
def safetensors(
    *,
    path: ReadPath,
    x: str = "x",
    y: str = "y",
    task: Literal["auto", "classes", "values"] = "auto",
    read: Literal["auto", "memory", "map"] = "auto",
) -> Data:
    """Read two tensors of a safetensors file, or x_train, y_train, x_val, … as a given split.

    `task` and `read` are as for npy; to be mapped, all x must lie in the file side by side, as save_file writes them.
    """
    pairs, file = array_file.read_safetensors(path, x, y, read)
    return array_file.from_parts(pairs, task, Path(path).name, file)


@sources.register
def synthetic(
    *,
    samples: PositiveInt = 1000,
    features: PositiveInt = 20,
    classes: NonNegativeInt = 2,
    noise: NonNegative = 0.0,
    hidden: PositiveInt = 32,
    seed: NonNegativeInt = 0,
) -> Data:
    """Make normal inputs that a random network with one hidden layer has labelled.

    The teacher is tanh(x A) B with normal weights; each of its outputs is standardized over the samples, then gets
    `noise` times a normal number. The label is the largest output of `classes`, or the output itself for 0 classes.
    """
    if classes == 1 or classes > samples:
        raise ValueError(f"classes {classes} with {samples} samples: say 0 for values, or 2 to {samples} classes")
    sizes = 20 * samples * features + 8 * features * hidden + samples * (16 * hidden + 32 * max(1, classes))
    if (why := too_much(sizes)) is not None:
        raise ValueError(f"a table of {samples:,} samples and {features:,} features {why}")
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    x = normal(samples, features).float()
    outputs = (x.double() @ normal(features, hidden) / features**0.5).tanh() @ normal(hidden, classes or 1)
    outputs = (outputs - outputs.mean(0)) / outputs.std(0, correction=0).clamp(min=1e-12)
    outputs += noise * normal(*outputs.shape)
    if not classes:
        return Data(x=x, y=outputs.squeeze(1).float(), target="values", name="synthetic")
    names = tuple(map(str, range(classes)))
    return Data(x=x, y=outputs.argmax(1), target="classes", name="synthetic", classes=names)


def _bundled(name: str) -> Data:
    with safe_open(BUNDLED / f"{name}.safetensors", framework="pt") as file:
        about = json.loads(file.metadata()["about"])
        x, y = file.get_tensor("x"), file.get_tensor("y")
    features = tuple(map(Feature, about["features"])) if about["features"] else None
    if not about["classes"]:
        return Data(x=x, y=y, target="values", name=name, features=features)
    return Data(x=x, y=y.long(), target="classes", name=name, classes=tuple(about["classes"]), features=features)
