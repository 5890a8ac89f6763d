"""`fitkit schema`: the spec language as a JSON Schema (draft 2020-12), for editors that complete and check YAML.

A definition for each table, for each of its entries, and one for each key of a spec; all read from the tables. The
schema says what the checker says, but for what a schema cannot: that 3.0 is no whole number, that a number is finite
and below 2^63, that a path may not leave the spec's folder by way of `..`, and that a list names no component twice.
"""

from __future__ import annotations

import json
import math
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

from fitkit.after.words import SECTIONS, fallback, notes, sentence, wanted
from fitkit.builder.tables import TABLES
from fitkit.spec.check import FIT, TABLE_OF
from fitkit.spec.spec import RUN_NAME
from fitkit.spec.table import Argument, Entry
from fitkit.spec.types import RUN_FILES, InputPath, NonNegativeInt, OutputPath, Part, Pattern, Range
from fitkit.spec.values import options

Schema = dict[str, Any]

DRAFT = "https://json-schema.org/draft/2020-12/schema"
SEVERAL = ("metrics", "callbacks")  # keys that hold more than one component


def json_schema() -> Schema:
    """Return the schema of a whole spec, as plain JSON values; parts that were registered are in it."""
    definitions: dict[str, Schema] = {}
    for key, table in TABLES.items():
        for name, entry in table.items():
            definitions[f"{key}.{name}"] = _entry(entry)
        definitions[key] = _component(key, table)
    return {
        "$schema": DRAFT,
        "title": "fitkit spec",
        "description": "An experiment on PyTorch, declared: data, splits, model, loss, metrics, optimizer, schedule, "
        "callbacks.",
        "type": "object",
        "properties": {key: _section(key) for key in SECTIONS},
        "additionalProperties": False,
        "$defs": definitions,
    }


def _section(key: str) -> Schema:
    section = SECTIONS[key]
    schema: Schema = {"description": f"{section.words} Without it: {section.default}."}
    if key == "name":
        schema |= {"type": ["string", "number"], "pattern": f"^({RUN_NAME.pattern})$"}
    elif key == "extends":
        schema |= {"type": "string", "minLength": 1}
    elif key == "seed":
        schema |= _value(NonNegativeInt) | {"default": 0}
    elif key == "fit":
        schema |= {"anyOf": [_arguments(FIT), {"type": "null"}]}
    elif key == "model":
        layers = {"type": "array", "items": _ref("layers"), "minItems": 1}
        schema |= {"anyOf": [_ref("models"), layers]}
    elif key in SEVERAL:
        schema |= {"anyOf": _several(TABLE_OF[key])}
    else:
        schema |= {"anyOf": [_ref(TABLE_OF[key]), {"type": "null"}]}
    return schema


def _ref(name: str) -> Schema:
    return {"$ref": f"#/$defs/{name}"}


def _component(key: str, table: Mapping[str, Entry]) -> Schema:
    """Return the schema of one component of a table: a name that needs no argument, or one name with its arguments."""
    return {"anyOf": [_names(table), {**_named(key, table), "minProperties": 1, "maxProperties": 1}]}


def _names(table: Mapping[str, Entry]) -> Schema:
    bare = [entry for entry in table.values() if not any(argument.required for argument in entry.arguments.values())]
    return {"anyOf": [{"const": entry.name, "description": sentence(entry)} for entry in bare]} if bare else {"not": {}}


def _named(key: str, table: Mapping[str, Entry]) -> Schema:
    properties = {name: _ref(f"{key}.{name}") for name in table}
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _several(key: str) -> list[Schema]:
    """Return the ways to say several components: a list, a mapping of names to arguments, one alone, or none."""
    table = TABLES[key]
    return [{"type": "array", "items": _ref(key)}, _named(key, table), _names(table), {"type": "null"}]


def _entry(entry: Entry) -> Schema:
    """Return the schema of what stands after a component's name: its arguments, or its primary argument alone."""
    forms = [_arguments(entry)]
    if not any(argument.required for argument in entry.arguments.values()):
        forms.append({"type": "null"})
    if entry.primary:
        choices = options(entry.arguments[entry.primary].annotation)
        mapping_or_null = (dict, types.NoneType)  # read as arguments by name, and as none of them
        forms += [_one(c) for c in choices if (typing.get_origin(_unpack(c)[0]) or c) not in mapping_or_null]
    return {"description": sentence(entry), "anyOf": forms} if len(forms) > 1 else {**forms[0]}


def _arguments(entry: Entry) -> Schema:
    said = notes(entry)
    schema: Schema = {
        "type": "object",
        "description": sentence(entry),
        "properties": {name: _argument(entry, a, said.get(name, "")) for name, a in entry.arguments.items()},
        "additionalProperties": False,
    }
    required = [argument.name for argument in entry.arguments.values() if argument.required]
    return schema | ({"required": required} if required else {})


def _argument(entry: Entry, argument: Argument, note: str) -> Schema:
    takes = f"{wanted(argument)}; {fallback(entry, argument)}."
    schema = _value(argument.annotation)
    schema = {"description": f"{note} {takes[0].upper()}{takes[1:]}".strip(), **schema}
    if not argument.required and argument.default is not None:  # a null would be put into the file by an editor
        schema["default"] = json.loads(json.dumps(argument.default))
    return schema


def _value(annotation: Any) -> Schema:
    """Return the schema of what the checker's `convert` takes for an annotation."""
    choices = [_one(choice) for choice in options(annotation)]
    return choices[0] if len(choices) == 1 else {"anyOf": choices}


def _unpack(annotation: Any) -> tuple[Any, list[Any]]:
    if typing.get_origin(annotation) is Annotated:
        inner, *marks = typing.get_args(annotation)
        base, more = _unpack(inner)
        return base, [*more, *marks]
    return annotation, []


def _one(annotation: Any) -> Schema:
    base, marks = _unpack(annotation)
    for table in (mark.table for mark in marks if isinstance(mark, Part)):
        if typing.get_origin(base) not in (list, tuple, dict):
            return _ref(table)
    origin, members = typing.get_origin(base) or base, typing.get_args(base)
    if origin is Literal:
        return {"enum": list(members)}
    if origin in (list, tuple):
        return _sequence(origin, members, marks)
    if origin is dict:
        return {"type": "object", "additionalProperties": _value(_marked(members[1], marks))}
    if base in (int, float):
        return _number(base, [mark for mark in marks if isinstance(mark, Range)])
    if base is str:
        return _string(marks)
    kinds: dict[Any, Any] = {bool: "boolean", types.NoneType: "null"}
    return {"type": kinds.get(base, ["string", "number", "boolean", "null"])}


def _any_case(names: Iterable[str]) -> str:
    """Return a pattern for these names in upper and lower case: JSON Schema's patterns have no flag for it."""
    return "|".join("".join(f"[{c}{c.upper()}]" if c.isalpha() else re.escape(c) for c in n) for n in sorted(names))


def _marked(annotation: Any, marks: Sequence[Any]) -> Any:
    for mark in marks:
        annotation = Annotated[annotation, mark]
    return annotation


def _sequence(origin: Any, members: Sequence[Any], marks: Sequence[Any]) -> Schema:
    if origin is list or members[-1] is Ellipsis:
        return {"type": "array", "items": _value(_marked(members[0], marks))}
    items = [_value(_marked(member, marks)) for member in members]
    length = {"minItems": len(items), "maxItems": len(items)}
    if all(item == items[0] for item in items):  # `items` alone: editors that know older drafts read it too
        return {"type": "array", "items": items[0], **length}
    return {"type": "array", "prefixItems": items, **length}


def _number(base: Any, ranges: Sequence[Range]) -> Schema:
    schema: Schema = {"type": "integer" if base is int else "number"}
    low = max((mark.low for mark in ranges), default=-math.inf)
    high = min((mark.high for mark in ranges), default=math.inf)
    if low > -math.inf:
        opened = any(mark.open_low for mark in ranges if mark.low == low)
        schema["exclusiveMinimum" if opened else "minimum"] = low
    if high < math.inf:
        opened = any(mark.open_high for mark in ranges if mark.high == high)
        schema["exclusiveMaximum" if opened else "maximum"] = high
    return schema


def _string(marks: Sequence[Any]) -> Schema:
    schema: Schema = {"type": "string"}
    for mark in marks:
        if isinstance(mark, Pattern):
            schema["pattern"] = f"^({mark.regex})$"
        if isinstance(mark, InputPath):
            schema |= {"minLength": 1, "not": {"pattern": "^/|://"}}
        if isinstance(mark, OutputPath):
            schema |= {"minLength": 1, "not": {"pattern": rf"^/|(^|/)\.\.(/|$)|^\.[^/]|^({_any_case(RUN_FILES)})(/|$)"}}
    return schema
