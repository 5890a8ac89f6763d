"""`fitkit list` and `fitkit explain`: what a spec may say, as text for a terminal.

All of it is read from the tables: names, signatures, docstrings and declared facts.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fitkit.after.words import (
    SECTIONS,
    WHERE,
    alone,
    brief,
    example,
    fallback,
    notes,
    prose,
    sentence,
    tables_in,
    told_by_torch,
    torch_name,
    wanted,
)
from fitkit.builder.tables import TABLES
from fitkit.errors import SpecError, listing, nearest, show
from fitkit.spec import hints
from fitkit.spec.check import FIT, TABLE_OF
from fitkit.spec.table import Argument, Entry
from fitkit.spec.types import Range

LIST_WIDTH, TEXT_WIDTH = 120, 100
MOST_ARGUMENTS = 36  # columns of a list that arguments may take; the rest is for the sentence
MOST_NAMES = 40  # of a table; the layers are more

OUTPUT = {
    "logits": "logits: raw scores, with no softmax or sigmoid at the end",
    "log_probabilities": "log-probabilities: end it with LogSoftmax",
    "probabilities": "the probability of class 1: end it with Sigmoid",
    "values": "real numbers",
    "log_rates": "the logarithm of the expected count: any real number",
    "scores": "scores: the highest one wins, or for a single one its sign",
}
TARGET = {
    "classes": "class numbers from 0; the model has one output for each class",
    "binary": "class 0 or 1; the model has one output",
    "signs": "class 0 or 1, taken as -1 or +1; the model has one output",
    "values": "real numbers, as many as the model has outputs",
}
LETTERS = {"B": "samples", "C": "channels or features", "D": "depth or features", "H": "height", "W": "width"}
LETTERS |= {"L": "length", "T": "time"}


def list_tables() -> str:
    """Return every table with the key of a spec that it belongs to, and its names."""
    lines = ["What a spec may say. `fitkit list TABLE` shows a table, `fitkit explain NAME` one name or key.", ""]
    rows = [(name, f"{_section(name)}:", listing(table, MOST_NAMES)) for name, table in TABLES.items()]
    keys = [key for key in SECTIONS if key not in TABLE_OF]
    widths = [max(len(row[i]) for row in rows) + 2 for i in range(2)]
    for name, key, names in rows:
        start = f"{name:<{widths[0]}}{key:<{widths[1]}}"
        lines += textwrap.wrap(names, LIST_WIDTH, initial_indent=start, subsequent_indent=" " * len(start))
    return "\n".join([*lines, "", f"Keys without a table: {', '.join(keys)}."])


def list_table(name: str) -> str:
    """Return one table, a line an entry: name, arguments with their defaults, first sentence; at most 120 columns.

    The name is that of a table, or of what is in it: "optimizers", "optimizer". Any other is a `SpecError`.
    """
    key = _table(name)
    if key is None:
        near = nearest(name, [word for table in TABLES for word in (table, TABLES[table].kind)])
        hint = f" Did you mean {show(near)}?" if near else ""
        raise SpecError(f"there is no table {show(name)}.{hint} The tables are {', '.join(TABLES)}.")
    entries = list(TABLES[key].values())
    names = max(len(entry.name) for entry in entries) + 2
    most = max(len(_briefs(entry, 1000)) for entry in entries)
    middle = min(most, MOST_ARGUMENTS) + 2 if most else 0
    lines = [f"{key}, in a spec under {WHERE[key]}", ""]
    for entry in entries:
        said = _clause(sentence(entry), LIST_WIDTH - names - middle)
        lines.append(f"{entry.name:<{names}}{_briefs(entry, MOST_ARGUMENTS):<{middle}}{said}".rstrip())
    return "\n".join([*lines, *_legend(key, entries)])


def _table(name: str) -> str | None:
    """Return the table that a word means: its own name, the kind of its entries, or the key of a spec."""
    return next((key for key, table in TABLES.items() if name in (key, table.kind)), TABLE_OF.get(name))


def _briefs(entry: Entry, width: int) -> str:
    """Return the entry's own arguments in short, required ones first, cut between two where they do not fit."""
    own = [argument for argument in entry.arguments.values() if not argument.shared]
    said = [brief(argument) for argument in sorted(own, key=lambda argument: not argument.required)]
    text = ", ".join(said)
    while len(text) > width:
        said.pop()
        text = ", ".join([*said, "…"])
    return text


def _clause(text: str, width: int) -> str:
    """Cut a sentence to a width, where it can be after a clause, else after a word."""
    if len(text) <= width:
        return text
    ends = (match.start() for match in re.finditer(r"[,;:] | \(", text) if width // 2 <= match.start() <= width)
    whole = [text[:end] for end in ends if text.count("(", 0, end) == text.count(")", 0, end)]
    return whole[-1] if whole else textwrap.shorten(text, width, placeholder=" …", break_on_hyphens=False)


def _legend(key: str, entries: Sequence[Entry]) -> list[str]:
    legend = ["", "name: value  has a default      name?  may be left out      name  is required"]
    shared = TABLES[key].shared
    if shared:
        without = [entry.name for entry in entries if not shared.keys() <= entry.arguments.keys()]
        who = f"All but {listing(without)}" if without else "All"
        legend.append(f"{who} also take {', '.join(map(brief, shared.values()))}.")
    return legend if any(entry.arguments for entry in entries) else []


def explain(name: str) -> str:
    """Return what a name, a key or an argument of a spec means, and how it is written.

    `AdamW`, `fit`, `optimizer.AdamW`, `AdamW.lr`, `fit.epochs`, `patience`: whatever a spec may say; a name that two
    tables have is explained for both. Anything else is a `SpecError` with the nearest name.
    """
    entries = [_explain_entry(entry, tables) for entry, tables in _entries(name)]
    texts = [_explain_section(name)] if name in SECTIONS else [list_table(name)] if _table(name) else []
    texts += entries
    if not entries and name not in SECTIONS:
        texts += _explain_arguments(name)
    if not texts:
        raise _unknown(name)
    return "\n\n\n".join(texts)


def _meant(name: str, table: str, *rest: str) -> bool:
    """Tell whether a dotted name is the end of an address such as optimizer.AdamW.lr or optimizers.AdamW.lr."""
    words = name.split(".")
    return any(list((top, *rest)[-len(words) :]) == words for top in (_section(table), table))


def _section(table: str) -> str:
    return WHERE.get(table, table).partition(":")[0]


def _entries(name: str) -> list[tuple[Entry, list[str]]]:
    """Return the entries that a name means, each with the tables that it is in."""
    found: list[tuple[Entry, list[str]]] = []
    for table, entries in TABLES.items():
        for entry in entries.values():
            if _meant(name, table, entry.name):
                same = next((tables for other, tables in found if other is entry), None)
                if same is None:
                    found.append((entry, [table]))
                else:
                    same.append(table)
    return found


def _arguments() -> Iterator[tuple[str, Entry, Argument, tuple[str, ...]]]:
    """Yield every argument that a spec may say: its table, its entry, itself, and what follows the table in a path."""
    for argument in FIT.arguments.values():
        yield "fit", FIT, argument, (argument.name,)
    for table, entries in TABLES.items():
        for entry in entries.values():
            for argument in entry.arguments.values():
                yield table, entry, argument, (entry.name, argument.name)


def _explain_arguments(name: str) -> list[str]:
    """Explain the arguments that a name means; one that a whole table shares counts once."""
    found: dict[str, tuple[Entry, Argument]] = {}
    for table, entry, argument, rest in _arguments():
        if _meant(name, table, *rest):
            path = (f"<{TABLES[table].kind}>", argument.name) if argument.shared else rest
            found[".".join((_section(table), *path))] = entry, argument
    if len(found) == 1:
        [(address, (entry, argument))] = found.items()
        return [_explain_argument(address, entry, argument)]
    return [_explain_several(name, found)] if found else []


def _explain_section(name: str) -> str:
    section = SECTIONS[name]
    lines = [f"{name}: a key of a spec", "", *_wrap(section.words), *_wrap(f"Without it: {section.default}."), ""]
    lines += _indent(section.example)
    if name == "fit":
        lines += ["", "Its keys:", "", *_argument_lines(FIT, FIT.arguments.values(), told=True)]
    if name in TABLE_OF:
        lines += ["", "", list_table(TABLE_OF[name])]
    if name == "model":
        lines += ["", "Layers, for a list:", "", *_wrap(", ".join(TABLES["layers"])), "", "  fitkit list layers"]
    return "\n".join(lines)


def _explain_entry(entry: Entry, tables: Sequence[str]) -> str:
    kinds = " and ".join(_a(TABLES[table].kind) for table in tables)
    torch = torch_name(entry)
    lines = [f"{entry.name}: {kinds}" + (f" ({torch})" if torch else ""), ""]
    for paragraph in prose(entry):
        lines += [*_wrap(paragraph), ""]
    facts = _facts(tables[0], entry)
    lines += [line for fact in facts for line in _wrap(fact)] + [""] * bool(facts)
    for table in tables:
        lines += [f"In a spec, under {WHERE[table]}", "", *_indent(example(table, entry)), ""]
    own = [argument for argument in entry.arguments.values() if not argument.shared]
    shared = [argument for argument in entry.arguments.values() if argument.shared]
    lines += _argument_lines(entry, own, told=told_by_torch(entry)) or ["It takes no arguments of its own."]
    if value := alone(tables[0], entry):
        lines += ["", *_wrap(f"A value alone is its {entry.primary}: `{value}`.")]
    if shared:
        lines += ["", f"Like the other {tables[0]} it also takes", "", *_argument_lines(entry, shared, told=True)]
    if torch:
        lines += ["", f"More: https://docs.pytorch.org/docs/stable/generated/{torch}.html"]
    return "\n".join(lines)


def _facts(table: str, entry: Entry) -> list[str]:
    """Say the facts that the entry's author declared, as far as a user can act on them."""
    facts, said = entry.facts, []
    if table == "losses":
        output, target = facts["output"], facts["target"]
        limits = f", each {facts['target_range']}" if isinstance(facts.get("target_range"), Range) else ""
        said.append(f"The model gives {OUTPUT.get(output, output)}.")
        said.append(f"The target is {TARGET.get(target, target)}{limits}.")
        for argument in facts.get("training_only", ()):
            said.append(f"{argument} acts in training only: the validation loss is the plain one.")
    if table == "metrics":
        better = "higher" if facts["higher_is_better"] else "lower"
        said.append(f"It compares {facts['target']}; {better} is better.")
        said.append(f"Its columns are {entry.name} and val_{entry.name}.")
    if facts.get("takes"):
        letters = dict.fromkeys(letter for shape in facts["takes"] for letter in shape)
        shapes = " or ".join(f"({', '.join(shape)})" for shape in facts["takes"])
        said.append(f"It takes {shapes}: {', '.join(f'{letter} {LETTERS[letter]}' for letter in letters)}.")
    if facts.get("tokens") == "only":
        said.append("It takes token ids, as the source text gives them.")
    if table == "layers" and "output" in facts:
        takers = [loss.name for loss in TABLES["losses"].values() if loss.facts["output"] == facts["output"]]
        said.append(f"It gives {facts['output'].replace('_', '-')}; of the losses, only {listing(takers)} takes them.")
    if facts.get("initial_lr_only"):
        said.append("It reads its learning rate at the first step only, so a schedule has no effect.")
    if getattr(entry.factory, "writes_files", False):
        said.append("It writes into the run folder: from Python, give fit(…, out=FOLDER).")
    return said


def _argument_lines(entry: Entry, arguments: Any, *, told: bool) -> list[str]:
    """Return two columns: names, and what each takes; with `told` also what is said of it, where prose does not."""
    arguments = list(arguments)
    width = max((len(argument.name) for argument in arguments), default=0) + 4
    said = notes(entry) if told else {}
    lines = []
    for argument in arguments:
        first, *rest = _wrap(_takes(entry, argument), " " * width)
        lines += [f"  {argument.name}".ljust(width) + first.lstrip(), *rest]
        lines += _wrap(said.get(argument.name, ""), " " * width)
    return lines


def _takes(entry: Entry, argument: Argument) -> str:
    names = [name for table in tables_in(argument.annotation) for name in TABLES[table]]
    known = f" ({listing(names)})" if names else ""
    return f"{wanted(argument)}{known}; {fallback(entry, argument)}"


def _explain_argument(path: str, entry: Entry, argument: Argument) -> str:
    *_, who, name = path.split(".")
    owner = who.replace("<", "every ").rstrip(">")
    lines = [f"{path}: an argument of {owner}", "", *_wrap(_takes(entry, argument))]
    lines += _wrap(notes(entry).get(name, ""))
    if entry.primary == name:
        lines += ["", *_wrap(f"A value alone is this: `{who}: …` means `{who}: {{{name}: …}}`.")]
    return "\n".join(lines if argument.shared else [*lines, "", f"  fitkit explain {who}"])


def _explain_several(name: str, found: Mapping[str, tuple[Entry, Argument]]) -> str:
    """List what several components understand by one argument."""
    width = max(map(len, found)) + 4
    lines = [f"{name}: an argument of several", ""]
    for path, (entry, argument) in found.items():
        start, rest = f"  {path}".ljust(width), " " * width
        lines += textwrap.wrap(_takes(entry, argument), LIST_WIDTH, initial_indent=start, subsequent_indent=rest)
    return "\n".join(lines)


def _unknown(name: str) -> SpecError:
    *owner, last = name.split(".")
    found = _entries(".".join(owner)) if owner else []
    if owner == ["fit"]:
        found = [(FIT, [])]
    if found:
        [(entry, _), *_] = found
        foreign = hints.FIT if entry is FIT else hints.ARGUMENTS
        right = foreign.get(last) if foreign.get(last) in entry.arguments else nearest(last, entry.arguments)
        hint = f" Did you mean {show(right)}?" if right else ""
        takes = listing(entry.arguments, 20) or "no arguments"
        return SpecError(f"{'.'.join(owner)} has no argument {show(last)}.{hint} It takes {takes}.")
    foreign = {word: right for words in hints.NAMES.values() for word, right in words.items()} | hints.KEYS
    entries = [entry for table in TABLES.values() for entry in table]
    arguments = [argument.name for _, _, argument, _ in _arguments()]
    right = foreign.get(name) or nearest(last, [*SECTIONS, *TABLES, *entries, *arguments])
    hint = f" Did you mean {show(right)}?" if right else ""
    return SpecError(f"a spec knows nothing called {show(name)}.{hint} `fitkit list` shows all names.")


def _a(kind: str) -> str:
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


def _wrap(text: str, indent: str = "  ") -> list[str]:
    return textwrap.wrap(text, TEXT_WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)


def _indent(text: str) -> list[str]:
    return [f"  {line}" for line in text.splitlines()]
