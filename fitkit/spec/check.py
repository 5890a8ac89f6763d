"""From a tree of nodes to a Spec: every key, name and argument is checked, and all mistakes are raised together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fitkit.errors import Fault, Place, SpecError, listing, nearest, show
from fitkit.spec import hints
from fitkit.spec.component import Component
from fitkit.spec.compose import PRIMARY
from fitkit.spec.options import FitOptions
from fitkit.spec.reader import Node
from fitkit.spec.spec import KEYS, RUN_NAME, Spec
from fitkit.spec.table import Entry, Table
from fitkit.spec.types import NonNegativeInt
from fitkit.spec.values import Mismatch, convert

TABLE_OF = {"data": "sources", "splits": "splits", "model": "models", "loss": "losses", "metrics": "metrics"}
TABLE_OF |= {"optimizer": "optimizers", "schedule": "schedules", "callbacks": "callbacks"}

_fit_table = Table("fit option")
_fit_table.register(FitOptions)
FIT: Entry = _fit_table["FitOptions"]


def check(tree: Node, tables: Mapping[str, Table], name: str = "run") -> Spec:
    """Return the Spec that a tree says, or raise one `SpecError` with every independent mistake in it."""
    checker = _Checker(tables)
    spec = checker.spec(tree, name)
    if checker.faults:
        raise SpecError(checker.faults)
    return spec


class _Checker:
    def __init__(self, tables: Mapping[str, Table]) -> None:
        self.tables = tables
        self.faults: list[Fault] = []

    def fault(self, message: str, path: str, place: Place | None) -> None:
        self.faults.append(Fault(message, path, place))

    def spec(self, tree: Node, name: str) -> Spec:
        given = tree.items()
        for key in given:
            if key not in KEYS:
                self.unknown_key(key, given[key])
        sections: dict[str, Any] = {
            section: self.one(given[section], table, section)
            for section, table in TABLE_OF.items()
            if section in given
            and section not in ("model", "metrics", "callbacks")
            and given[section].value is not None
        }
        if "model" in given:
            sections["model"] = self.model(given["model"])
        for section in ("metrics", "callbacks"):
            if section in given:
                sections[section] = self.several(given[section], TABLE_OF[section], section)
        if "name" in given:
            name = self.run_name(given["name"])
        if "seed" in given:
            sections["seed"] = self.value(NonNegativeInt, given["seed"], "seed") or 0
        options = self.arguments(given["fit"], FIT, "fit") if "fit" in given else {}
        return Spec(name=name, fit=FitOptions(**options), given=tree.plain(), **sections)

    def unknown_key(self, key: str, node: Node) -> None:
        right = hints.KEYS.get(key)
        if right is None and key in FIT.arguments:
            right = f"fit.{key}"
        if right is None and (near := nearest(key, [*KEYS, "extends"])):
            right = near
        table = next((name for name, table in self.tables.items() if key in table), None)
        if right is None and table:
            section = next((section for section, name in TABLE_OF.items() if name == table), "data")
            right = f"{section}.{key}"
        hint = f" Did you mean {show(right)}?" if right else ""
        self.fault(f"a spec has no such key.{hint} The keys are {', '.join(KEYS)}, extends.", key, node.key_place)

    def run_name(self, node: Node) -> str:
        text = node.value if isinstance(node.value, str) else str(node.plain())
        if not RUN_NAME.fullmatch(text):
            words = "a name of 1 to 64 letters, digits, dots, underscores and hyphens that does not begin with a dot"
            self.fault(f"expects {words}, not {show(node.plain())}.", "name", node.place)
        return text

    def value(self, annotation: Any, node: Node, path: str) -> Any:
        """Return the checked value, or None after noting the fault."""
        try:
            return convert(annotation, node, self._nested, path)
        except Mismatch as mismatch:
            at = mismatch.node or node
            self.fault(mismatch.message, mismatch.path or path, at.place)
            return None

    def _nested(self, node: Node, table: str, path: str) -> Component | None:
        return self.one(node, table, path)

    def model(self, node: Node) -> Any:
        if not isinstance(node.value, list):
            return self.one(node, "models", "model")
        if not node.value:
            self.fault("has no layers.", "model", node.place)
        layers = [self.one(item, "layers", f"model[{i}]") for i, item in enumerate(node.value)]
        return tuple(layer for layer in layers if layer is not None)

    def several(self, node: Node, table: str, path: str) -> tuple[Component, ...]:
        if isinstance(node.value, dict):
            found = [self.named(name, item, table, path, item.key_place) for name, item in node.value.items()]
        elif isinstance(node.value, list):
            found = [self.one(item, table, path) for item in node.value]
        elif node.value is None:
            found = []
        else:
            found = [self.one(node, table, path)]
        names: set[str] = set()
        for component in found:
            if component and component.name in names:
                self.fault(f"{component.name} is here twice.", path, component.place)
            names |= {component.name} if component else set()
        return tuple(component for component in found if component is not None)

    def one(self, node: Node, table: str, path: str) -> Component | None:
        """Check a component: a name, or one name with its arguments."""
        kind = self.tables[table].kind
        if isinstance(node.value, str) and node.value:
            return self.named(node.value, Node(None, node.place), table, path, node.place)
        given = node.items()
        if len(given) == 1:
            [(name, arguments)] = given.items()
            return self.named(name, arguments, table, path, arguments.key_place)
        word = next((given[key].value for key in hints.COMPONENT_KEYS if key in given), None)
        if isinstance(word, str):
            says = f"Write {{{word}: {{…}}}}: the name first, its arguments in it."
        elif len(given) > 1:
            says = f"Here are {len(given)}: {listing(given)}."
            if all(key in self.tables[table] for key in given):
                says += " Keep one."
        elif isinstance(node.value, list) and table != "layers":
            says = "This is a list."
        else:
            says = f"This is {show(node.plain())}."
        self.fault(f"expects one {kind}: a name, or one name with its arguments. {says}", path, node.place)
        return None

    def named(self, name: str, node: Node, table: str, path: str, place: Place | None) -> Component | None:
        entry = self.tables[table].get(name)
        if entry is None:
            self.unknown_name(name, table, path, place)
            return None
        whole = f"{path}.{name}"
        args = self.arguments(node, entry, whole, place)
        places = {key: item.key_place or item.place for key, item in node.items().items()}
        return Component(entry, args, whole, place, places)

    def unknown_name(self, name: str, table: str, path: str, place: Place | None) -> None:
        known, kind = self.tables[table], self.tables[table].kind
        foreign = hints.NAMES.get(table, {})
        right = foreign.get(name) or next((foreign[word] for word in foreign if word.lower() == name.lower()), None)
        right = right if right in known else None
        right = right or nearest(name, known)
        message = f"there is no {kind} {show(name)}."
        elsewhere = next((other for other, entries in self.tables.items() if name in entries), None)
        if elsewhere and right is None:
            section = next((key for key, of in TABLE_OF.items() if of == elsewhere), "")
            message += f" It is a {self.tables[elsewhere].kind}"
            if elsewhere == "layers":
                message += f": write the model as a list of layers, `model: [{name}, …]`."
            else:
                message += f": write it under `{section}:`." if section else "."
        elif right:
            message += f" Did you mean {show(right)}?"
        if "." in name or ":" in name:
            message += " A spec never imports code: register your own in Python, or with --code FILE."
        choices = f" Choose from {listing(sorted(known, key=str.lower), 40)}." if len(known) <= 40 or not right else ""
        self.fault(message + choices, path, place)

    def arguments(self, node: Node, entry: Entry, path: str, place: Place | None = None) -> dict[str, Any]:
        """Check the arguments of an entry; a value standing alone is the primary argument's."""
        kind = entry.name if entry is not FIT else "fit"
        if node.value is None or isinstance(node.value, dict):
            given = dict(node.items())
            if PRIMARY in given and entry.primary and entry.primary not in given:
                given[entry.primary] = given.pop(PRIMARY)
        elif entry.primary:
            given = {entry.primary: node}
        else:
            takes = f"{kind}: {{{next(iter(entry.arguments), '')}: …}}" if entry.arguments else "no arguments"
            self.fault(f"takes its arguments by name ({takes}), not {show(node.plain())}.", path, node.place)
            return {}
        checked: dict[str, Any] = {}
        for key, item in given.items():
            argument = entry.arguments.get(key)
            if argument is None:
                self.unknown_argument(key, item, entry, kind, path)
                continue
            before = len(self.faults)
            value = self.value(argument.annotation, item, f"{path}.{key}")
            if len(self.faults) == before:
                checked[key] = value
        missing = [a.name for a in entry.arguments.values() if a.required and a.name not in given]
        near_miss = any(key not in entry.arguments for key in given)
        if missing and not near_miss:
            self.fault(f"{kind} needs {listing(missing)}.", path, place or node.place)
        return checked

    def unknown_argument(self, key: str, item: Node, entry: Entry, kind: str, path: str) -> None:
        names: Iterable[str] = entry.arguments
        right = (hints.FIT if entry is FIT else hints.ARGUMENTS).get(key)
        right = right if right in entry.arguments else nearest(key, names)
        message = f"{kind} has no such argument."
        if right:
            message += f" Did you mean {show(right)}?"
        elif key in hints.REMOVED:
            message += f" It is not needed: {hints.REMOVED[key]}."
        elif entry is FIT and key in hints.KEYS or entry is FIT and key in KEYS:
            message += f" Did you mean {show(hints.KEYS.get(key, key))}, outside of fit?"
        takes = listing(names, 20) if entry.arguments else "no arguments"
        self.fault(f"{message} It takes {takes}.", f"{path}.{key}", item.key_place)
