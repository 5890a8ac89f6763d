"""A model before and after training: any `nn.Module`, with its preprocessing and the meaning of its outputs."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from fitkit import files, folds, run_folder
from fitkit.builder import Overrides, SpecLike, check_tree, load_spec, make_model, size
from fitkit.builder.card import PRECISIONS, check_card
from fitkit.builder.data import prepare
from fitkit.builder.folds import fold_specs
from fitkit.builder.objective import choose_loss, make_objective
from fitkit.builder.tables import TABLES
from fitkit.data import Feature, Inputs
from fitkit.engine import weights
from fitkit.engine.devices import choose_device
from fitkit.engine.intake import tensor
from fitkit.engine.step import Objective, eval_mode
from fitkit.errors import CheckpointError, DataError, Fault, FitkitError, SpecError
from fitkit.evaluation.calibration import BINS, Calibration, calibrate
from fitkit.evaluation.evaluation import Evaluation, evaluate
from fitkit.evaluation.outcomes import Outcomes, as_logits, take_outcomes, tempered
from fitkit.evaluation.worst import Worst, worst
from fitkit.history import History
from fitkit.live import Live
from fitkit.parts.callback import Callback
from fitkit.parts.transforms import Affine
from fitkit.session import run
from fitkit.spec import compose

PREDICT_BATCH = 1024


def fit(
    spec: SpecLike,
    *,
    model: nn.Module | None = None,
    data: Any = None,
    out: Path | str | None = None,
    resume: bool = False,
    allow_change: Sequence[str] = (),
    overrides: Overrides = None,
    callbacks: Sequence[Callback] = (),
    live: bool = False,
) -> History | Any:
    """Run the experiment that a spec declares and return its history, or a `CrossValidation` where it asks for folds.

    Args:
        spec: path of a YAML file, its text, a dict, or a Spec.
        model: a module of your own instead of the spec's `model:`.
        data: `(x, y)` of tensors or arrays, a Dataset, a DataLoader, or {"train": …, "val": …} of these, instead of
            the spec's `data:`. `x` reaches the model as it is, floats in the model's dtype.
        out: folder for the run's files; nothing is written without it.
        resume: go on with the run in `out` where it was killed; start it if there is none, return the history of a
            finished one.
        allow_change: dotted keys in which the resumed run may differ from what it was asked, such as "fit.epochs".
        overrides: dotted keys, as {"optimizer.AdamW.lr": 1e-2} or ["optimizer.AdamW.lr=1e-2"].
        callbacks: callbacks of your own, after the spec's.
        live: show the curves while it runs, in a notebook; anywhere else a warning says that there is none.

    A spec asks for folds by `splits: {kfold: 5}` or `time_series`, unless it names one of them (`fold: 1`). Each is a
    run of its own, in `out/fold-1` and so on; `model` is copied for each and stays as it was.

    Raises SpecError, DataError before training, TrainingError when the loss is no longer finite.
    """
    loaded, allowed = load_spec(spec, overrides), allow_change
    callbacks = (*callbacks, Live()) if live else callbacks
    start: Any = folds.run if fold_specs(loaded) else run
    return start(loaded, model=model, data=data, out=out, resume=resume, allow_change=allowed, callbacks=callbacks)[0]


class Model:
    """A module that can be fitted by a spec, and then evaluates and predicts with the same preprocessing.

    >>> model = fitkit.Model(torch.nn.Linear(4, 3))
    >>> history = model.fit({"optimizer": {"SGD": 0.1}, "fit": {"epochs": 3}}, data=(x, y))
    >>> labels = model.predict(x)
    """

    def __init__(self, module: nn.Module, *, transform: nn.Module | None = None, card: Mapping[str, Any] | None = None):
        if not isinstance(module, nn.Module):
            raise SpecError(f"Model takes a torch.nn.Module, not a {type(module).__name__}.")
        self.module, self.transform = module, transform
        self.card: dict[str, Any] = dict(card or {})
        self.precision: torch.dtype | None = None

    def fit(
        self,
        spec: SpecLike,
        *,
        data: Any = None,
        out: Path | str | None = None,
        resume: bool = False,
        allow_change: Sequence[str] = (),
        overrides: Overrides = None,
        callbacks: Sequence[Callback] = (),
        live: bool = False,
    ) -> History:
        """Fit the module by a spec, whose `model:` it stands in for; see `fitkit.fit` for the arguments."""
        loaded = load_spec(spec, overrides)
        if fold_specs(loaded):
            fault = "a Model is fitted once: name a fold, such as fold: 1, or use fitkit.fit(spec, model=module)."
            raise SpecError(Fault(fault, "splits"))
        callbacks = (*callbacks, Live()) if live else callbacks
        more: dict[str, Any] = {"out": out, "resume": resume, "allow_change": allow_change, "callbacks": callbacks}
        history, trainer = run(loaded, model=self.module, data=data, **more)
        if trainer is None:  # the run was finished before: its weights are in the folder
            done = load(Path(str(out)), model=self.module)
            self.transform, self.card = done.transform, done.card
        else:
            self.transform, self.card = trainer.objective.transform, dict(trainer.card)
            self.precision = trainer.objective.precision
        return history

    @property
    def device(self) -> torch.device:
        """Where the module's parameters are."""
        return next((p.device for p in self.module.parameters()), torch.device("cpu"))

    def outputs(self, x: Any, *, batch_size: int = PREDICT_BATCH) -> Tensor:  # (N, ...) -> (N, ...)
        """Return the module's outputs for samples (N, ...) as training computed them, in eval mode, on the CPU."""
        samples = self._samples(x)
        nothing: Any = None
        objective = Objective(nothing, nothing, nothing, (), self.transform, self.precision)
        with eval_mode(self.module), torch.inference_mode():
            parts = [
                objective.output(self.module, part.to(self.device)).cpu() for part in torch.split(samples, batch_size)
            ]
        return torch.cat(parts) if parts else torch.empty(0)

    def _samples(self, x: Any) -> Tensor:
        samples = tensor(x, "x")
        inputs = self.card.get("inputs")
        if inputs and inputs["shape"] != list(samples.shape[1:]):
            shape = tuple(samples.shape)
            raise DataError(f"x has shape {shape}; this model takes (N, {', '.join(map(str, inputs['shape']))}).")
        if inputs and inputs["vocabulary"] is not None:
            return samples.long()
        if self.transform is not None or not (samples.is_floating_point() or self.card.get("built")):
            return samples
        dtype = next((p.dtype for p in self.module.parameters() if p.is_floating_point()), torch.float32)
        return samples.to(dtype)

    def predict_proba(self, x: Any, *, batch_size: int = PREDICT_BATCH) -> Any:
        """Return class probabilities (N, C), two columns for one logit; as a NumPy array when `x` is one.

        Those of a calibrated model are at its temperature. Raises FitkitError for a model that does not classify.
        """
        self._require_probabilities()  # before anything is computed
        return _like(self.probabilities(self.outputs(x, batch_size=batch_size)), x)

    def _require_probabilities(self) -> tuple[str, str]:
        kind, output_kind = self._meaning()
        if kind == "values":
            raise FitkitError("this model predicts values, not classes: use predict.")
        if output_kind == "scores":
            raise FitkitError("this model's loss gives scores that are no probabilities: use predict.")
        return kind, output_kind

    def probabilities(self, outputs: Tensor) -> Tensor:  # (N, ...) -> (N, C, ...) float64
        """Return the class probabilities that outputs of the module stand for, as `predict_proba` does."""
        kind, output_kind = self._require_probabilities()
        temperature = float(self.card.get("temperature", 1.0))
        if kind == "classes":
            dim = int(self.card["class_dim"])
            return tempered(as_logits(outputs, output_kind), temperature, dim).softmax(dim)
        one = _one_each(outputs).double()
        if output_kind != "probabilities" or temperature != 1:
            one = (as_logits(one, output_kind) / temperature).sigmoid()
        return torch.stack([1 - one, one], dim=-1)

    def classes(self, outputs: Tensor) -> Tensor:  # (N, ...) -> (N, ...) int64
        """Return the class numbers that outputs of the module stand for, as `predict` does."""
        kind, output_kind = self._meaning()
        if kind == "classes":
            return outputs.argmax(int(self.card["class_dim"]))
        return (_one_each(outputs) > (0.5 if output_kind == "probabilities" else 0)).long()

    def predict(self, x: Any, *, batch_size: int = PREDICT_BATCH) -> Any:
        """Return class numbers (N,) int64, or values as the module gives them; as a NumPy array when `x` is one."""
        kind, output_kind = self._meaning()
        outputs = self.outputs(x, batch_size=batch_size)
        if kind == "values":
            outputs = outputs.exp() if output_kind == "log_rates" else outputs
            return _like(outputs.squeeze(-1) if self.card["squeezed"] else outputs, x)
        return _like(self.classes(outputs), x)

    def _meaning(self) -> tuple[str, str]:
        if not self.card:
            raise FitkitError("this model has not been fitted: what its outputs mean is not known yet.")
        [name] = self.card["spec"]["loss"]
        facts = TABLES["losses"][name].facts
        return facts["target"], facts["output"]

    def outcomes(self, x: Any, y: Any = None, *, batch_size: int = PREDICT_BATCH, part: str = "data") -> Outcomes:
        """Return what the model gives for each sample of some data, beside what is right.

        The data is `x, y`, or one argument as for `fit`: `(x, y)`, a Dataset or a DataLoader. `part` is what messages
        call it.
        """
        self._meaning()
        data = _pair(x, y, part)
        device = str(self.device) if self.device.type == "cuda" else self.device.type
        measured = {key: self.card["spec"][key] for key in ("loss", "metrics")}
        declared = {**measured, "fit": {"batch_size": batch_size, "device": device}}
        spec = check_tree(compose.read(declared))
        if isinstance(data, tuple | list) and len(data) == 2:
            data = (self._samples(data[0]), data[1])
        if isinstance(data, Mapping):
            raise DataError(f"{part}: expects one part: (x, y), a Dataset or a DataLoader, not a dict of parts.")
        dtype = next((p.dtype for p in self.module.parameters() if p.is_floating_point()), torch.float32)
        prepared = prepare(spec, data, dtype=dtype, device=self.device, transform=self.transform, whole=part)
        prepared = dataclasses.replace(prepared, transform=self.transform)
        contract = choose_loss(spec, prepared.target, prepared)
        built = bool(self.card["built"])
        objective = make_objective(spec, contract, prepared, self.module, self.precision, built).objective
        facts = contract.loss.entry.facts
        return take_outcomes(self.module, objective, prepared.parts["train"], facts, part=part, card=self.card)

    def evaluate(self, x: Any, y: Any = None, *, batch_size: int = PREDICT_BATCH) -> Evaluation:
        """Return loss and metrics on data, given as for `outcomes`, as a mapping; every sample counts once.

        It holds 95 % intervals, the classes one by one and their confusions too, or the residuals of a regression, and
        prints as tables.
        """
        return evaluate(self.outcomes(x, y, batch_size=batch_size))

    def calibrate(
        self, x: Any, y: Any = None, *, bins: int = BINS, force: bool = False, batch_size: int = PREDICT_BATCH
    ) -> Calibration:
        """Fit a temperature on data, given as for `outcomes`, that the module was not trained on; keep it if it helps.

        It helps where the negative log-likelihood falls, cross-fitted; `force` keeps it anyway. Otherwise an earlier
        one stays. `predict_proba` divides logits by it from then on, `save` writes it, and another `fit` drops it. No
        prediction changes. The result prints what it does to negative log-likelihood, calibration error, Brier score.
        """
        found = calibrate(self.outcomes(x, y, batch_size=batch_size), bins=bins, force=force)
        self.card.pop("temperature", None)
        if found.kept is not None:
            self.card["temperature"] = found.kept
        return found

    def worst(self, x: Any, y: Any = None, *, count: int = 20, batch_size: int = PREDICT_BATCH) -> Worst:
        """Return the samples of data, given as for `outcomes`, with the highest loss, and suspected label errors.

        Classes are ranked by -log p of the target, at the calibrated temperature, without weights of the loss.
        Those are only worth something on data that the module was not trained on.
        """
        return worst(self.outcomes(x, y, batch_size=batch_size), count)

    def summary(self) -> str:
        """Return a table of the modules that hold parameters: name, kind, shapes, how many, how many are trained."""
        rows = [("name", "kind", "parameters", "trained")]
        for name, module in self.module.named_modules():
            own = list(module.parameters(recurse=False))
            if own:
                trained = sum(p.numel() for p in own if p.requires_grad)
                rows.append(
                    (name or "(model)", type(module).__name__, f"{sum(p.numel() for p in own):,}", f"{trained:,}")
                )
        everything = list(self.module.parameters())
        trained = sum(p.numel() for p in everything if p.requires_grad)
        rows.append(("total", "", f"{sum(p.numel() for p in everything):,}", f"{trained:,}"))
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        return "\n".join(
            f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c:>{widths[2]}}  {d:>{widths[3]}}".rstrip() for a, b, c, d in rows
        )

    def save(self, path: Path | str) -> None:
        """Write weights, preprocessing and card to one safetensors file, which `fitkit.load` reads back."""
        weights.save(Path(path), self.module.state_dict(), self.transform, self.card)


def _pair(x: Any, y: Any, part: str) -> Any:
    """Return what one argument would have held: `x` alone, or both."""
    if y is None:
        return x
    if isinstance(x, Dataset | DataLoader | Mapping):
        raise DataError(f"{part}: a {type(x).__name__} holds its own targets: leave y out.")
    return x, y


def _one_each(outputs: Tensor) -> Tensor:
    return outputs.reshape(len(outputs)) if outputs.numel() == len(outputs) else outputs


def _like(values: Tensor, x: Any) -> Any:
    return values if isinstance(x, Tensor) else values.numpy()


def load_line(source: Path | str, *, own: bool) -> str:
    """Return the line of Python that loads a run's model, for a message; with `own`, it was a module of the user's."""
    return f"fitkit.load({json.dumps(str(source), ensure_ascii=False)}{', model=module' * own})"


def load(source: Path | str, *, model: nn.Module | None = None, device: str = "cpu") -> Model:
    """Return the model of a run folder or a weights file: best weights, with the preprocessing they were trained with.

    A module that was handed to fit in Python must be handed in again as `model`: files hold no code.
    Raises CheckpointError when the file is missing, damaged, or does not fit the module.
    """
    path, in_folder = Path(source), Path(source).is_dir()
    if in_folder:
        run_folder.refuse_folds(path)
    path = path / run_folder.WEIGHTS if in_folder else path
    stored, shapes, card = weights.describe(path, links=not in_folder)
    check_card(card, shapes, path)
    try:
        inputs = Inputs(tuple(card["inputs"]["shape"]), card["inputs"]["vocabulary"])
        if model is None:
            if not card["built"]:
                raise CheckpointError(f"{path}: this model was a module of your own: {load_line(source, own=True)}.")
            model = _rebuilt(card, inputs, stored, path)
    except (KeyError, TypeError, SpecError) as error:
        raise CheckpointError(f"{path}: its card does not describe a model: {error}.") from None
    weights.compare(model, stored, path)
    state, transform, _ = weights.load(path, links=not in_folder)
    weights.put(model, state, path)
    where = choose_device(device)
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    affine = Affine(transform["shift"], transform["scale"]).placed(where, dtype) if transform else None
    loaded = Model(model.to(where), transform=affine, card=card)
    loaded.precision = PRECISIONS[card["precision"]]
    return loaded


def _rebuilt(card: Mapping[str, Any], inputs: Inputs, stored: Mapping[str, Tensor], path: Path) -> nn.Module:
    """Build the model of a card; one of fitkit's own parts is compared with the file before memory is taken for it."""
    spec = check_tree(compose.read({"model": card["spec"]["model"]}))
    make = functools.partial(make_model, spec, inputs, card["outputs"])
    drawn = size.sketch(spec.model, make, torch.device("cpu"))
    if drawn is not None and (fault := files.too_much(drawn.outputs)):  # a list of layers is tried on two samples
        raise CheckpointError(f"{path}: the model of its card {fault}.")
    if drawn is not None:
        with torch.device("meta"):
            weights.compare(drawn.model or make(), stored, path)
    return make()


def features(card: Mapping[str, Any]) -> list[Feature] | None:
    """Return how the columns of a table became the model's inputs; None for a model not trained on a table."""
    given = card.get("features")
    return None if given is None else [Feature(f["name"], f["categories"] and tuple(f["categories"])) for f in given]
