"""Figures for a notebook: drawn by matplotlib without its global state, and shown from the page itself."""

from __future__ import annotations

from typing import Any

from fitkit.errors import FitkitError

SHARP = 2  # pixels of an image for each pixel of the page, so that it is sharp on most screens


def blank(wide: float, tall: float) -> Any:
    """Return an empty figure of matplotlib's, its size in inches; FitkitError where matplotlib is missing.

    Unlike one of `pyplot` it belongs to nobody: no window opens, and nothing has to be closed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise FitkitError('Plots need matplotlib: pip install "fitkit[plot]".') from None
    return Figure(figsize=(wide, tall), layout="constrained")


def image(figure: Any, text: str) -> str:
    """Return a figure as HTML that holds all of it, with a text for who cannot see it."""
    import base64
    import html  # all entities of HTML, which only a notebook needs
    import io

    file, dpi = io.BytesIO(), 72
    figure.savefig(file, format="png", dpi=dpi * SHARP, facecolor="white")
    encoded, width = base64.b64encode(file.getvalue()).decode("ascii"), round(figure.get_size_inches()[0] * dpi)
    style = "max-width: 100%; height: auto"
    return f'<img src="data:image/png;base64,{encoded}" alt="{html.escape(text)}" width="{width}" style="{style}">'
