"""The generated parts of specs/README.md: `python -m fitkit.after.reference specs/README.md` renews them in place.

Between `<!-- generated: NAME -->` and `<!-- end -->` stands what NAME makes: a table of components ("optimizers"),
"keys", "fit", or "error", which is what the YAML block before it gets from the checker.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from fitkit.after.words import SECTIONS, brief, flow, notes, sentence, torch_name, wanted
from fitkit.builder import check_tree
from fitkit.builder.tables import TABLES
from fitkit.errors import SpecError
from fitkit.spec.check import FIT
from fitkit.spec.reader import read_text
from fitkit.spec.table import Argument, Entry

MARKED = re.compile(r"(<!-- generated: (\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
YAML = re.compile(r"```yaml\n(.*?)```", re.DOTALL)
DOCUMENTATION = "https://docs.pytorch.org/docs/stable/generated"


def render(text: str) -> str:
    """Return a Markdown text with everything between its markers made anew; an unknown marker is a `ValueError`."""
    if text.count("<!-- generated:") != len(MARKED.findall(text)):
        raise ValueError("a marker <!-- generated: NAME --> has no <!-- end --> after it")

    def made(match: re.Match[str]) -> str:
        return f"{match[1]}\n{_make(match[2], text[: match.start()])}\n\n{match[4]}"

    return MARKED.sub(made, text)


def _make(name: str, before: str) -> str:
    if name == "error":
        return f"```text\n{_error(YAML.findall(before)[-1])}\n```"
    if name == "keys":
        keys = [(f"`{key}`", section.words, section.default) for key, section in SECTIONS.items()]
        return _table(("key", "what it says", "without it"), keys)
    if name == "fit":
        said = notes(FIT)
        options = [(f"`{a.name}`", wanted(a), _default(a), said.get(a.name, "")) for a in FIT.arguments.values()]
        return _table(("key", "takes", "default", "what it does"), options)
    if name not in TABLES:
        raise ValueError(f'there is no generated part "{name}": choose from error, keys, fit, {", ".join(TABLES)}')
    entries = [_row(entry) for entry in TABLES[name].values()]
    return _table(("name", "arguments", "what it is or does"), entries) + _shared(name)


def _default(argument: Argument) -> str:
    return "" if argument.default is None else f"`{flow(argument.default)}`"


def _error(block: str) -> str:
    try:
        check_tree(read_text(block, "spec.yaml"))
    except SpecError as error:
        return str(error)
    raise ValueError(f"this spec has no mistake that could be shown:\n{block}")


def _row(entry: Entry) -> tuple[str, str, str]:
    path = torch_name(entry)
    name = f"[`{entry.name}`]({DOCUMENTATION}/{path}.html)" if path else f"`{entry.name}`"
    own = [argument for argument in entry.arguments.values() if not argument.shared]
    arguments = ", ".join(map(brief, sorted(own, key=lambda argument: not argument.required)))
    return name, f"`{arguments}`" if arguments else "", sentence(entry)


def _shared(name: str) -> str:
    shared = TABLES[name].shared
    if not shared:
        return ""
    without = [f"`{entry.name}`" for entry in TABLES[name].values() if not shared.keys() <= entry.arguments.keys()]
    who = f"All but {', '.join(without)}" if without else "All"
    return f"\n\n{who} also take `{', '.join(map(brief, shared.values()))}`."


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *(tuple(map(_cell, row)) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    """Return a text for a cell: a bar would end it, and Markdown takes <name> for HTML, though not in code."""
    parts = re.split(r"(`[^`]*`)", text.replace("|", "\\|"))
    return "".join(part if part.startswith("`") else part.replace("<", "&lt;") for part in parts)


if __name__ == "__main__":
    file = Path(sys.argv[1])
    file.write_text(render(file.read_text("utf-8")), encoding="utf-8")
