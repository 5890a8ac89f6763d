"""Signals while a fit runs: the first asks it to leave with a checkpoint, the second ends the process at once.

A terminal and a scheduler send them to the whole process group: worker processes must not die of them before the loop
has written its checkpoint.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

STOPS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """A signal ended the fit between two steps, with a checkpoint written if there is a keeper."""

    def __init__(self, signal: int) -> None:
        super().__init__(f"stopped by signal {signal}")
        self.signal = signal
        self.hint = ""  # how to go on, where someone knows it


@contextlib.contextmanager
def on_signal(ask: Callable[[signal.Signals], None]) -> Iterator[None]:
    """Call `ask` at the first SIGTERM or Ctrl-C inside the `with`; the second has its usual effect.

    Only the main thread may handle signals: elsewhere, as under a server, nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in STOPS}

    def handle(number: int, frame: Any) -> None:
        restore()
        ask(signal.Signals(number))

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    hook = sys.unraisablehook

    def report(unraisable: Any) -> None:
        if not isinstance(unraisable.exc_value, Interrupted):  # lost in a finalizer: the loop looks once more
            hook(unraisable)

    for number in STOPS:
        signal.signal(number, handle)
    sys.unraisablehook = report
    try:
        yield
    finally:
        sys.unraisablehook = hook
        restore()


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Hold SIGTERM and Ctrl-C back inside the `with`, also from processes that are started there until they unblock."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
