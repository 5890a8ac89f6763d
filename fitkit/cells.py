"""How a value stands in a table of numbers, in HTML, and in strict JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fitkit.errors import show


def format_value(column: str, value: float) -> str:
    """Return a number as a table shows it: four decimals, or three digits where those would show nothing."""
    if not math.isfinite(value):
        return "-" if math.isnan(value) else str(value)
    size = abs(value)
    if column == "lr":
        return f"{value:.3g}"
    if column.endswith("_seconds"):
        return f"{value:.3f}" if size < 1 else f"{value:.1f}"
    if size >= 1e5 or 0 < size < 1e-3:
        return f"{value:.2e}"
    return f"{value:.4f}" if size < 100 else f"{value:.1f}"


def escape(text: str) -> str:
    """Return a text as HTML shows it."""
    import html  # all entities of HTML, which only a notebook needs

    return html.escape(text)


def html_row(cells: Sequence[str], tag: str) -> str:
    """Return a row of an HTML table, of `th` or `td`; one whose first cell begins with a star is bold."""
    bold = "; font-weight: 700" if cells[0].startswith("*") else ""
    inner = "".join(f'<{tag} style="text-align: right{bold}">{escape(cell)}</{tag}>' for cell in cells)
    return f"<tr>{inner}</tr>"


def plain(value: Any) -> Any:
    """Return a copy that strict JSON can hold."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def number(value: Any) -> float:
    """Return a number that `plain` made ready for JSON; ValueError for anything else."""
    if value is None:
        return math.nan
    if value in ("Infinity", "-Infinity"):
        return float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{show(value)} stands where a number belongs")
    return float(value)
