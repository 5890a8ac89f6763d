"""What a resumed run is asked now and was asked then: compared key by key, and refused unless it was allowed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fitkit.errors import Fault, SpecError, listing, nearest, show

MOST_SHOWN = 60  # of a value in a message
NOTHING = object()  # where one of the two says nothing
FIXED = {  # what no run can be gone on with, and why
    "seed": "the split, the order of the rows and dropout depend on it",
    "data": "the weights so far, the split and the best epoch belong to the data of then",
    "data_train": "the rows are others than then",
    "data_val": "the rows are others than then, so epochs cannot be compared",
    "data_test": "the rows are others than then",
    "splits": "rows that were trained on would be validated on",
    "model": "the weights so far are those of the model of then",
    "loss": "the best epoch so far was chosen by the loss of then",
    "metrics": "the history has the columns of then",
}
HARMLESS = ("fit.check_data",)  # what a run may be asked otherwise, or was not asked then: no number hangs on it
MEMORIES = ("optimizer", "callbacks")  # their arguments may change; what a checkpoint remembers belongs to their names


@dataclass(frozen=True)
class Change:
    """One difference: a dotted key, what it was, and what it is."""

    key: str
    then: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.key}: {_said(self.then)} then, {_said(self.now)} now"

    def to_json(self) -> dict[str, Any]:
        """Return key, then and now as JSON values; without one of the two where nothing was said."""
        values = {"key": self.key, "then": self.then, "now": self.now}
        return {name: value for name, value in values.items() if value is not NOTHING}

    @property
    def refusal(self) -> str | None:
        """Why no run can be gone on with this difference; None if it can."""
        section, _, rest = self.key.partition("[")[0].partition(".")
        if section in MEMORIES and "." not in rest:
            return "what the checkpoint remembers belongs to those of then"
        if "ReduceLROnPlateau" in (*_names(self.then), *_names(self.now)):
            return "what the checkpoint remembers belongs to the schedule of then"
        return FIXED.get(section)


def changes(then: Any, now: Any, key: str = "") -> list[Change]:
    """Return the differences between two trees of plain values, in their order; a component of another name is one."""
    if isinstance(then, list) and isinstance(now, list) and len(then) == len(now) and any(map(_names, then)):  # layers
        pairs = enumerate(zip(then, now, strict=True))
        return [change for i, (one, other) in pairs for change in changes(one, other, f"{key}[{i}]")]
    if not isinstance(then, Mapping) or not isinstance(now, Mapping):
        return [] if then == now and type(then) is type(now) else [Change(key, then, now)]
    if key and len(then) == len(now) == 1 and then.keys() != now.keys():
        return [Change(key, then, now)]
    found: list[Change] = []
    for name in {**then, **now}:
        found += changes(then.get(name, NOTHING), now.get(name, NOTHING), f"{key}.{name}" if key else str(name))
    return found


def check_allowed(
    found: Sequence[Change], allowed: Sequence[str], keys: Sequence[Mapping[str, Any]], place: str
) -> None:
    """Raise SpecError unless every difference is allowed, by its key or one above it, and can be gone on with.

    The message lists all of them with what would permit each. `keys` are the trees in which an allowed key must stand.
    """
    known = list(dict.fromkeys(key for tree in keys for key in _dotted(tree)))
    for key in allowed:
        if key not in known:
            near = nearest(key, known)
            hint = f" Did you mean {show(near)}?" if near else f" The keys are {listing(sorted(known))}."
            raise SpecError(Fault(f"--allow-change {key}: this run has no such key.{hint}", place))
    wanted = [change.key for change in found if change.refusal is None and not _covers(allowed, change.key)]
    refused = any(change.refusal for change in found)
    if not wanted and not refused:
        return
    lines = [f"  {change}: {_permit(change, allowed)}" for change in found]
    end = "Start another run in another folder."
    if not refused:
        end = f"Go on with {' '.join(f'--allow-change {key}' for key in wanted)}, or start another run elsewhere."
    raise SpecError(Fault("\n".join(["this run was asked something else:", *lines, end]), place))


def _permit(change: Change, allowed: Sequence[str]) -> str:
    if change.refusal is not None:
        return f"cannot change: {change.refusal}"
    return "allowed" if _covers(allowed, change.key) else f"--allow-change {change.key} permits it"


def _covers(allowed: Sequence[str], key: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in allowed)


def _dotted(tree: Mapping[str, Any], above: str = "") -> Iterator[str]:
    for name, value in tree.items():
        yield f"{above}{name}"
        if isinstance(value, Mapping):
            yield from _dotted(value, f"{above}{name}.")


def _names(value: Any) -> list[str]:
    return list(value) if isinstance(value, Mapping) else []


def _said(value: Any) -> str:
    if value is NOTHING:
        return "nothing"
    text = str(next(iter(value))) if len(_names(value)) == 1 else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= MOST_SHOWN else f"{text[: MOST_SHOWN - 1]}…"
