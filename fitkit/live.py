"""Curves in a notebook while a fit runs: `fit(…, live=True)`."""

from __future__ import annotations

import time
import warnings
from typing import Any

from fitkit import figures
from fitkit.parts.callback import Callback

LEAST_SECONDS = 1.0  # between two drawings
MOST_OF_TIME = 0.1  # of a fit that drawing takes


class Live(Callback):
    """The curves so far, in one output of a notebook that is drawn anew, and a line on where the fit is.

    They are drawn when an epoch ends, once a second at most and so seldom that it takes a tenth of the time, and at
    the end. Outside of a notebook there is nothing to draw on, and a warning says so.
    """

    only_shows = True

    def __init__(self) -> None:
        self.said = False  # that there is no notebook: the folds of a cross-validation share this object

    def on_train_begin(self, trainer: Any) -> None:
        """Make the output; FitkitError where matplotlib is missing."""
        self.output: Any = None
        self.due = 0.0
        if not in_notebook():
            if not self.said:
                message = "live=True draws in a notebook, and this is none: the history is what fit returns"
                warnings.warn(message, stacklevel=2)
            self.said = True
            return
        figures.blank(1, 1)
        from IPython.display import display

        self.output = display(_page("waiting for the first epoch"), raw=True, display_id=True)

    def on_epoch_end(self, trainer: Any) -> None:
        """Draw the epochs so far, if it is time."""
        if self.output is not None and time.perf_counter() >= self.due:
            self._draw(trainer)

    def on_train_end(self, trainer: Any) -> None:
        """Draw all epochs."""
        if self.output is not None:
            self._draw(trainer)

    def _draw(self, trainer: Any) -> None:
        began, history = time.perf_counter(), trainer.history
        most = trainer.options.most_epochs
        values = ", ".join(f"{name} {history.last[name]:.4g}" for name in history.directions)
        line = f"epoch {trainer.epoch}{f' of {most}' if most else ''}: {values}"
        self.output.update(_page(line, history.curves()), raw=True)
        now = time.perf_counter()
        self.due = now + max(LEAST_SECONDS, (now - began) / MOST_OF_TIME)


def in_notebook() -> bool:
    """Tell whether this process shows what it displays on a page: IPython runs, and behind it a kernel."""
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    return hasattr(get_ipython(), "kernel")


def _page(line: str, curves: str = "") -> dict[str, str]:
    import html  # all entities of HTML, which only a notebook needs

    return {"text/html": f"{curves}<div>{html.escape(line)}</div>", "text/plain": line}
