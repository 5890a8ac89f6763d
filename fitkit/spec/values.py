"""Checking one value against an annotation: what a signature asks for, and how to say that something else was found."""

from __future__ import annotations

import math
import re
import types
import typing
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Union

from fitkit.errors import listing, nearest, show
from fitkit.spec import hints
from fitkit.spec.reader import Node, scalar
from fitkit.spec.types import RUN_FILES, InputPath, OutputPath, Part, Pattern, Range

LARGEST_INT = 2**63 - 1


class Mismatch(Exception):
    """The value is not what the annotation asks for; `message` says what was expected, found, and to do."""

    def __init__(self, message: str, node: Node | None = None, path: str = "") -> None:
        super().__init__(message)
        self.message, self.node, self.path = message, node, path


def options(annotation: Any) -> list[Any]:
    """Return the members of a union, or the annotation itself; tensors, which a spec cannot hold, are dropped."""
    origin = typing.get_origin(annotation)
    if origin in (Union, types.UnionType):
        return [option for member in typing.get_args(annotation) for option in options(member)]
    if origin is Annotated:
        inner, *marks = typing.get_args(annotation)
        members = options(inner)
        if len(members) > 1 or members != [inner]:
            return [Annotated[member, *marks] if _takes_marks(member) else member for member in members]
    if isinstance(annotation, type) and annotation.__module__.startswith("torch"):
        return []
    return [annotation]


def _takes_marks(annotation: Any) -> bool:
    return annotation in (int, float, str) or typing.get_origin(annotation) in (tuple, list, dict, Annotated)


def convert(annotation: Any, node: Node, component: Any = None, path: str = "") -> Any:
    """Return the checked Python value of `node`, or raise `Mismatch`.

    `component(node, table, path)` checks a nested component; lists become tuples where a tuple is annotated.
    """
    choices = sorted(options(annotation), key=_names_a_part)  # a word of the argument's own, "auto", comes first
    first: Mismatch | None = None
    for choice in choices:
        try:
            return _one(choice, node, component, path)
        except Mismatch as mismatch:
            deeper = mismatch.node is not None and mismatch.node is not node
            if first is None or deeper or (_fits_kind(choice, node) and not _fits_kind(choices[0], node)):
                first = mismatch
            elif _fits_kind(choice, node):
                first = mismatch
    if len(choices) == 1 or (first is not None and first.node is not None and first.node is not node):
        raise first or Mismatch("takes nothing that a spec can say.", node, path)
    close = [choice for choice in choices if _fits_kind(choice, node)]
    if len(close) == 1 and typing.get_origin(close[0]) is not Literal and first is not None:
        raise first
    raise Mismatch(f"expects {describe(annotation)}, not {found(node)}.{advice(annotation, node)}", node, path)


def _fits_kind(annotation: Any, node: Node) -> bool:
    """Tell whether the value is at least of the kind that is asked for, so that only its range or length is wrong."""
    base, marks = _unpack(annotation)
    value = node.value
    if any(isinstance(mark, Part) for mark in marks):
        return isinstance(value, str | dict)
    if base in (int, float):
        return isinstance(value, int | float) and not isinstance(value, bool)
    origin = typing.get_origin(base) or base
    kinds: dict[Any, type] = {str: str, bool: bool, list: list, tuple: list, dict: dict}
    return origin in kinds and isinstance(value, kinds[origin])


def _unpack(annotation: Any) -> tuple[Any, tuple[Any, ...]]:
    if typing.get_origin(annotation) is Annotated:
        inner, *marks = typing.get_args(annotation)
        base, more = _unpack(inner)
        return base, (*more, *marks)
    return annotation, ()


def _names_a_part(annotation: Any) -> bool:
    return any(isinstance(mark, Part) for mark in _unpack(annotation)[1])


def asks_path(annotation: Any) -> bool:
    """Tell whether the annotation asks for a file to be read."""
    return any(isinstance(mark, InputPath) for option in options(annotation) for mark in _unpack(option)[1])


def _one(annotation: Any, node: Node, component: Any, path: str) -> Any:
    base, marks = _unpack(annotation)
    part = next((mark for mark in marks if isinstance(mark, Part)), None)
    if part is not None:
        return component(node, part.table, path)
    value = node.value
    origin = typing.get_origin(base) or base
    if origin in (list, tuple) and isinstance(value, list):
        return _sequence(annotation, base, marks, node, component, path)
    if origin is dict and isinstance(value, dict):
        item_type = Annotated[typing.get_args(base)[1], *marks] if marks else typing.get_args(base)[1]
        return {key: convert(item_type, item, component, f"{path}.{key}") for key, item in value.items()}
    if origin is Literal:
        for choice in typing.get_args(base):
            if type(choice) is type(value) and choice == value:
                return value
    if base is Any and not isinstance(value, dict | list):
        return value
    if base in (types.NoneType, None) and value is None:
        return None
    if base in (bool, str) and isinstance(value, base):
        return _string(value, marks, node, path) if base is str else value
    if base in (int, float) and isinstance(value, int | float) and not isinstance(value, bool):
        return _number(base, value, marks, node, path)
    raise Mismatch(f"expects {describe(annotation)}, not {found(node)}.{advice(annotation, node)}", node, path)


def _sequence(annotation: Any, base: Any, marks: tuple[Any, ...], node: Node, component: Any, path: str) -> Any:
    members, items = typing.get_args(base), node.value
    if typing.get_origin(base) is tuple and members[-1:] != (Ellipsis,):
        if len(items) != len(members):
            raise Mismatch(f"expects {describe(annotation)}, not {found(node)}.", node, path)
    else:
        members = members[:1] * len(items)
    values = [
        convert(Annotated[member, *marks] if marks else member, item, component, f"{path}[{i}]")
        for i, (member, item) in enumerate(zip(members, items, strict=True))
    ]
    return tuple(values) if typing.get_origin(base) is tuple else values


def _number(base: Any, value: Any, marks: tuple[Any, ...], node: Node, path: str) -> Any:
    whole = isinstance(value, int)
    said = " and ".join(str(mark) for mark in marks if isinstance(mark, Range))
    kind = "a whole number" if base is int else "a number"
    if base is int and not whole:
        hint = f" Write {int(value)}." if math.isfinite(value) and value == int(value) else ""
        raise Mismatch(f"expects a whole number, not {value!r}.{hint}", node, path)
    if whole and abs(value) > LARGEST_INT:
        raise Mismatch(f"expects {kind} of at most {LARGEST_INT}, not {found(node)}.", node, path)
    if not math.isfinite(value):
        raise Mismatch(f"expects a finite number, not {found(node)}.", node, path)
    if not all(mark.holds(value) for mark in marks if isinstance(mark, Range)):
        share = any(mark.low == 0 and mark.high == 1 for mark in marks if isinstance(mark, Range))
        hint = f" Write {value / 100:g} for {value} %." if share and whole and 1 < value <= 100 else ""
        raise Mismatch(f"expects {kind}, {said}, not {value!r}.{hint}", node, path)
    return base(value)


def _string(value: str, marks: tuple[Any, ...], node: Node, path: str) -> str:
    for mark in marks:
        if isinstance(mark, Pattern) and not re.fullmatch(mark.regex, value):
            hint = advice(Annotated[str, mark], node)
            raise Mismatch(f"expects {mark.words}, not {show(value)}.{hint}", node, path)
        if isinstance(mark, InputPath):
            return str(_input_path(value, node, path))
        if isinstance(mark, OutputPath):
            _check_output_path(value, node, path)
    return value


def _check_output_path(value: str, node: Node, path: str) -> None:
    parts = Path(value).parts
    if Path(value).is_absolute() or ".." in parts or not parts or not value.strip() or not value.isprintable():
        raise Mismatch(f"expects a path inside the run folder, not {show(value)}.", node, path)
    first = unicodedata.normalize("NFKC", parts[0]).casefold()  # Model.safetensors is the same file on some disks
    if first.startswith("."):
        raise Mismatch(f"{show(parts[0])} begins with a dot, as fitkit's own files there do. Leave it out.", node, path)
    if first in RUN_FILES:
        raise Mismatch(f"{show(parts[0])} is what fitkit itself writes there. Choose another name.", node, path)


def _input_path(value: str, node: Node, path: str) -> Path:
    if not value or not value.isprintable():
        raise Mismatch(f"expects a file's path, not {show(value)}.", node, path)
    if "://" in value:
        raise Mismatch("expects a file on this disk; a spec never opens an address. Download it first.", node, path)
    if node.folder is None:
        try:
            return Path(value).expanduser().absolute()
        except RuntimeError:
            raise Mismatch(f"nobody's home folder is known for {show(value)}.", node, path) from None
    if not inside(node.folder / value, node.folder):
        raise Mismatch(
            f"the path {show(value)} leaves the spec's folder. Put the file beside the spec, or give the path on the "
            f"command line: {path}={value}",
            node,
            path,
        )
    return (node.folder / value).resolve()


def inside(path: Path, folder: Path) -> bool:
    """Tell whether a path lies in a folder once every link is followed; one that nobody can follow does not."""
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError):  # a circle of links, a name too long, a null byte
        return False


def found(node: Node) -> str:
    """Say what stands there: the value, or what kind of thing it is."""
    if isinstance(node.value, dict):
        return "a mapping" if node.value else "an empty mapping"
    if isinstance(node.value, list):
        return f"a list of {len(node.value)}" if node.value else "an empty list"
    if node.value is None:
        return "nothing"
    return show(node.value)


def advice(annotation: Any, node: Node) -> str:
    """Say what to write instead, when that can be guessed."""
    value = node.value
    if isinstance(value, dict) and len(value) == 1 and any(_holds_one(option, node) for option in options(annotation)):
        return f" Write [{{{next(iter(value))}: …}}]."
    if value is None or isinstance(value, list | dict):
        return ""
    bases = [_unpack(option)[0] for option in options(annotation)]
    words = [
        w for base in bases if typing.get_origin(base) is Literal for w in typing.get_args(base) if isinstance(w, str)
    ]
    patterns = [m for option in options(annotation) for m in _unpack(option)[1] if isinstance(m, Pattern)]
    words += [word for pattern in patterns for word in re.split(r",? or |, ", pattern.words)]
    if near := meant(value, words):
        return f" Did you mean {show(near)}?"
    if any(_holds_one(option, node) for option in options(annotation)):
        return f" Write [{show(value)}]."
    if not isinstance(value, str):
        if bool in bases and value in (0, 1):
            return f" Write {'true' if value else 'false'}."
        return " Put it in quotes." if str in bases and not patterns else ""
    if int in bases or float in bases:
        if node.quoted and isinstance(scalar(value), int | float):
            return " Remove the quotes."
        bare = value.replace("_", "").replace(",", "")
        if bare != value and isinstance(scalar(bare), int | float):
            return f" Write {bare}."
        if value.isdigit() and value != value.lstrip("0") != "":
            return f" Write {value.lstrip('0')}, without the zero in front."
    if bool in bases:
        if node.quoted and value.lower() in ("true", "false"):
            return " Remove the quotes."
        truth = {"yes": "true", "on": "true", "y": "true", "no": "false", "off": "false", "n": "false"}
        if value.lower() in truth:
            return f" Write {truth[value.lower()]}."
    return ""


def meant(value: Any, words: Iterable[str]) -> str | None:
    """Return the word that was most likely meant, also by somebody who knows another library's."""
    words = list(words)
    foreign = hints.VALUES.get(str(value))
    if foreign in words:
        return foreign
    return nearest(value, words) if isinstance(value, str) else None


def _holds_one(annotation: Any, node: Node) -> bool:
    """Tell whether a list is asked for, and the value would do as its only item."""
    base, _ = _unpack(annotation)
    origin, members = typing.get_origin(base), typing.get_args(base)
    if origin is not list and (origin is not tuple or members[-1:] != (Ellipsis,)):
        return False
    try:
        convert(annotation, Node([node]), lambda *_: None)
    except Mismatch:
        return False
    return True


def describe(annotation: Any) -> str:
    """Say in words what an annotation asks for."""
    parts = [_describe_one(option) for option in options(annotation) if option is not types.NoneType]
    return " or ".join(dict.fromkeys(parts)) or "null"


def _describe_one(annotation: Any) -> str:
    base, marks = _unpack(annotation)
    said = "".join(f", {mark}" for mark in marks if isinstance(mark, Range) and str(mark))
    for mark in marks:
        if isinstance(mark, Part):
            return f"a {mark.table.removesuffix('s')}"
        if isinstance(mark, Pattern):
            return mark.words
        if isinstance(mark, InputPath | OutputPath):
            return "a file's path"
    origin, members = typing.get_origin(base), typing.get_args(base)
    if origin is Literal:
        return listing([show(choice) for choice in members])
    if origin in (list, tuple):
        if origin is tuple and members[-1:] != (Ellipsis,):
            return (
                f"a list of {len(members)} numbers{said}"
                if set(map(_is_number, members)) == {True}
                else f"a list of {len(members)}"
            )
        return f"a list of {_plural(members[0])}{said}"
    if origin is dict:
        return f"a mapping of names to {_plural(members[1])}{said}"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a string", types.NoneType: "null"}
    return f"{words.get(base, 'a value')}{said}"


def _is_number(annotation: Any) -> bool:
    return any(_unpack(option)[0] in (int, float) for option in options(annotation))


def _plural(annotation: Any) -> str:
    for mark in _unpack(annotation)[1]:
        if isinstance(mark, Part):
            return mark.table
    bases = {_unpack(option)[0] for option in options(annotation)}
    words = {int: "whole numbers", float: "numbers", str: "strings", bool: "true or false"}
    inner = "".join(
        f", each {mark}" for option in options(annotation) for mark in _unpack(option)[1] if isinstance(mark, Range)
    )
    return (next((words[base] for base in bases if base in words), "values")) + inner
