"""The building blocks of a page: elements that escape what they are given, tables, figures, and the document."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from fitkit.errors import printable

MARK = "<!doctype html>\n<!-- a report of fitkit -->\n"  # how a file begins that may be replaced
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"  # no script, and nothing from elsewhere
STYLE = Path(__file__).with_name("report.css")
EMPTY = ("meta", "br", "img")  # elements that have no end
WIDEST = 300  # letters of a value in a table


class Html(str):
    """Text that is HTML already; any other text is escaped where it becomes part of an element."""


Child = str | None | Iterable["Child"]


class Section(NamedTuple):
    """A part of the page: the name to link to, its heading, and what it says."""

    name: str
    title: str
    body: Html


def text(value: str) -> Html:
    """Return text as HTML: what a browser would act on is escaped, and so is what cannot be seen, such as RTL marks."""
    return Html(value if isinstance(value, Html) else html.escape(printable(value)))


def join(*children: Child) -> Html:
    """Return elements and texts one after the other."""
    parts = []
    for child in children:
        if isinstance(child, str):
            parts.append(text(child))
        elif child is not None:
            parts.append(join(*child))
    return Html("".join(parts))


def tag(name: str, *children: Child, **attributes: str | bool | None) -> Html:
    """Return an element: `tag("p", "a < b", class_="note")` is `<p class="note">a &lt; b</p>`.

    Underscores of an attribute's name are hyphens; one that is True has no value, and one that is None or False is
    left out.
    """
    words = [name]
    for key, value in attributes.items():
        key = key.rstrip("_").replace("_", "-")
        if value is True:
            words.append(key)
        elif value is not None and value is not False:
            words.append(f'{key}="{html.escape(printable(value))}"')
    start = f"<{' '.join(words)}>"
    return Html(start if name in EMPTY else f"{start}{join(*children)}</{name}>")


def paragraph(*children: Child, **attributes: str | bool | None) -> Html:
    """Return a paragraph."""
    return tag("p", *children, **attributes)


def note(*children: Child) -> Html:
    """Return a paragraph that stands back: where something comes from, or why it is missing."""
    return tag("p", *children, class_="note")


def short(value: str, most: int = WIDEST) -> str:
    """Return a text in one line, cut where it is long."""
    value = printable(value[: 2 * most]).replace("\n", "\\n")
    return value if len(value) <= most else f"{value[: most - 1]}…"


def named(value: str, most: int = 32) -> str:
    """Return a name that data gave as a table shows it: short, and in quotes where it would be overlooked."""
    return short(value, most) if value and value == value.strip() else short(f'"{value}"', most)


def brief(value: float) -> str:
    """Return a number in about four digits, "-" for one that is not there."""
    size = abs(value)
    if not math.isfinite(value):
        return "-" if math.isnan(value) else str(value)
    if size < 10:
        return f"{value:.4f}" if size >= 1e-3 or size == 0 else f"{value:.3g}"
    return f"{value:.4g}" if size < 1e4 else f"{value:,.0f}" if size < 1e7 else f"{value:.4g}"


def table(header: Sequence[Child], rows: Iterable[Sequence[Child]], label: str, **attributes: str | None) -> Html:
    """Return a table in a box of its own that scrolls where it is wide; the first cell of a row names the row."""
    head = tag("thead", tag("tr", (tag("th", cell, scope="col") for cell in header)))
    body = (tag("tr", tag("th", row[0], scope="row"), (tag("td", cell) for cell in row[1:])) for row in rows)
    return scrolling(tag("table", head, tag("tbody", body), **attributes), label)


def scrolling(content: Html, label: str) -> Html:
    """Return a box that scrolls by itself, by keyboard too, so that the page never does."""
    return tag("div", content, class_="wide", tabindex="0", role="region", aria_label=label)


def facts(pairs: Iterable[tuple[str, Child]]) -> Html:
    """Return names and values as a list of definitions."""
    return tag("dl", (tag("div", tag("dt", name), tag("dd", value)) for name, value in pairs), class_="facts")


def figure(drawing: Html, title: str, caption: Child = None) -> Html:
    """Return a drawing under its title, and what it shows in words."""
    words = None if caption is None else tag("span", caption, class_="caption")
    return tag("figure", tag("figcaption", tag("strong", title), words), drawing)


def code(value: str, class_: str | None = None) -> Html:
    """Return lines of code as they are, in a box of their own."""
    return tag("pre", tag("code", value), tabindex="0", class_=class_)


def document(title: str, header: Html, sections: Sequence[Section], footer: Html) -> str:
    """Return the whole page: one file that needs no other, and no script."""
    links = (tag("li", tag("a", section.title, href=f"#{section.name}")) for section in sections)
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name_="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", Html(STYLE.read_text("utf-8"))),
    )
    parts = (
        tag(
            "section",
            tag("h2", part.title, id=f"{part.name}-title"),
            part.body,
            id=part.name,
            aria_labelledby=f"{part.name}-title",
        )
        for part in sections
    )
    body = tag(
        "body",
        tag("a", "To the content", href="#content", class_="skip"),
        tag("nav", tag("p", "Contents"), tag("ol", links), aria_label="Contents"),
        tag("main", header, parts, tag("footer", footer), id="content"),
    )
    return f"{MARK}{tag('html', head, body, lang='en')}\n"
