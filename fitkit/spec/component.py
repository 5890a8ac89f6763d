"""A component: one named part of a spec with its checked arguments, and where each of them was written."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fitkit.errors import Fault, Place, SpecError
from fitkit.spec.table import Entry
from fitkit.spec.values import asks_path


@dataclass(frozen=True)
class Component:
    """A name from a table with the arguments that the spec gives it: `{AdamW: {lr: 3e-3}}`."""

    entry: Entry
    args: Mapping[str, Any] = field(default_factory=dict)  # as given and checked; a default is not in here
    path: str = ""  # "optimizer.AdamW"
    place: Place | None = None
    places: Mapping[str, Place | None] = field(default_factory=dict)  # of each argument's name

    @property
    def name(self) -> str:
        """The name as the spec says it."""
        return self.entry.name

    def own(self) -> dict[str, Any]:
        """Return the given arguments that the factory itself takes."""
        return {name: value for name, value in self.args.items() if not self.entry.arguments[name].shared}

    def shared(self) -> dict[str, Any]:
        """Return the given arguments that the whole table takes."""
        return {name: value for name, value in self.args.items() if self.entry.arguments[name].shared}

    def get(self, argument: str) -> Any:
        """Return the argument as given, or its default; None if the component has no such argument."""
        if argument in self.args:
            return self.args[argument]
        known = self.entry.arguments.get(argument)
        return None if known is None or known.required else known.default

    def build(self, *runtime: Any, **more: Any) -> Any:
        """Call the factory with what the run supplies and what the spec gives; a value it refuses is a `SpecError`."""
        try:
            return self.entry.factory(*runtime, **{**self.own(), **more})
        except SpecError as error:  # raised where the component itself is not known
            raise error if error.faults[0].path else self.error(error.faults[0].message) from error.__cause__
        except (TypeError, ValueError, RuntimeError, OverflowError, MemoryError) as error:
            raise self.error(f"{reason(error)}.") from error

    def error(self, message: str, argument: str | None = None) -> SpecError:
        """Return a `SpecError` that points at this component, or at one of its arguments."""
        path = f"{self.path}.{argument}" if argument else self.path
        return SpecError(Fault(message, path, self.places.get(argument or "") or self.place))

    def resolved(self) -> dict[str, dict[str, Any]]:
        """Return the component with every default filled in, in spec notation; paths start at the working directory."""
        given = {**self.entry.defaults(), **self.args}
        return {
            self.name: {name: _plain(value, self.entry.arguments[name].annotation) for name, value in given.items()}
        }


def reason(error: BaseException) -> str:
    """Return the first line of what a factory raised, without its full stop."""
    memory = re.search(r"tried to allocate (\d+) bytes", str(error))
    if memory:
        return f"asks for {int(memory[1]) / 1e9:,.0f} GB of memory at once, more than there is"
    if "size calculation overflowed" in str(error):
        return "asks for more memory than any machine can have"
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _plain(value: Any, annotation: Any = None) -> Any:
    if isinstance(value, Component):
        return value.resolved()
    if isinstance(value, str) and asks_path(annotation) and Path(value).is_relative_to(Path.cwd()):
        return str(Path(value).relative_to(Path.cwd()))
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value
