"""Two finished runs or more beside each other: what differed, how far each metric moved, and whether it is noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fitkit.after import comparable
from fitkit.after.comparable import CALLED, Difference, Kept, Taken
from fitkit.after.finished import RunLike, folder_of
from fitkit.after.run_outcomes import read_outcomes, say_looks
from fitkit.changes import NOTHING
from fitkit.errors import SpecError, listing, nearest, show
from fitkit.evaluation.contrast import Contrast, Overlap, contrast, holm, over_seeds
from fitkit.evaluation.evaluation import estimate
from fitkit.evaluation.intervals import Estimate, finite


@dataclass(frozen=True, kw_only=True)
class ComparedRun:
    """One of the runs: None is what its files do not tell. `estimates` hold its measures with their intervals."""

    label: str
    folder: str
    seed: int | None
    epochs: float | None
    best_epoch: float | None
    seconds: float | None
    peak_memory_mb: float | None
    parameters: int
    samples: int
    estimates: Mapping[str, Estimate]


@dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """What differed between runs, and how far each metric moved.

    The first of `runs` is what the others are compared with: `metrics[name][i]` tells how far `runs[i + 1]` lies above
    it. Where groups of seeds were compared, `groups` is how many runs belong to either, and `metrics[name]` has one
    contrast, of the second group's mean above the first's. `headline` is the metric of the verdict.
    """

    part: str
    headline: str
    runs: tuple[ComparedRun, ...]
    differences: tuple[Difference, ...]
    metrics: Mapping[str, tuple[Contrast, ...]]
    groups: tuple[int, int] | None = None
    notes: tuple[str, ...] = ()

    @property
    def only_seeds(self) -> bool:
        """Whether the specs differ in nothing but their seeds."""
        keys = {difference.key for difference in self.differences if difference.where == "spec"}
        return "seed" in keys and keys <= set(CALLED)

    @property
    def verdict(self) -> str:
        """What can be said, in words."""
        from fitkit.after.compare_words import verdict

        return verdict(self)

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data for strict JSON: None for what is not a finite number, or not there."""
        plain = {
            "part": self.part,
            "headline": self.headline,
            "verdict": self.verdict,
            "runs": [asdict(run) for run in self.runs],
            "groups": None if self.groups is None else list(self.groups),
            "differences": [
                {"where": d.where, "key": d.key, "values": [None if v is NOTHING else v for v in d.values]}
                for d in self.differences
            ],
            "metrics": {
                name: [asdict(found) | {"outcome": found.outcome} for found in contrasts]
                for name, contrasts in self.metrics.items()
            },
            "notes": list(self.notes),
        }
        strict: dict[str, Any] = finite(plain)
        return strict

    def __str__(self) -> str:
        from fitkit.after.compare_words import in_words

        return in_words(self)

    def _repr_html_(self) -> str:
        from fitkit.after.compare_words import in_html

        return in_html(self)


def compare(
    run: RunLike,
    *runs: RunLike,
    against: Sequence[RunLike] = (),
    split: str = "val",
    metric: str | None = None,
    root: Path | str | None = None,
) -> Comparison:
    """Return how finished runs differ, and whether that is more than noise; each is compared with the first.

    Args:
        run, runs: run folders, or the Histories of fits that wrote one; with `against`, runs of one spec that differ
            in seed.
        against: other seeds of another spec, which are then what is compared with, over the seeds.
        split: "val" or "test"; looking at the test split is noted in the ledger of each run.
        metric: what the verdict is about; the first metric of the runs without it.
        root: where the paths of the runs' data start; the working directory without it.

    Raises SpecError where there is nothing to compare, DataError where the data is not that of the runs any more, and
    CheckpointError for a run that is unfinished or damaged.
    """
    folders = [folder_of(name, "compare") for name in (*against, run, *runs)]
    comparable.check_number(folders)
    groups = (len(against), 1 + len(runs)) if against and len(folders) > 2 else None
    start = None if root is None else Path(root)
    kept = [comparable.read_run(folder, start, split) for folder in folders]
    comparable.check_kinds(kept)
    if groups:
        comparable.check_groups(kept, groups)
    names, unlike = comparable.measured_alike(kept)
    _headline(names, metric, kept)  # a mistake is told before the test split is looked at
    command = f"compare --split {split}"
    found = [comparable.take(one, read_outcomes(one.folder, split, start, command=command)) for one in kept]
    rows = [comparable.rows_of(found[0].outcomes, other.outcomes) for other in found[1:]]
    names = [name for name in names if all(name in one.measures for one in found)]
    headline = _headline(names, metric, kept)
    notes = [*comparable.about_rows(found, rows, groups), *comparable.about_seeds(kept, groups), *unlike]
    notes += dict.fromkeys(note for one in found for note in one.notes)
    return Comparison(
        part=split,
        headline=headline,
        runs=tuple(map(_facts, found, _labels(folders))),
        differences=tuple(comparable.differences(kept)),
        metrics={name: _contrasts(name, found, rows, groups) for name in dict.fromkeys((headline, *names))},
        groups=groups,
        notes=(*notes, *(say_looks(folder) for folder in folders if split == "test")),
    )


def _headline(names: Sequence[str], metric: str | None, kept: Sequence[Kept]) -> str:
    if metric is None:
        return next((name for name in kept[0].tree["metrics"] if name in names), names[0])
    if metric not in names:
        near = nearest(metric, names)
        hint = f" Did you mean {show(near)}?" if near else ""
        raise SpecError(f"--metric {metric}: the runs have no such metric in common.{hint} They have {listing(names)}.")
    return metric


def _contrasts(
    name: str, found: Sequence[Taken], rows: Sequence[Overlap], groups: tuple[int, int] | None
) -> tuple[Contrast, ...]:
    own = [one.measures[name] for one in found]
    if groups is None:
        made = [contrast(own[0], other, where) for other, where in zip(own[1:], rows, strict=True)]
        if len(made) == 1:
            return tuple(made)
        return tuple(replace(c, p_adjusted=p) for c, p in zip(made, holm([c.p for c in made]), strict=True))
    parts = [list(zip(found, own, strict=True))[where] for where in (slice(groups[0]), slice(groups[0], None))]
    sides = [{one.kept.seed: measure.value for one, measure in part} for part in parts]
    pairs = sides[0].keys() == sides[1].keys()
    first, second = ([side[seed] for seed in (sides[0] if pairs else side)] for side in sides)
    again = comparable.resplit(found[: groups[0]]) if pairs else 0.0
    return (over_seeds(first, second, own[0], pairs=pairs, resplit=again),)


def _facts(one: Taken, label: str) -> ComparedRun:
    summary = one.kept.summary
    return ComparedRun(
        label=label,
        folder=str(one.kept.folder),
        seed=one.kept.seed,
        epochs=_number(summary.get("epochs")),
        best_epoch=_number(summary.get("best_epoch")),
        seconds=_number(summary.get("seconds")),
        peak_memory_mb=_number(summary.get("peak_memory_mb")),
        parameters=one.kept.parameters,
        samples=len(one.outcomes),
        estimates={name: estimate(measure, len(one.outcomes)) for name, measure in one.measures.items()},
    )


def _number(value: Any) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _labels(folders: Sequence[Path]) -> list[str]:
    """Return the names of the folders where they differ, else their paths."""
    names = [folder.resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]
