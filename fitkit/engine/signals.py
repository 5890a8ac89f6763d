"""Signals while a fit runs: the first asks it to leave with a checkpoint, the second ends the process at once."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def on_signal(ask: Callable[[signal.Signals], None]) -> Iterator[None]:
    """Call `ask` at the first SIGTERM or Ctrl-C inside the `with`; the second has its usual effect.

    Only the main thread may handle signals: elsewhere, as under a server, nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}

    def handle(number: int, frame: Any) -> None:
        restore()
        ask(signal.Signals(number))

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in numbers:
        signal.signal(number, handle)
    try:
        yield
    finally:
        restore()
