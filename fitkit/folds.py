"""All folds of a cross-validation: each a session of its own, with its own run folder, one after the other."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fitkit import files, run_folder
from fitkit.builder import assemble
from fitkit.builder.folds import fold_specs
from fitkit.builder.tables import TABLES
from fitkit.cross_validation import CrossValidation
from fitkit.engine import weights
from fitkit.engine.batches import RowBatches
from fitkit.errors import CheckpointError, DataError, SpecError
from fitkit.evaluation.outcomes import Outcomes, take_outcomes
from fitkit.history import History
from fitkit.parts.callback import Callback
from fitkit.parts.folds import fold_counts
from fitkit.session import check_call, locked
from fitkit.session import run as run_session
from fitkit.spec.spec import Spec, dump
from fitkit.trainer import Trainer


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A fold that is finished: what happened, and what its best weights give for its val rows."""

    history: History
    outcomes: Outcomes
    now: bool  # else it was finished before


def run(
    spec: Spec,
    *,
    model: nn.Module | None = None,
    data: Any = None,
    out: Path | str | None = None,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
    **session: Any,
) -> tuple[CrossValidation, bool]:
    """Run the folds of a spec, and tell whether there was anything to do.

    Arguments are those of `session.run`. Fold i keeps its run in `out/fold-i`; `out` itself gets the spec, a summary,
    and at the end the values of all folds and their predictions. With `resume`, finished folds are kept and the others
    begun or gone on with. A module of the user's own is copied for each fold and stays as it was; callbacks see one
    fold after the other. All folds are built once before the first is trained, so that faults are told at once.
    """
    check_call(out, resume, session.get("allow_change", ()))
    specs, folder = fold_specs(spec), None if out is None else Path(out)
    if folder is not None and not (resume and run_folder.may_hold_folds(folder)):
        run_folder.refuse_used(folder)
    if not resume:
        check_folds(specs, model, data, folder)
    more = {"data": data, "resume": resume, "callbacks": callbacks, **session}
    fits = [functools.partial(_fit, one, folder, model, **more) for one in specs]
    if folder is None:
        return _result(spec, fit_in_turn(fits), None), True
    run_folder.refuse_links(folder)
    with locked(folder):
        run_folder.clear_leftovers(folder)
        finished = resume and run_folder.status(folder) == "finished" and not session.get("allow_change")
        if not (folder / run_folder.SPEC).exists():
            run_folder.write_text(folder / run_folder.SPEC, spec.text or dump(dict(spec.given)))
        with contextlib.nullcontext() if finished else _summarized(folder, len(specs)):
            fitted = fit_in_turn(fits)
            found = _result(spec, fitted, folder)
            finished = finished and not any(one.now for one in fitted)
            if not finished:
                _write(folder, found)
        return found, not finished


def check_folds(specs: Sequence[Spec], model: nn.Module | None, data: Any, folder: Path | None) -> str:
    """Build each fold once and return a table of their rows and classes; SpecError or DataError for what cannot run."""
    parts: list[dict[str, Tensor]] = []
    for number, one in enumerate(specs, 1):
        _, prepared = assemble(one, _copied(model), data, folder and run_folder.fold_folder(folder, number))
        if "val" not in prepared.parts and one.splits is not None:
            raise one.splits.error(f"fold {number} has no val part.")
        parts.append({name: part.rows.cpu() for name, part in prepared.parts.items() if isinstance(part, RowBatches)})
        whole = prepared.data
    assert whole is not None
    return fold_counts(whole, parts)


def fit_in_turn(fits: Sequence[Callable[[], Fitted]]) -> list[Fitted]:
    """Fit all folds, one after the other: whoever trains them together does it here, and gives back the same."""
    return [fit() for fit in fits]


def _fit(spec: Spec, folder: Path | None, model: nn.Module | None, *, data: Any, **more: Any) -> Fitted:
    assert spec.splits is not None
    fold = int(spec.splits.get("fold"))
    out = None if folder is None else run_folder.fold_folder(folder, fold)
    history, trainer = run_session(spec, model=_copied(model), data=data, out=out, **more)
    now = trainer is not None
    if trainer is None:
        assert out is not None
        trainer = _reloaded(spec, _copied(model), data, out)
    [loss] = trainer.card["spec"]["loss"]
    assert trainer.val is not None
    facts, card = dict(TABLES["losses"][loss].facts), dict(trainer.card)
    outcomes = take_outcomes(trainer.model, trainer.objective, trainer.val, facts, part=f"fold {fold}", card=card)
    return Fitted(history, dataclasses.replace(outcomes, batches=None), now)  # the data need not stay for it


def _reloaded(spec: Spec, model: nn.Module | None, data: Any, folder: Path) -> Trainer:
    """Return the trainer of a finished fold, with its best weights."""
    trainer, _ = assemble(dataclasses.replace(spec, callbacks=()), model, data, None)
    path = folder / run_folder.WEIGHTS
    state, transform, _ = weights.load(path, links=False)
    weights.put(trainer.model, state, path)
    if trainer.objective.transform is not None:
        weights.put(trainer.objective.transform, transform, path)
    return trainer


def _copied(model: nn.Module | None) -> nn.Module | None:
    if not isinstance(model, nn.Module):
        return model
    try:
        return copy.deepcopy(model)
    except Exception as error:  # whatever the user's own class raises
        raise SpecError(f"the model cannot be copied, and each fold needs one of its own: {error}.") from error


def _result(spec: Spec, fitted: Sequence[Fitted], folder: Path | None) -> CrossValidation:
    assert spec.splits is not None
    k = int(spec.splits.get("k") or len(fitted))
    for number, one in enumerate(fitted, 1):
        if not len(one.history) or one.history.directions != fitted[0].history.directions:
            place = "" if folder is None else f"{run_folder.fold_folder(folder, number) / run_folder.HISTORY_JSON}: "
            raise CheckpointError(f"{place}this is not the history of fold {number}: other columns, or no epoch.")
    return CrossValidation(
        [one.history for one in fitted],
        k=k,
        repeats=len(fitted) // k,
        predictions=predictions([one.outcomes for one in fitted], k),
        run=None if folder is None else str(folder),
    )


def predictions(folds: Sequence[Outcomes], k: int) -> dict[str, list[Any]] | None:
    """Return what folds gave for their rows as columns, by repeat and row; None where a sample has several targets."""
    if not all(one.one_each and (one.kind == "values" or one.targets.ndim == 1) for one in folds):
        return None
    lines: list[list[Any]] = []
    for number, one in enumerate(folds):
        places = [one.rows.tolist(), [number + 1] * len(one), [number // k + 1] * len(one)]
        lines += ([*place, *cells] for place, cells in zip(zip(*places, strict=True), _cells(one), strict=True))
    lines.sort(key=lambda line: (line[2], line[0]))
    return dict(zip(["row", "fold", "repeat", *_names(folds[0])], map(list, zip(*lines, strict=True)), strict=True))


def _names(one: Outcomes) -> list[str]:
    if one.kind == "values":
        wide = one.targets[0].numel()
        ends = [""] if wide == 1 else [f"_{i}" for i in range(wide)]
        return [*(f"target{end}" for end in ends), *(f"prediction{end}" for end in ends)]
    return ["target", "prediction", *(f"p_{name}" for name in one.class_names if one.can_be_probabilities)]


def _cells(one: Outcomes) -> Iterator[list[Any]]:
    """Yield the target and the prediction of each sample, and the probability of each class."""
    if one.kind == "values":
        pairs = (one.targets.reshape(len(one), -1).tolist(), one.predicted.reshape(len(one), -1).tolist())
        yield from ([*target, *prediction] for target, prediction in zip(*pairs, strict=True))
        return
    names = one.classes or range(one.class_count)
    shares = one.probabilities().tolist() if one.can_be_probabilities else [[]] * len(one)
    for target, prediction, share in zip(one.targets.tolist(), one.predicted.tolist(), shares, strict=True):
        yield [names[target], names[prediction], *share]


def _summarize(folder: Path, status: str, folds: int, **more: Any) -> None:
    document = {"status": status, "folds": folds, **more}
    run_folder.write_text(folder / run_folder.SUMMARY, json.dumps(document, indent=2, allow_nan=False) + "\n")


@contextlib.contextmanager
def _summarized(folder: Path, folds: int) -> Iterator[None]:
    """Have the summary say how a cross-validation stands that is not finished; a refused call leaves it as it was."""
    path = folder / run_folder.SUMMARY
    before = files.read_bytes(path, most=files.MOST_JSON_BYTES, links=False).decode() if path.exists() else None
    _summarize(folder, "running", folds)
    try:
        yield
    except (SpecError, DataError):
        if before is not None:
            run_folder.write_text(path, before)
        raise
    except BaseException as error:
        _summarize(folder, "interrupted" if isinstance(error, KeyboardInterrupt) else "failed", folds)
        raise


def _write(folder: Path, found: CrossValidation) -> None:
    """Write the values of all folds and their predictions, and then that it is finished."""
    run_folder.write_text(folder / run_folder.FOLDS_CSV, found.to_csv())
    run_folder.write_text(folder / run_folder.FOLDS_JSON, found.to_json())
    if found.predictions is not None:
        run_folder.write_text(folder / run_folder.PREDICTIONS, found.predictions_csv())
    _summarize(folder, "finished", len(found), mean=found.to_plain()["mean"], seconds=round(found.seconds, 3))
