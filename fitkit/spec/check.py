"""From a tree of nodes to a Spec: every key, name and argument is checked, and all mistakes are raised together."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any

from fitkit import files
from fitkit.errors import MOST_FAULTS, Fault, Place, SpecError, listing, nearest, show
from fitkit.spec import hints
from fitkit.spec.component import Component
from fitkit.spec.compose import PRIMARY
from fitkit.spec.options import FitOptions
from fitkit.spec.reader import Node
from fitkit.spec.spec import KEYS, RUN_NAME, Spec
from fitkit.spec.table import Entry, Table
from fitkit.spec.types import NonNegativeInt
from fitkit.spec.values import Mismatch, convert, found

TABLE_OF = {"data": "sources", "splits": "splits", "model": "models", "loss": "losses", "metrics": "metrics"}
TABLE_OF |= {"optimizer": "optimizers", "schedule": "schedules", "callbacks": "callbacks"}

MOST_NAMES = 40  # of a table that a message lists
MOST_LAYERS = 1000  # in a list: checking and building more takes longer than a mistake may
NO_CODE = "A spec never imports code: register your own in Python, or with --code FILE."

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


def _places(tree: Node) -> dict[str, Place]:
    """Return where each key of the spec and of `fit` stands, and under "" the file; nothing for a dict."""
    found = {"": tree.place and Place(tree.place.file)}
    found |= {key: node.key_place or node.place for key, node in tree.items().items()}
    found |= {f"fit.{key}": node.place for key, node in tree.items().get("fit", Node(None)).items().items()}
    return {key: place for key, place in found.items() if place is not None}


def _call(name: str, arguments: Iterable[str]) -> str:
    """Return how a spec writes a name with these arguments."""
    inner = ", ".join(f"{argument}: …" for argument in arguments)
    return f"{{{name}: {{{inner}}}}}" if inner else name


class _Checker:
    def __init__(self, tables: Mapping[str, Table]) -> None:
        self.tables = tables
        self.faults: list[Fault] = []

    def fault(self, message: str, path: str, place: Place | None) -> None:
        self.faults.append(Fault(message, path, place))

    def near(self, word: str, choices: Iterable[str]) -> str | None:
        """Return what was most likely meant; None beyond the faults that are shown, since it takes its time."""
        return nearest(word, choices) if len(self.faults) < MOST_FAULTS else None

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
        return Spec(name=name, fit=FitOptions(**options), given=tree.plain(), places=_places(tree), **sections)

    def unknown_key(self, key: str, node: Node) -> None:
        right = hints.KEYS.get(key)
        if right is None and key in FIT.arguments:
            right = f"fit.{key}"
        if right is None and (near := self.near(key, [*KEYS, "extends"])):
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
        if len(node.value) > MOST_LAYERS:
            self.fault(f"has {len(node.value):,} layers, and at most {MOST_LAYERS:,} are built.", "model", node.place)
            return None
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
                self.fault(f"{component.name} is here twice. Keep one.", path, component.place)
            names |= {component.name} if component else set()
        return tuple(component for component in found if component is not None)

    def one(self, node: Node, table: str, path: str) -> Component | None:
        """Check a component: a name, or one name with its arguments."""
        if isinstance(node.value, str) and node.value:
            return self.named(node.value, Node(None, node.place), table, path, node.place)
        given = node.items()
        if len(given) == 1 and not self.foreign_key(given, table):
            [(name, arguments)] = given.items()
            return self.named(name, arguments, table, path, arguments.key_place)
        kind, rather = self.tables[table].kind, self.rather(node, table)
        self.fault(f"expects one {kind}: a name, or one name with its arguments. {rather}", path, node.place)
        return None

    def foreign_key(self, given: Mapping[str, Node], table: str) -> str | None:
        """Return the key under which other libraries put a component's name, if it is here."""
        names = (key for key in hints.COMPONENT_KEYS if key in given and key not in self.tables[table])
        return next((key for key in names if isinstance(given[key].value, str)), None)

    def rather(self, node: Node, table: str) -> str:
        """Say how to write what seems to be meant by something that is no component."""
        known, given = self.tables[table], dict(node.items())
        key, names = self.foreign_key(given, table), [name for name in given if name in known]
        if key:
            word = given.pop(key).value
            name = self.right_name(word, table)
            if name is None:
                return f"There is no {known.kind} {show(word)}. {NO_CODE}"
            for wrapper in hints.WRAPPERS:
                given |= given.pop(wrapper, Node(None)).items()
            return f"Write {_call(name, given)}."
        if len(names) == 1:
            name = names[0]
            alone, primary = given.pop(name), known[name].primary
            first = list(alone.items()) or ([primary] if primary and alone.value is not None else [])
            return f"Write {_call(name, [*first, *given])}."
        if len(given) > 1 and all(name in self.tables["layers"] for name in given):
            return "Write the layers as a list, a hyphen before each."
        items = node.value if isinstance(node.value, list) else []
        words = [*given, *(item.value for item in items if isinstance(item.value, str) and item.value.isprintable())]
        owner = next((entry.name for entry in known.values() if given and given.keys() <= entry.arguments.keys()), None)
        if owner:
            return f"Write {_call(owner, given)}."
        if len(words) > 1:
            return f"Here are {len(words)}: {listing(words)}." + (" Keep one." if set(words) <= set(known) else "")
        if len(items) == 1:
            return "Write it without the list around it."
        return f"This is {found(node)}."

    def named(self, name: str, node: Node, table: str, path: str, place: Place | None) -> Component | None:
        entry = self.tables[table].get(name)
        if entry is None:
            self.unknown_name(name, table, path, place)
            return None
        whole = f"{path}.{name}"
        args = self.arguments(node, entry, whole, place)
        places = {key or entry.primary or "": item.key_place or item.place for key, item in node.items().items()}
        if entry.primary and not places:
            places[entry.primary] = node.place
        return Component(entry, args, whole, place, places)

    def unknown_name(self, name: str, table: str, path: str, place: Place | None) -> None:
        known, kind, right = self.tables[table], self.tables[table].kind, self.right_name(name, table)
        message = f"there is no {kind} {show(name)}."
        if rather := self.call_or_list(name, table):
            self.fault(f"{message} Write {rather}.", path, place)
            return
        elsewhere = next((other for other, entries in self.tables.items() if name in entries), None)
        why_not = files.why_not(name)
        owners = [entry.name for entry in known.values() if name in entry.arguments]
        if why_not and "://" not in name:
            self.fault(f"{message} {why_not}", path, place)
            return
        if table == "sources" and (suffix := PurePath(name).suffix.lower()):
            source = hints.SUFFIXES.get(suffix, "").format(show(name))
            message += f" For a file write {source}." if source else f" fitkit reads {listing(hints.SUFFIXES)} files."
            message = "a spec never opens an address. Download the file first." if "://" in name else message
        elif owners and name not in hints.NAMES.get(table, {}):
            message += f" It is an argument of {listing(owners, 4)}: write {_call(owners[0], [name])}."
        elif elsewhere and right is None:
            section = next((key for key, of in TABLE_OF.items() if of == elsewhere), "")
            other = self.tables[elsewhere].kind
            message += f" It is a{'n' * (other[0] in 'aeiou')} {other}"
            if elsewhere == "layers":
                message += f": write the model as a list of layers, `model: [{name}, …]`."
            else:
                message += f": write it under `{section}:`." if section else "."
        elif right:
            message += f" Did you mean {show(right)}?"
        elif "." in name or ":" in name:
            message += f" {NO_CODE}"
        if len(known) <= MOST_NAMES:
            message += f" Choose from {listing(sorted(known, key=str.lower), MOST_NAMES)}."
        elif not right:
            message += f" `fitkit list {table}` shows all {len(known)}."
        self.fault(message, path, place)

    def call_or_list(self, name: str, table: str) -> str | None:
        """Return how a spec writes what is written like Python, `AdamW(lr=1e-3)`, or as names with commas."""
        call = re.fullmatch(r"([\w.]+)\((.*)\)", name)
        if call and (right := self.right_name(call[1], table)):
            primary = self.tables[table][right].primary
            named = re.findall(r"(\w+)\s*=", call[2])
            return _call(right, named or [primary] * bool(primary and call[2]))
        words = re.split(r"[,\s]+", name)
        return f"[{', '.join(words)}]" if len(words) > 1 and set(words) <= set(self.tables[table]) else None

    def right_name(self, name: str, table: str) -> str | None:
        """Return the name of a table that was most likely meant, also by its dotted path in another library."""
        known, foreign, last = self.tables[table], hints.NAMES.get(table, {}), name.rpartition(".")[2]
        for word in (name, last):
            right = foreign.get(word) or next((foreign[w] for w in foreign if w.lower() == word.lower()), None)
            if right in known:
                return right
        return self.near(last, known)

    def arguments(self, node: Node, entry: Entry, path: str, place: Place | None = None) -> dict[str, Any]:
        """Check the arguments of an entry; a value standing alone is the primary argument's."""
        kind = entry.name if entry is not FIT else "fit"
        if node.value is None or isinstance(node.value, dict):
            given = dict(node.items())
            if PRIMARY in given and entry.primary:  # a value that stood alone; one given by name came later, and wins
                alone = given.pop(PRIMARY)
                given.setdefault(entry.primary, alone)
        elif entry.primary:
            given = {entry.primary: node}
        else:
            required = [a.name for a in entry.arguments.values() if a.required] or list(entry.arguments)[:1]
            takes = f"takes its arguments by name: {_call(kind, required)}" if required else "takes no arguments"
            self.fault(f"{takes}, not {found(node)}.", path, node.place)
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
            self.fault(f"{kind} needs {listing(missing)}: write {_call(kind, missing)}.", path, place or node.place)
        return checked

    def unknown_argument(self, key: str, item: Node, entry: Entry, kind: str, path: str) -> None:
        names = entry.arguments
        foreign = {w: to for w, to in (hints.FIT if entry is FIT else hints.ARGUMENTS).items() if to in names}
        near = foreign.get(key) or self.near(key, [*names, *foreign])
        right = foreign.get(near or "", near)
        message = f"{kind} has no such argument."
        if ":" in key:
            message += " A space is missing after the colon."
        elif right:
            message += f" Did you mean {show(right)}?"
        elif key.isdigit() and item.value is None:
            message += " A comma ends a value: write numbers without it."
        elif key in hints.REMOVED:
            message += f" It is not needed: {hints.REMOVED[key]}."
        elif entry is FIT and key in hints.KEYS or entry is FIT and key in KEYS:
            message += f" Did you mean {show(hints.KEYS.get(key, key))}, outside of fit?"
        takes = listing(names, 20) if entry.arguments else "no arguments"
        self.fault(f"{message} It takes {takes}.", f"{path}.{key}", item.key_place)
