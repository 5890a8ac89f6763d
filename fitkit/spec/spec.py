"""The spec: what is asked, checked against the tables, and never changed afterwards."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from fitkit.errors import Place, SpecError
from fitkit.spec.component import Component
from fitkit.spec.options import FitOptions
from fitkit.spec.reader import scalar

RUN_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")
KEYS = ("name", "seed", "data", "splits", "model", "loss", "metrics", "optimizer", "schedule", "callbacks", "fit")


@dataclass(frozen=True, kw_only=True)
class Spec:
    """An experiment as declared. What a spec leaves out is None or empty; the data decides it at `build`."""

    name: str = "run"
    seed: int = 0
    data: Component | None = None
    splits: Component | None = None
    model: Component | tuple[Component, ...] | None = None  # a name from the table, or a list of layers
    loss: Component | None = None
    metrics: tuple[Component, ...] | None = None
    optimizer: Component | None = None
    schedule: Component | None = None
    callbacks: tuple[Component, ...] = ()
    fit: FitOptions = field(default_factory=FitOptions)
    given: Mapping[str, Any] = field(default_factory=dict)  # the spec as it was written, bases and overrides merged
    text: str | None = None  # the file's text, where it alone is the whole spec
    places: Mapping[str, Place] = field(default_factory=dict, compare=False, repr=False)  # of keys; "": the file

    def located(self, error: SpecError) -> SpecError:
        """Return the error with a place for each fault that has none: that of its key, or of the key around it."""
        return SpecError(replace(fault, place=fault.place or self._place(fault.path)) for fault in error.faults)

    def _place(self, path: str) -> Place | None:
        while path and path not in self.places:
            path = path.rpartition(".")[0]
        return self.places.get(path)

    def resolved(self) -> dict[str, Any]:
        """Return the spec with every default filled in, in spec notation: itself a spec that means the same."""
        model = self.model
        return {
            "name": self.name,
            "seed": self.seed,
            "data": self.data.resolved() if self.data else None,
            "splits": self.splits.resolved() if self.splits else None,
            "model": [layer.resolved() for layer in model]
            if isinstance(model, Sequence)
            else model and model.resolved(),
            "loss": self.loss.resolved() if self.loss else None,
            "metrics": _several(self.metrics or ()),
            "optimizer": self.optimizer.resolved() if self.optimizer else None,
            "schedule": self.schedule.resolved() if self.schedule else None,
            "callbacks": _several(self.callbacks),
            "fit": asdict(self.fit),
        }

    def to_yaml(self) -> str:
        """Return `resolved()` as YAML text that `fitkit.load_spec` reads back to an equal spec."""
        given = {key: value for key, value in self.resolved().items() if value is not None}
        return dump(given)


def _several(components: Sequence[Component]) -> dict[str, Any]:
    return {component.name: component.resolved()[component.name] for component in components}


class _Dumper(yaml.SafeDumper):
    """Writes what our reader reads back: strings that YAML 1.2 would take for numbers are quoted, no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write equal objects out each time: a spec has no aliases."""
        return True


def _string(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    style = None if isinstance(scalar(value), str) and value.isprintable() else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


def _float(dumper: yaml.SafeDumper, value: float) -> yaml.ScalarNode:
    text = repr(value).replace("inf", ".inf").replace("nan", ".nan")
    if "e" in text and "." not in text:  # PyYAML's own resolver takes 1e-08 for a string, and would add a tag
        text = text.replace("e", ".0e")
    return dumper.represent_scalar("tag:yaml.org,2002:float", text)


_Dumper.add_representer(float, _float)
_Dumper.add_representer(str, _string)


def dump(value: Any) -> str:
    """Return plain dicts, lists and scalars as YAML text, keys in their order."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False, width=120)


def name_from(path: Path) -> str:
    """Return the run name that a spec file gives when it says none: its stem, with foreign characters replaced."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", path.stem).lstrip(".")[:64] or "run"
