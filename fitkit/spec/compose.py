"""One tree from several: `extends` lays a spec over its base, an override `optimizer.AdamW.lr=1e-2` sets one key."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fitkit.errors import Fault, Place, SpecError, show
from fitkit.spec import reader
from fitkit.spec.reader import Node

ONE = ("data", "splits", "model", "loss", "optimizer", "schedule")  # sections that hold one component
SEVERAL = ("metrics", "callbacks")
PRIMARY = ""  # the key under which a value that stood alone waits for its argument's name
MOST_BASES = 8


def read(source: str | Path | Mapping[str, Any], overrides: Iterable[str] | Mapping[str, Any] | None = None) -> Node:
    """Read a spec from a path, a text or a dict, lay it over its bases, and apply the overrides.

    A string is a text when it holds a line break or a `{`, else a path. Overrides are "key=value" texts, or a mapping
    of dotted keys to values.
    """
    if isinstance(source, Mapping):
        root = reader.read_object(source)
    elif is_path(source):
        root = reader.read_file(Path(source))
    else:
        root = reader.read_text(str(source), folder=Path.cwd())
    if not isinstance(root.value, dict):
        raise SpecError(Fault(f"a spec is a mapping of keys to values, not {show(root.plain())}.", place=root.place))
    tree = _extend(root, Path.cwd(), MOST_BASES)
    pairs = overrides.items() if isinstance(overrides, Mapping) else [_pair(text) for text in overrides or ()]
    for key, value in pairs:
        tree = override(tree, key, value)
    return tree


def is_path(source: Any) -> bool:
    """Tell whether a source names a file, and is not itself the text of a spec or a dict."""
    return isinstance(source, Path) or (isinstance(source, str) and "\n" not in source and "{" not in source)


def _pair(text: str) -> tuple[str, Node]:
    key, equals, value = text.partition("=")
    place = Place(f"override {show(text)}")
    if not equals or not key.strip():
        raise SpecError(Fault("an override is KEY=VALUE, for example optimizer.AdamW.lr=1e-2.", place=place))
    return key.strip(), reader.read_value(value, place)


def _extend(over: Node, start: Path, left: int) -> Node:
    named = over.items().get("extends")
    if named is None:
        return over

    def error(message: str) -> SpecError:
        return SpecError(Fault(message, "extends", named.place))

    if not isinstance(named.value, str) or not named.value:
        raise error(f"expects the path of a base spec, not {show(named.plain())}.")
    if left == 0:
        raise error(f"more than {MOST_BASES} bases stand on each other; do they extend one another?")
    folder = (named.folder or start).resolve()
    path = (folder / named.value).resolve()
    if named.folder is not None and (Path(named.value).is_absolute() or not path.is_relative_to(folder)):
        raise error(f"the base {show(named.value)} leaves the spec's folder. Put it beside this spec.")
    if not path.is_file():
        raise error(f"there is no file {show(named.value)} beside this spec.")
    base = reader.read_file(path)
    if not isinstance(base.value, dict):
        raise SpecError(Fault("a spec is a mapping of keys to values.", place=base.place))
    rest = replace(over, value={key: node for key, node in over.items().items() if key != "extends"})
    return merge(_extend(base, path.parent, left - 1), rest)


def merge(base: Node, over: Node, level: int = 0, section: str = "") -> Node:
    """Lay `over` over `base`: mappings merge by key, anything else replaces.

    A section that holds one component is replaced as a whole when `over` names another component than `base`.
    """
    if level == 1 and (section in ONE or section in SEVERAL):
        base, over = _by_name(base), _by_name(over)
    if not isinstance(base.value, dict) or not isinstance(over.value, dict):
        keeps = level == 2 and section in (*ONE, *SEVERAL) and over.value is None
        return base if keeps else over
    if level == 1 and section in ONE and over.value and set(base.value) != set(over.value):
        return over
    value = dict(base.value)
    for key, node in over.value.items():
        value[key] = merge(value[key], node, level + 1, section or key) if key in value else node
    return replace(over, value=value)


def _by_name(node: Node) -> Node:
    """Return a component, or a list of names, as a mapping of names to arguments; anything else as it is."""
    if isinstance(node.value, str):
        return replace(node, value={node.value: Node(None, node.place, node.place, node.folder)})
    if isinstance(node.value, list) and node.value:
        items = [_by_name(item) for item in node.value]
        if all(isinstance(item.value, dict) for item in items):
            names = [name for item in items for name in item.value]
            if len(set(names)) == len(names):  # a list of layers may name one layer twice, and stays a list
                return replace(node, value={name: arg for item in items for name, arg in item.value.items()})
    return node


def override(root: Node, key: str, value: Any) -> Node:
    """Return the tree with the value at a dotted key replaced or added; `value` is a node or plain Python."""
    node = value if isinstance(value, Node) else reader.read_object(value, key)
    return _set(root, key.split("."), node, "")


def _set(node: Node, keys: list[str], new: Node, path: str) -> Node:
    if not keys:
        return replace(new, key_place=new.place)
    head, section, level = keys[0], path.split(".")[0], path.count(".") + 1 if path else 0
    if level == 1 and section in (*ONE, *SEVERAL) and not (section == "model" and isinstance(node.value, list)):
        node = _by_name(node)
        if section in ONE and node.value and isinstance(node.value, dict) and head not in node.value:
            [other, *_] = node.value
            fault = Fault(
                f"the spec says {other} here. To switch, write {section}={head} before this.", path, new.place
            )
            raise SpecError(fault)
    if node.value is None:
        node = replace(node, value={})
    elif not isinstance(node.value, dict) and level == 2 and section in (*ONE, *SEVERAL):
        node = replace(node, value={PRIMARY: node})
    if not isinstance(node.value, dict):
        what = "a list; give it whole" if isinstance(node.value, list) else f"the value {show(node.value)}"
        raise SpecError(Fault(f"has no key {show(head)}: it is {what}.", path, new.place))
    inner = f"{path}.{head}" if path else head
    child = node.value.get(head, Node(None, new.place, new.place))
    return replace(node, value={**node.value, head: _set(child, keys[1:], new, inner)})
