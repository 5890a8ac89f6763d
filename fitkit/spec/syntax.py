"""What is wrong with a text that is no YAML: the parser's finding, in words that say what to change."""

from __future__ import annotations

import re
from typing import Any

import yaml

from fitkit.errors import Fault, Place

LINE_END = re.compile("\r\n|[\n\r\x85\u2028\u2029]")  # where PyYAML counts a line
TAB = "there is a tab here. Write spaces instead."
SECOND_COLON = "this is the second colon with a space after it. Put the value in quotes."
LEFT_OVER = "something follows a value that has ended. Put the whole value in one pair of quotes."
INDENT = "this line is indented otherwise than the lines it belongs to. Keys of one mapping begin in one column."
CLOSES_NOTHING = "this {found} closes nothing. Remove it, or open it before."
NO_KEY = 'this is no "key: value": a colon, or the space after it, is missing.'
ESCAPE = "in double quotes a backslash begins an escape such as \\n. Use single quotes."
HYPHEN = "a list of hyphens begins on a line of its own. Or write [a, b]."
MORE = "a spec is one document: remove the `...` and what follows."


def fault(error: yaml.MarkedYAMLError, text: str, name: str) -> Fault:
    """Return the fault for what PyYAML refused; `name` stands for the file."""
    mark: Any = error.problem_mark or error.context_mark
    lines = LINE_END.split(text)
    line = lines[mark.line] if mark.line < len(lines) else ""
    if "\t" in line[: mark.column + 1]:
        return Fault(TAB, place=Place(name, mark.line + 1, line.index("\t") + 1))
    problem, context = error.problem or "", error.context or ""
    if "could not find expected ':'" in problem:
        mark = error.context_mark or mark
    words = _words(problem, context, error.context_mark, mark, lines)
    if words is None:
        words = problem + (f" ({context})." if context else ".")
    return Fault(f"not valid YAML: {words}", place=Place(name, mark.line + 1, mark.column + 1))


def _words(problem: str, context: str, opened: Any, mark: Any, lines: list[str]) -> str | None:
    line = lines[mark.line] if mark.line < len(lines) else ""
    match = re.search(r"found (?:character |unknown escape character )?'(.*?)'(?= that|$)", problem)
    found = match[1] if match else ""
    if "mapping values are not allowed" in problem:
        return _colon(line, mark, lines)
    if "cannot start any token" in problem:
        return f"text may not begin with {found}. Put it in quotes."
    if "alphabetic or numeric" in problem:
        return f"text may not begin with {'*' if 'alias' in context else '&'}. Put it in quotes."
    if "unexpected end of stream" in problem and opened is not None:
        return f"the quote of line {opened.line + 1}, column {opened.column + 1} is not closed."
    if re.search(r"flow (mapping|sequence)", context) and opened is not None:
        bracket = "{" if "mapping" in context else "["
        at = f"line {opened.line + 1}, column {opened.column + 1}"
        got = re.search(r"but got '([\]}])'", problem)
        if got:
            return f"this {got[1]} does not close the {bracket} of {at}."
        return f"the {bracket} of {at} is not closed before this, or a comma is missing."
    if "expected the node content" in problem:
        return "a bracket is not closed." if found == "<stream end>" else f"a value is missing before this {found}."
    if "expected <block end>" in problem:
        if found in ("]", "}", ","):
            return CLOSES_NOTHING.format(found=found)
        if found == ":":
            return "there is no key before this colon."
        return LEFT_OVER if line[: mark.column].strip() and found == "<scalar>" else INDENT
    known = {
        "could not find expected ':'": NO_KEY,
        "unknown escape": ESCAPE,
        "sequence entries are not allowed": HYPHEN,
        "expected '<document start>'": MORE,
    }
    return next((words for part, words in known.items() if part in problem), None)


def _colon(line: str, mark: Any, lines: list[str]) -> str:
    """Say why a colon may not stand here: a second one on its line, or one under a line that takes nothing below it."""
    if re.search(r":\s", line[: mark.column]):
        return SECOND_COLON
    above = [i for i in range(mark.line) if lines[i].strip() and not lines[i].lstrip().startswith("#")]
    if not above:
        return SECOND_COLON
    if re.search(r":(\s|$)", lines[above[-1]]):
        return f"line {above[-1] + 1} has a value already, so nothing can be indented under it."
    return f"line {above[-1] + 1} has no colon with a space after it."
