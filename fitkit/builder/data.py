"""From what a spec or Python gives to batches: source, split, transform, placement."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from fitkit.builder.augment import make_augment, refuse_augment
from fitkit.builder.tables import default
from fitkit.data import Data, Inputs, Rows, Target
from fitkit.engine.batches import ArrayBatches, Batch, Batches
from fitkit.engine.intake import PARTS, Part, take, take_whole
from fitkit.engine.loading import LoaderBatches
from fitkit.engine.mapped import MappedBatches
from fitkit.engine.seeds import SPLIT, derive, kept_random_state
from fitkit.errors import DataError, Fault, SpecError
from fitkit.files import ARRAY_SHARE, too_much
from fitkit.parts.splits import class_counts, default_split
from fitkit.parts.transforms import Affine, default_transform
from fitkit.spec.component import Component
from fitkit.spec.spec import Spec


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """The data of a run, ready to be iterated, and what models, losses and files are told about it."""

    parts: Mapping[str, Batches]  # train, and val and test where there are any
    data: Data | None  # the data in memory, or its training part; None for a Dataset or DataLoader
    counts: str = ""  # class counts a part, to be printed once
    train_rows: Tensor | None = None
    transform: nn.Module | None = None
    spec: Spec  # with `data` and `splits` as used
    names: Mapping[str, str] = field(default_factory=dict)  # of the parts in messages, where Python gave each

    def name(self, part: str) -> str:
        """Return what messages call a part."""
        return self.names.get(part) or (self.data.name if self.data else part)

    def among(self, part: str) -> str:
        """Return what follows a row of the data in messages: the part it is in, unless that was given by itself."""
        return "" if part in self.names else f" ({part})"

    @functools.cached_property
    def first(self) -> Batch:
        """The first batch of the training part in its own order, read once: some data can only be iterated."""
        with kept_random_state():
            for batch in self.parts["train"].in_order():
                return batch
        raise DataError("the training data yields no batch.")

    @property
    def inputs(self) -> Inputs:
        """The shape of a sample as the model gets it."""
        vocabulary = None if self.data is None else self.data.vocabulary
        return Inputs(tuple(self.first[0].shape[1:]), vocabulary)

    @property
    def target(self) -> Target:
        """Whether targets are classes or values."""
        if self.data is not None:
            return self.data.target
        return "values" if self.first[1].is_floating_point() else "classes"


def prepare(
    spec: Spec,
    given: Any,
    *,
    dtype: torch.dtype,
    device: torch.device,
    transform: nn.Module | None = None,
    whole: str | None = None,
) -> Prepared:
    """Read, split, transform and place the data; `given` is what Python handed to fit, or None.

    A `transform` that was fitted before is used as it is, on data that comes in parts. With `whole`, all of `given` is
    the training part, which messages call by that name.

    Raises SpecError for a split or transform that does not fit the data, DataError for the data itself.
    """
    if given is None:
        assert spec.data is not None
        taken: Part | dict[str, Part] = spec.data.build()
        spec = _with_target(spec, taken)
    else:
        taken = take(given) if whole is None else take_whole(given, whole)
        if spec.data is None or spec.data.name != "arrays":
            spec = replace(spec, data=default("sources", "arrays", "data"))
    assert spec.data is not None
    if isinstance(taken, Data):
        taken = _for_model(taken, spec) if given is not None else taken
        return _split_arrays(spec, taken, dtype, device)
    if isinstance(taken, dict):
        if spec.splits is not None:
            other = ", or give it as one (x, y)" * ("folds" in spec.splits.entry.facts)
            raise spec.splits.error(f"the data comes in parts already (train, val, …). Leave `splits` out{other}.")
        parts = {name: _for_model(part, spec) if isinstance(part, Data) else part for name, part in taken.items()}
        names = {name: f'data["{name}"]' if whole is None else whole for name in parts}
        return _given_parts(spec, parts, names, dtype, device, transform)
    return _split_loader(spec, taken, dtype, device)


def _with_target(spec: Spec, taken: Any) -> Spec:
    """Name the target column where the spec leaves it to the table: in another file the last may be another one."""
    component = spec.data
    if component is None or not component.entry.facts.get("last_is_target") or component.get("target") is not None:
        return spec
    return replace(spec, data=replace(component, args={**component.args, "target": list(taken.columns)[-1]}))


def _for_model(data: Data, spec: Spec) -> Data:
    """Say what whole numbers given in Python are, where the spec's model tells: token ids, or measurements."""
    model = spec.model
    if model is None or data.x.is_floating_point():
        return data  # a module of the user's own knows
    first = model[0] if isinstance(model, tuple) else model
    facts = first.entry.facts
    if facts.get("tokens") == "only" or (data.x.ndim == 2 and facts.get("sequences")):
        if data.x.min() < 0:
            raise DataError(f"{data.name}: x holds the token id {int(data.x.min())}, and ids are numbered from 0.")
        return replace(data, vocabulary=int(data.x.max()) + 1)
    return replace(data, given_in_python=False)


def _split_arrays(spec: Spec, data: Data, dtype: torch.dtype, device: torch.device) -> Prepared:
    splits = _one_fold(spec.splits or default("splits", default_split(data), "splits"))
    rows: dict[str, Tensor] = splits.build(data, derive(spec.seed, SPLIT))
    _refuse_empty(splits, rows)
    transform = _transform(spec, data, rows["train"], dtype, device)
    placed = _placed(data, transform, dtype, device)
    kind = _kind(data, transform, dtype, device)
    parts = {name: _batches(placed, spec, rows[name], device, kind) for name in PARTS if name in rows}
    _augment(parts["train"], spec, placed, transform, kind)
    counts = class_counts(data, rows) if data.target == "classes" and data.y is not None and data.y.ndim == 1 else ""
    if data.file is not None:
        counts += f"\nx stays in {data.file.path}, and each batch is read from there"
    return Prepared(
        parts=parts,
        data=placed,
        counts=counts.strip(),
        train_rows=rows["train"],
        transform=transform,
        spec=replace(spec, splits=splits),
    )


def _one_fold(splits: Component) -> Component:
    """Return the split of one run: of a cross-validation, fold 1 where it names none."""
    if "folds" not in splits.entry.facts or splits.get("fold") is not None:
        return splits
    return replace(splits, args={**splits.args, "fold": 1})


def _refuse_empty(splits: Component, rows: Mapping[str, Tensor]) -> None:
    for name in ("train", "val", "test"):
        if name in rows and len(rows[name]) == 0:
            total = sum(len(part) for part in rows.values())
            raise splits.error(f"the {name} part is empty: there are only {total} rows.")
    if "train" not in rows:
        raise splits.error("there is no train part.")


def _batches(
    data: Data, spec: Spec, rows: Tensor | None, device: torch.device, kind: torch.dtype | None
) -> ArrayBatches | MappedBatches:
    """Return batches of placed data; `kind` is the dtype that x is to have in them, None for its own."""
    size = spec.fit.batch_size
    if data.file is not None:
        kind = torch.int64 if data.vocabulary is not None else kind
        assert data.y is not None
        if fault := too_much(min(size, len(data)) * data.x[0].numel() * (kind or data.x.dtype).itemsize, ARRAY_SHARE):
            raise SpecError(Fault(f"a batch of {size:,} rows {fault}. Take a smaller one.", "fit.batch_size"))
        return MappedBatches(data.x, data.y, file=data.file, batch_size=size, device=device, dtype=kind, rows=rows)
    return ArrayBatches(
        data.x,
        data.y,
        batch_size=size,
        rows=rows,
        tokens=data.vocabulary is not None,
        window=data.window,
        starts=data.starts,
    )


def _augment(
    train: ArrayBatches | MappedBatches, spec: Spec, data: Data, transform: nn.Module | None, kind: torch.dtype | None
) -> None:
    """Let the training samples go through what the spec asks for."""
    if isinstance(train, MappedBatches):  # as a batch takes it
        data = replace(data, x=data.x[:2].to(train.device, kind))
    train.augment = make_augment(spec, data, transform)


def _kind(data: Data, transform: nn.Module | None, dtype: torch.dtype, device: torch.device) -> torch.dtype | None:
    """Return the dtype that x must have before the transform, or the model; None for its own.

    Without a transform, floats take the model's dtype, and so do whole numbers of a source: they are measurements.
    Whole numbers given in Python stay what they are.
    """
    own = transform is not None or data.vocabulary is not None
    own = own or (data.given_in_python and not data.x.is_floating_point())
    return None if own and not (device.type == "mps" and data.x.dtype is torch.float64) else dtype


def _placed(data: Data, transform: nn.Module | None, dtype: torch.dtype, device: torch.device) -> Data:
    """Put one copy on the device: inputs that a transform converts in their own dtype, class numbers as int64.

    What stays in its file stays there, and its targets on the CPU, where batches are gathered.
    """
    if data.file is None:
        x = data.x.to(device, _kind(data, transform, dtype, device))
    else:
        x, device = data.x, torch.device("cpu")
    if data.y is None:
        return replace(data, x=x, starts=None if data.starts is None else data.starts.to(device))
    return replace(data, x=x, y=data.y.to(device, torch.int64 if data.target == "classes" else dtype))


def _transform(
    spec: Spec, data: Data, train: Tensor | None, dtype: torch.dtype, device: torch.device
) -> nn.Module | None:
    """Fit the transform on the training rows alone."""
    assert spec.data is not None
    asked = spec.data.get("transform")
    if asked == "auto":
        asked_for = spec.data.name != "arrays" or "transform" in spec.data.args
        name = default_transform(data) if asked_for else None
        asked = None if name is None else default("transforms", name, f"{spec.data.path}.transform")
    if not isinstance(asked, Component):
        return None
    if data.vocabulary is not None:
        raise asked.error("the samples are token ids: they have no scale.")
    made = asked.build(_fitted_on(asked, data, torch.arange(len(data.x)) if train is None else train))
    if isinstance(made, Affine):
        return made.placed(device, dtype)
    module: nn.Module = made
    return module.to(device, dtype)


def _fitted_on(asked: Component, data: Data, train: Tensor) -> Tensor | Rows:
    """Return the training rows as a transform takes them: piece by piece, or at once for one of the user's own."""
    if asked.entry.facts.get("in_pieces"):
        return Rows(data.x, train)
    if fault := too_much(len(train) * data.x[0].numel() * data.x.element_size(), ARRAY_SHARE):
        raise asked.error(f"the training rows, all of which it is fitted on at once, {fault}. Leave it out.")
    return data.x if len(train) == len(data.x) else data.x.index_select(0, train.to(data.x.device))


def _given_parts(
    spec: Spec,
    parts: Mapping[str, Part],
    names: Mapping[str, str],
    dtype: torch.dtype,
    device: torch.device,
    transform: nn.Module | None,
) -> Prepared:
    batches: dict[str, Batches] = {}
    train = parts["train"]
    if transform is None and isinstance(train, Data):
        transform = _transform(spec, train, None, dtype, device)
    placed = _placed(train, transform, dtype, device) if isinstance(train, Data) else None
    for name, part in parts.items():
        if isinstance(part, Data):
            if isinstance(train, Data):
                _alike(train, part)
            kind = _kind(part, transform, dtype, device)
            own = placed if part is train and placed else _placed(part, transform, dtype, device)
            batches[name] = arrays = _batches(own, spec, None, device, kind)
            if name == "train":
                _augment(arrays, spec, own, transform, kind)
        else:
            if name == "train":
                refuse_augment(spec)
            batches[name] = _loader(part, spec, dtype, device, None, names[name])
    rows = {name: torch.arange(len(part)) for name, part in parts.items() if isinstance(part, Data)}
    return Prepared(
        parts=batches,
        data=placed,
        train_rows=rows.get("train"),
        transform=transform,
        spec=spec,
        names=names,
    )


def _alike(train: Data, part: Data) -> None:
    assert train.y is not None and part.y is not None
    for what, one, other in (("x", train.x, part.x), ("y", train.y, part.y)):
        if one.shape[1:] != other.shape[1:]:
            sizes = f"{tuple(other.shape[1:])}, in train {tuple(one.shape[1:])}"
            raise DataError(f"{part.name}: {what} has samples of shape {sizes}.")
    if train.vocabulary is not None and part.vocabulary is not None and part.vocabulary > train.vocabulary:
        ids = f"holds token id {part.vocabulary - 1}, in train they end at {train.vocabulary - 1}"
        raise DataError(f"{part.name}: x {ids}. Give train a sample with the highest id.")
    if train.target != part.target:
        raise DataError(f"{part.name}: y holds {part.target}, in train it holds {train.target}.")


def _split_loader(
    spec: Spec, source: Dataset[Any] | DataLoader[Any], dtype: torch.dtype, device: torch.device
) -> Prepared:
    refuse_augment(spec)
    dataset = source.dataset if isinstance(source, DataLoader) else source
    assert not isinstance(dataset, DataLoader)
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        if spec.splits is not None:
            raise spec.splits.error("this dataset can only be iterated. Give data={'train': …, 'val': …}.")
        warnings.warn("the data can only be iterated, so there is no validation split", stacklevel=2)
        return Prepared(parts={"train": _loader(source, spec, dtype, device, None, "data")}, data=None, spec=spec)
    splits = spec.splits or default("splits", "random", "splits")
    if splits.name != "random":
        raise splits.error(f"{splits.name} needs the targets in memory. For a Dataset use random, or give it in parts.")
    empty = torch.empty(len(dataset), 0)
    rows: dict[str, Tensor] = splits.build(
        Data(x=empty, y=torch.empty(len(empty)), target="values"), derive(spec.seed, SPLIT)
    )
    _refuse_empty(splits, rows)
    parts = {name: _loader(source, spec, dtype, device, rows[name], "data") for name in PARTS if name in rows}
    return Prepared(parts=parts, data=None, spec=replace(spec, splits=splits))


def _loader(
    part: Any, spec: Spec, dtype: torch.dtype, device: torch.device, rows: Tensor | None, name: str
) -> LoaderBatches:
    assert spec.data is not None
    if isinstance(spec.data.get("transform"), Component):
        raise spec.data.error("a transform needs the data in memory. Do it in the Dataset.", "transform")
    return LoaderBatches(
        part, batch_size=spec.fit.batch_size, device=device, dtype=dtype, rows=rows, workers=spec.fit.workers, name=name
    )
