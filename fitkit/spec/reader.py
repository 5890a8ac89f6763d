"""From text to a tree of nodes that remember where they stand: YAML 1.2 values, and nothing beyond data.

Tags, anchors, aliases, merge keys, duplicate keys, several documents and tabs are errors with line and column. A text
has at most 1 MiB, 10,000 nodes and 32 levels, so reading a stranger's file is bounded in time and memory.
"""

from __future__ import annotations

import errno
import itertools
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fitkit import files
from fitkit.errors import Fault, Place, SpecError, nearest, show
from fitkit.spec import syntax

MOST_BYTES, MOST_NODES, MOST_LEVELS = 1 << 20, 10_000, 32
UTF_16 = (b"\xff\xfe", b"\xfe\xff")
MOST_DIGITS = 40  # beyond this a number is a mistake, and int() takes quadratic time

INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)\Z|0x[0-9a-fA-F]+\Z|0o[0-7]+\Z")
FLOAT = re.compile(r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?\Z")
WORDS: dict[str, Any] = {"": None, "~": None, "null": None, "Null": None, "NULL": None}
WORDS |= {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
WORDS |= {sign + dot: float(sign + dot[1:]) for dot in (".inf", ".Inf", ".INF") for sign in ("", "+", "-")}
WORDS |= {dot: float("nan") for dot in (".nan", ".NaN", ".NAN")}


@dataclass(frozen=True)
class Node:
    """A value and where it stands. `value` is a scalar, a dict of nodes, or a list of nodes.

    `folder` is where a path in it starts, and which it may not leave; None for a value that was given in Python or on
    the command line, which starts at the working directory and may point anywhere.
    """

    value: Any
    place: Place | None = None  # of the value
    key_place: Place | None = None  # of its key in the mapping around it
    folder: Path | None = None
    quoted: bool = False

    def items(self) -> Mapping[str, Node]:
        """Return the nodes of a mapping; nothing for any other value."""
        return self.value if isinstance(self.value, dict) else {}

    def plain(self) -> Any:
        """Return the value as plain dicts, lists and scalars."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value


def read_file(path: Path) -> Node:
    """Read a spec file; paths in it start at its folder."""
    try:
        if reason := files.why_not(path):
            raise ValueError(f"a spec is YAML text. {reason}")
        raw = files.read_bytes(path, most=MOST_BYTES)
    except (OSError, ValueError) as error:
        raise SpecError(Fault(_unreadable(path, error), place=Place(str(path)))) from None
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        place = Place(str(path), line, error.start - raw.rfind(b"\n", 0, error.start))
        kind = "UTF-16" if raw.startswith(UTF_16) else "not UTF-8"
        raise SpecError(Fault(f"this text is {kind}. Save the spec as UTF-8.", place=place)) from None
    return read_text(text, str(path), path.parent)


def _unreadable(path: Path, error: OSError | ValueError) -> str:
    if isinstance(error, FileNotFoundError):
        if ": " in str(path):
            return "there is no such file. If this is the text of a spec, end it with a line break."
        beside = [file.name for file in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        near = nearest(path.name, beside)
        return "there is no such file." + (f" Did you mean {show(str(path.with_name(near)), 400)}?" if near else "")
    if isinstance(error, IsADirectoryError):
        return "this is a folder. Name the YAML file in it."
    if isinstance(error, OSError) and error.errno == errno.EFBIG:
        return "a spec has at most 1 MiB."
    return f"cannot be read: {getattr(error, 'strerror', None) or error}."


def read_text(text: str, name: str = "<text>", folder: Path | None = None) -> Node:
    """Read the text of a spec; `name` stands in messages for the file."""
    if len(text) > MOST_BYTES:
        raise SpecError(Fault("a spec has at most 1 MiB.", place=Place(name)))
    builder = _Builder(name, folder)
    try:
        return builder.document(yaml.parse(text, Loader=yaml.SafeLoader))
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        place = Place(name, before.count("\n") + 1, error.position - before.rfind("\n"))
        raise SpecError(
            Fault(f"the character {show(chr(error.character))} may not stand in YAML.", place=place)
        ) from None
    except yaml.MarkedYAMLError as error:
        raise SpecError(syntax.fault(error, text, name)) from None
    except (ValueError, OverflowError):  # an escape beyond Unicode, a version number of thousands of digits
        raise SpecError(Fault("an escape or a directive holds a number that is none.", place=Place(name))) from None


def read_value(text: str, place: Place) -> Node:
    """Read the right side of an override, `lr=1e-2`: one YAML value that may point anywhere on the disk."""
    if not text.strip():
        raise SpecError(
            Fault("there is nothing after the =. Write KEY=VALUE, or KEY=null for the default.", place=place)
        )
    try:
        return _placed(read_text(text, place.file), place)
    except SpecError as error:
        raise SpecError(Fault(error.faults[0].message, place=place)) from None


def _placed(node: Node, place: Place) -> Node:
    value = node.value
    if isinstance(value, dict):
        value = {key: _placed(item, place) for key, item in value.items()}
    elif isinstance(value, list):
        value = [_placed(item, place) for item in value]
    return Node(value, place, place, None, node.quoted)


def read_object(value: Any, path: str = "") -> Node:
    """Read a spec, or what is to stand at a path in one, that is a Python object; tuples count as lists."""
    return _read_object(value, path, 0, itertools.count(1))


def _read_object(value: Any, path: str, level: int, numbers: Iterator[int]) -> Node:
    """Read a value of a spec; `numbers` counts the values of the whole spec."""
    size = len(value) if isinstance(value, Mapping | list | tuple) else 0
    if next(numbers) + size > MOST_NODES or level > MOST_LEVELS:
        raise SpecError(Fault(f"a spec has at most {MOST_NODES:,} values and {MOST_LEVELS} levels.", path))
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise SpecError(Fault(f"a key must be a string, not {show(key)}.", path))
            if not key.isprintable():
                raise SpecError(Fault(f"the key {show(key)} holds characters that cannot be printed.", path))
        inside = ((key, item, f"{path}.{key}".lstrip(".")) for key, item in value.items())
        return Node({key: _read_object(item, where, level + 1, numbers) for key, item, where in inside})
    if isinstance(value, list | tuple):
        return Node([_read_object(item, f"{path}[{i}]", level + 1, numbers) for i, item in enumerate(value)])
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if value is None or isinstance(value, str | bool | int | float):
        return Node(value, quoted=isinstance(value, str))
    kinds = "strings, numbers, true, false, null, lists and mappings"
    raise SpecError(Fault(f"a spec holds {kinds}, not a {type(value).__name__}.{_for_python(value, path)}", path))


def _for_python(value: Any, path: str) -> str:
    """Say where an object belongs that a spec cannot hold."""
    section = path.partition(".")[0].partition("[")[0]
    if section == "data":
        return " Hand the data to fit(spec, data=(x, y))."
    if section == "model" and not isinstance(value, type):
        return " Hand a module to fit(spec, model=module)."
    if hasattr(value, "item"):
        return " Write a Python number: value.item()."
    name = getattr(value, "__name__", "")
    return f" Write its name, {show(name)}." if name.isidentifier() else ""


class _Builder:
    """Builds the tree from the parser's events, which still show tags, anchors and aliases as they were written."""

    def __init__(self, name: str, folder: Path | None) -> None:
        self.name, self.folder, self.count = name, folder, 0

    def place(self, mark: Any) -> Place:
        return Place(self.name, mark.line + 1, mark.column + 1)

    def fail(self, message: str, mark: Any) -> SpecError:
        return SpecError(Fault(message, place=self.place(mark)))

    def document(self, events: Any) -> Node:
        next(events)  # the stream begins
        event = next(events)
        if isinstance(event, yaml.StreamEndEvent):
            return Node({}, Place(self.name, 1, 1), folder=self.folder)
        if event.tags or event.version:
            raise self.fail("YAML directives (%) are not allowed in a spec.", event.start_mark)
        root = self.node(next(events), events, 0)
        next(events)  # the document ends
        event = next(events)
        if not isinstance(event, yaml.StreamEndEvent):
            raise self.fail("a spec is one document: remove this `---` and what follows.", event.start_mark)
        return root

    def node(self, event: Any, events: Any, level: int) -> Node:
        self.count += 1
        if isinstance(event, yaml.AliasEvent):
            raise self.fail(
                f"aliases (*{event.anchor}) are not allowed in a spec: write the value out.", event.start_mark
            )
        if event.anchor is not None:
            raise self.fail(
                f"anchors (&{event.anchor}) are not allowed in a spec: write the value out.", event.start_mark
            )
        if event.tag is not None:
            tag = show(event.tag.replace("tag:yaml.org,2002:", "!!"))
            raise self.fail(f"tags ({tag}) are not allowed in a spec. Remove it.", event.start_mark)
        if self.count > MOST_NODES or level > MOST_LEVELS:
            raise self.fail(f"a spec has at most {MOST_NODES:,} values and {MOST_LEVELS} levels.", event.start_mark)
        place = self.place(event.start_mark)
        if isinstance(event, yaml.ScalarEvent):
            quoted = event.style is not None
            return Node(event.value if quoted else scalar(event.value), place, None, self.folder, quoted)
        if isinstance(event, yaml.SequenceStartEvent):
            items = []
            while not isinstance(event := next(events), yaml.SequenceEndEvent):
                items.append(self.node(event, events, level + 1))
            return Node(items, place, None, self.folder)
        return Node(self.mapping(events, level), place, None, self.folder)

    def mapping(self, events: Any, level: int) -> dict[str, Node]:
        pairs: dict[str, Node] = {}
        while not isinstance(event := next(events), yaml.MappingEndEvent):
            key = self.node(event, events, level + 1)
            if not isinstance(event, yaml.ScalarEvent):
                raise self.fail("a key must be a word, not a list or a mapping.", event.start_mark)
            name = str(event.value)
            if not name.isprintable():
                raise self.fail(f"the key {show(name)} holds characters that cannot be printed.", event.start_mark)
            if name == "<<" and not key.quoted:
                raise self.fail("merge keys (<<) are not allowed in a spec: use `extends`.", event.start_mark)
            if name in pairs:
                first = pairs[name].key_place
                raise self.fail(
                    f"{show(name)} is here twice; it first stands at line {first.line if first else 0}. Keep one.",
                    event.start_mark,
                )
            value = self.node(next(events), events, level + 1)
            pairs[name] = Node(value.value, value.place, key.place, value.folder, value.quoted)
        return pairs


def scalar(text: str) -> Any:
    """Return the value of an unquoted scalar by YAML 1.2's core rules; `010` stays text, as `no` and dates do."""
    if text in WORDS:
        return WORDS[text]
    if len(text) <= MOST_DIGITS:
        if INTEGER.match(text):
            return int(text, 0) if text[:2] in ("0x", "0o") else int(text)
        if FLOAT.match(text):
            return float(text)
    return text
