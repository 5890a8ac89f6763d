"""What finished runs say of themselves, and whether they can be compared: same task, same classes, same rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from fitkit import files, run_folder
from fitkit.after.finished import read_spec
from fitkit.builder.tables import TABLES
from fitkit.changes import differing
from fitkit.engine.batches import RowBatches
from fitkit.errors import CheckpointError, SpecError, listing, show
from fitkit.evaluation.contrast import Overlap, overlap
from fitkit.evaluation.measures import MEASURED, Measure, measures
from fitkit.evaluation.outcomes import Outcomes
from fitkit.model import load, load_line
from fitkit.spec import reader

RAN_ON = ("fitkit", "torch", "python", "platform", "device", "device_name", "threads", "precision", "compiled")
PARTS = ("data_train", "data_val", "data_test")  # fingerprints in env.json
CALLED = ("name", "seed")  # keys in which repetitions of one experiment may differ


@dataclass(frozen=True)
class Difference:
    """One thing in which the runs are not all the same: a dotted key, and its value in each run."""

    where: Literal["spec", "environment", "data"]
    key: str
    values: tuple[Any, ...]  # `fitkit.changes.NOTHING` where a run says nothing of it


@dataclass(frozen=True, kw_only=True, eq=False)
class Kept:
    """What the files of a run hold: the resolved spec as plain values, env.json, summary.json, the card, the size."""

    folder: Path
    tree: dict[str, Any]
    environment: dict[str, Any]
    summary: dict[str, Any]
    card: dict[str, Any]
    parameters: int

    @property
    def seed(self) -> Any:
        """The seed of the run."""
        return self.tree.get("seed")


@dataclass(frozen=True, kw_only=True, eq=False)
class Taken:
    """A run and what its model gives for the part that is compared."""

    kept: Kept
    outcomes: Outcomes
    measures: Mapping[str, Measure]
    notes: tuple[str, ...]  # on what could not be measured


def check_number(folders: Sequence[Path]) -> None:
    """Raise SpecError unless there are two runs or more, each named once."""
    if len(folders) < 2:
        raise SpecError("give two runs or more: fitkit compare RUN RUN.")
    seen: dict[Path, Path] = {}
    for folder in folders:
        if (twin := seen.setdefault(folder.resolve(), folder)) is not folder:
            raise SpecError(f"{folder}: this run is named twice (as {twin} before). Compare two runs.")


def read_run(folder: Path, root: Path | None, split: str) -> Kept:
    """Return what the files of a finished run hold; the message names the run that cannot be compared."""
    run_folder.refuse_links(folder)
    run_folder.refuse_folds(folder)
    spec = read_spec(folder, root)
    status = run_folder.status(folder)
    if status != "finished":
        raise CheckpointError(
            f"{folder}: this run is not finished but {status}, and would be compared with half of its training. "
            f"Go on with it: fitkit fit SPEC --out {folder} --resume."
        )
    if spec.model is None or spec.data is None or spec.data.name == "arrays":
        raise SpecError(
            f"{folder}: its model or data was given in Python, so that no command can read it again. "
            f"Evaluate each of the runs in Python: {load_line(folder, own=spec.model is None)}.evaluate((x, y))."
        )
    environment, summary = run_folder.read_environment(folder), files.read_json(folder / run_folder.SUMMARY)
    parts = [name.removeprefix("data_") for name in PARTS if name in environment]
    if parts and split not in parts:
        raise SpecError(f"{folder}: this run has no {split} split, only {listing(parts)}.")
    tree = reader.read_text(run_folder.read_resolved(folder)).plain()
    if not all(isinstance(tree.get(key), dict) for key in ("loss", "metrics")) or len(tree["loss"]) != 1:
        raise CheckpointError(f"{folder / run_folder.RESOLVED}: is damaged: a resolved spec names loss and metrics.")
    model = load(folder)
    return Kept(
        folder=folder,
        tree=tree,
        environment=environment,
        summary=summary,
        card=model.card,
        parameters=sum(parameter.numel() for parameter in model.module.parameters()),
    )


def check_kinds(kept: Sequence[Kept]) -> None:
    """Raise SpecError where runs have different tasks or classes."""
    first = kept[0]
    for other in kept[1:]:
        kinds = [one.card["target"] for one in (first, other)]
        if kinds[0] != kinds[1]:
            words = {"classes": "predicts classes", "values": "predicts values"}
            raise SpecError(
                f"{first.folder} {words[kinds[0]]} and {other.folder} {words[kinds[1]]}: there is nothing to compare. "
                "Give runs of one task."
            )
        classes, numbers = [one.card["classes"] for one in (first, other)], [_outputs(one) for one in (first, other)]
        if all(classes) and classes[0] != classes[1]:
            one, two = (listing(map(show, names), 5) for names in classes)
            raise SpecError(f"{first.folder} has the classes {one}, and {other.folder} {two}. Give runs of one task.")
        if numbers[0] != numbers[1]:
            raise SpecError(
                f"{first.folder} has {numbers[0]} {kinds[0]} to predict, and {other.folder} {numbers[1]}. "
                "Give runs of one task."
            )


def _outputs(one: Kept) -> int:
    outputs = one.card["outputs"] or 1
    return 2 if one.card["target"] == "classes" and outputs == 1 else outputs


def check_groups(kept: Sequence[Kept], sizes: tuple[int, int]) -> None:
    """Raise SpecError unless the runs of each group have one spec and different seeds, two at least."""
    for group in (kept[: sizes[0]], kept[sizes[0] :]):
        if len(group) < 2:
            raise SpecError(
                f"{group[0].folder}: one seed does not tell how far another would move it. Give two runs or more on "
                "either side of --against; or to compare several runs with one, name that first, without --against."
            )
        trees = [{key: value for key, value in one.tree.items() if key not in CALLED} for one in group]
        if found := differing(trees):
            names = listing(str(one.folder) for one in group)
            raise SpecError(
                f"{names}: differ in {listing(key for key, _ in found)}, and runs on one side of --against may "
                "differ in their seed alone."
            )
        seeds: dict[Any, Kept] = {}
        for one in group:
            if (twin := seeds.setdefault(one.seed, one)) is not one:
                raise SpecError(
                    f"{twin.folder} and {one.folder} have the same seed, {one.seed}. Leave one of them out."
                )


def measured_alike(kept: Sequence[Kept]) -> tuple[list[str], list[str]]:
    """Return the names of measures that mean the same in all runs, and notes on those that do not."""
    own = (name for one in kept for name in one.tree["metrics"])
    every = dict.fromkeys(("loss", *own, *MEASURED[kept[0].card["target"]]))
    names, notes = [], []
    for name in every:
        found = differing([_meaning(one.tree, name) for one in kept])
        if found:
            keys = listing(key for key, _ in found)
            notes.append(f"{name} is not compared, because the runs ask for it differently: {keys}.")
        else:
            names.append(name)
    return names, notes


def _meaning(tree: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return what a measure is asked to be: of the loss, what validation leaves out does not count."""
    if name == "loss":
        [(loss, arguments)] = tree["loss"].items()
        return {loss: {key: value for key, value in arguments.items() if key != "label_smoothing"}}
    own = tree["metrics"].get(name)
    return {name: TABLES["metrics"][name].defaults() if own is None else own}


def take(kept: Kept, outcomes: Outcomes) -> Taken:
    """Return a run with its outcomes measured."""
    found, notes = measures(outcomes)
    return Taken(
        kept=kept, outcomes=outcomes, measures={measure.name: measure for measure in found}, notes=tuple(notes)
    )


def rows_of(first: Outcomes, second: Outcomes) -> Overlap:
    """Return which rows two runs were both measured on, by their numbers where the targets of all rows agree."""
    return overlap(first.rows, second.rows, _same_targets(first, second))


def _same_targets(first: Outcomes, second: Outcomes) -> bool:
    one, other = first.batches, second.batches
    if not isinstance(one, RowBatches) or not isinstance(other, RowBatches):
        return len(first) == len(second) and torch.equal(first.targets, second.targets)
    if one.y is None or other.y is None:  # windows of one sequence
        if one.starts is None or other.starts is None:
            return False
        return torch.equal(one.x, other.x) and torch.equal(one.starts, other.starts)
    return len(one.y) == len(other.y) and torch.equal(one.y.double().flatten(), other.y.double().flatten())


def about_rows(found: Sequence[Taken], rows: Sequence[Overlap], groups: tuple[int, int] | None) -> list[str]:
    """Say which runs were not measured on the rows of the first, and what that costs."""
    first, part = found[0], found[0].outcomes.part
    if groups is not None:
        if not resplit(found[: groups[0]]):
            return ["the seeds have the same rows: how far other rows would move them is not in these intervals."]
        return [
            "each seed has its own split, so that the noise of seeds holds that of the rows too. Where runs are "
            "compared in pairs of one seed, the test is corrected for rows that splits share (Nadeau and Bengio 2003)."
        ]
    others, inputs = [], []
    for other, where in zip(found[1:], rows, strict=True):
        if not where.paired:
            both = f"{len(where.shared):,} of {len(where.second):,} rows in both"
            others.append(
                f"{other.kept.folder} ({both if _same_targets(first.outcomes, other.outcomes) else 'other data'})"
            )
        elif not _same_inputs(first.outcomes, other.outcomes):
            inputs.append(str(other.kept.folder))
    notes = []
    if others:
        notes.append(
            f"not measured on the {part} rows of {first.kept.folder}: {listing(others)}. Each is measured on its own "
            "rows then, which finds less than a paired test; runs with one seed and one split have the same rows."
        )
    if inputs:
        notes.append(f"the same targets as {first.kept.folder} in the same rows, and other inputs: {listing(inputs)}.")
    return notes


def about_seeds(kept: Sequence[Kept], groups: tuple[int, int] | None) -> list[str]:
    """Say what one seed a side leaves open; of two groups with other seeds, what the same seeds would give."""
    if groups is not None:
        seeds = [{one.seed for one in side} for side in (kept[: groups[0]], kept[groups[0] :])]
        if seeds[0] == seeds[1]:
            return []
        return ["the two sides have different seeds: with the same ones on both, runs would be compared in pairs."]
    if {key.partition(".")[0] for key, _ in differing([one.tree for one in kept])} <= set(CALLED):
        return []
    return [
        "the intervals hold for these trained models on new rows: how far another seed would move them is not in them. "
        "For that, fit each spec with several seeds and compare A-1 A-2 A-3 --against B-1 B-2 B-3."
    ]


def _same_inputs(first: Outcomes, second: Outcomes) -> bool:
    one, other = first.batches, second.batches
    if not isinstance(one, RowBatches) or not isinstance(other, RowBatches):
        return True
    return one.x.numel() != other.x.numel() or torch.equal(one.x.flatten(), other.x.flatten())


def resplit(group: Sequence[Taken]) -> float:
    """Return the size of the part over that of the training part, where each seed drew its own split; else 0."""
    first = group[0].outcomes
    if not isinstance(first.batches, RowBatches) or all(torch.equal(first.rows, o.outcomes.rows) for o in group[1:]):
        return 0.0
    [arguments] = (group[0].kept.tree.get("splits") or {"": {}}).values()
    total = len(first.batches.starts if first.batches.starts is not None else first.batches.x)
    held = arguments.get("test" if first.part == "val" else "val")
    train = total * (1 - (held if isinstance(held, float | int) else 0.0)) - len(first)
    return len(first) / train if train > 0 else 0.0


def differences(kept: Sequence[Kept]) -> list[Difference]:
    """Return everything in which the specs, machines and data of runs are not all the same."""
    found = [Difference("spec", key, values) for key, values in differing([one.tree for one in kept])]
    for where, keys in (("environment", RAN_ON), ("data", PARTS)):
        trees = [{key: one.environment[key] for key in keys if key in one.environment} for one in kept]
        found += [Difference(where, key, values) for key, values in differing(trees)]  # type: ignore[arg-type]
    return found
