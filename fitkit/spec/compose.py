"""One tree from several: `extends` lays a spec over its base, an override `optimizer.AdamW.lr=1e-2` sets one key."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fitkit.errors import Fault, Place, SpecError, show
from fitkit.spec import reader
from fitkit.spec.reader import Node
from fitkit.spec.values import found, inside

ONE = ("data", "splits", "model", "loss", "optimizer", "schedule")  # sections that hold one component
SEVERAL = ("metrics", "callbacks")
PRIMARY = ""  # the key under which a value that stood alone waits for its argument's name
MOST_BASES = 8


def read(source: str | Path | Mapping[str, Any], overrides: Iterable[str] | Mapping[str, Any] | None = None) -> Node:
    """Read a spec from a path, a text or a dict, lay it over its bases, and apply the overrides.

    A string is a text when it holds a line break or a `{`, else a path. Overrides are "key=value" texts, or a mapping
    of dotted keys to values.
    """
    if isinstance(overrides, str):
        raise SpecError(f"overrides are a list of texts, or a mapping: write [{show(overrides)}].")
    above: tuple[Path, ...] = ()
    if isinstance(source, Mapping):
        root = reader.read_object(source)
    elif is_path(source):
        above = (Path(source),)
        root = reader.read_file(Path(source))
    elif isinstance(source, str):
        root = reader.read_text(source, folder=Path.cwd())
    else:
        raise SpecError(f"a spec is a path, a text or a dict, not {found(Node(source))}.")
    tree = _extend(_mapping(root), above)
    pairs = overrides.items() if isinstance(overrides, Mapping) else [_pair(text) for text in overrides or ()]
    for key, value in pairs:
        tree = override(tree, key, value)
    return tree


def _mapping(root: Node) -> Node:
    if isinstance(root.value, dict):
        return root
    hint = " A space is missing after a colon." if isinstance(root.value, str) and ":" in root.value else ""
    raise SpecError(Fault(f"a spec is a mapping of keys to values, not {found(root)}.{hint}", place=root.place))


def is_path(source: Any) -> bool:
    """Tell whether a source names a file, and is not itself the text of a spec or a dict."""
    if isinstance(source, str):
        return bool(source) and "\n" not in source and "{" not in source
    return isinstance(source, Path)


def _pair(text: str) -> tuple[str, Node]:
    key, equals, value = text.partition("=")
    place = Place(f"override {show(text)}")
    if not equals or not key.strip():
        example = "KEY=VALUE without spaces, for example optimizer.AdamW.lr=1e-2"
        raise SpecError(Fault(f"an override is {example}.", place=place))
    return key.strip(), reader.read_value(value, place)


def _extend(over: Node, above: tuple[Path, ...]) -> Node:
    """Lay `over` over its base, and that over its own; `above` are the files that led here."""
    named = over.items().get("extends")
    if named is None:
        return over

    def error(message: str) -> SpecError:
        return SpecError(Fault(message, "extends", named.place))

    if not isinstance(named.value, str) or not named.value:
        raise error(f"expects the path of a base spec, not {found(named)}.")
    path = (named.folder or Path()) / named.value
    if named.folder is not None and (Path(named.value).is_absolute() or not inside(path, named.folder)):
        raise error(f"the base {show(named.value)} leaves the spec's folder. Put it beside this spec.")
    if not _is_file(path):
        raise error(f"there is no file {show(named.value)} beside this spec.")
    if any(path.samefile(other) for other in above):
        raise error(f"{show(named.value)} extends itself, by way of {len(above)} specs. Remove one `extends`.")
    if len(above) > MOST_BASES:
        raise error(f"more than {MOST_BASES} bases stand on each other. Put some of them together.")
    base = _mapping(reader.read_file(path))
    rest = replace(over, value={key: node for key, node in over.items().items() if key != "extends"})
    return merge(_extend(base, (*above, path)), rest)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name too long for the disk, or with a null byte in it
        return False


def merge(base: Node, over: Node, level: int = 0, section: str = "") -> Node:
    """Lay `over` over `base`: mappings merge by key, anything else replaces.

    A section that holds one component is replaced as a whole when `over` names another component than `base`.
    """
    if level == 1 and (section in ONE or section in SEVERAL):
        base, over = (
            node if section == "model" and isinstance(node.value, list) else _by_name(node) for node in (base, over)
        )
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
    if not key.isprintable():
        raise SpecError(Fault(f"the key {show(key)} holds characters that cannot be printed.", place=node.place))
    if key == "extends":
        raise SpecError(Fault("a base spec is named in the file, not by an override.", key, node.place))
    return _set(root, key.split("."), node, "")


def _set(node: Node, keys: list[str], new: Node, path: str) -> Node:
    if not keys:
        new = replace(new, key_place=new.place)
        if not isinstance(new.value, dict) or node.value is None or not path:
            return new
        return merge(node, new, path.count(".") + 1, path.split(".")[0])  # as a spec is laid over its base
    head, section, level = keys[0], path.split(".")[0], path.count(".") + 1 if path else 0
    if level == 1 and section in (*ONE, *SEVERAL) and not (section == "model" and isinstance(node.value, list)):
        node = _by_name(node)
        if section in ONE and node.value and isinstance(node.value, dict) and head not in node.value:
            [other, *_] = node.value
            rather = f"To switch, write {section}={head} before this."
            if len(keys) == 1 and not isinstance(new.value, dict) and new.value is not None:
                rather = f"To set an argument of it, write {section}.{other}.{head}={show(new.value)}."
            raise SpecError(Fault(f"the spec says {other} here. {rather}", path, new.place))
    if node.value is None:
        node = replace(node, value={})
    elif not isinstance(node.value, dict) and level == 2 and section in (*ONE, *SEVERAL):
        node = replace(node, value={PRIMARY: node})
    if not isinstance(node.value, dict):
        what = f"a list: give it whole, {path}=[…]" if isinstance(node.value, list) else f"the value {show(node.value)}"
        raise SpecError(Fault(f"has no key {show(head)}. It is {what}.", path, new.place))
    inner = f"{path}.{head}" if path else head
    child = node.value.get(head, Node(None, new.place, new.place))
    return replace(node, value={**node.value, head: _set(child, keys[1:], new, inner)})
