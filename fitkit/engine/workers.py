"""Processes that read samples: what they make of signals, and what is said when one of them dies or its code fails."""

from __future__ import annotations

import atexit
import multiprocessing.connection
import multiprocessing.util  # its own function for the exit is registered here, and so runs after ours
import signal
import sys
import traceback
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import DataLoader

from fitkit.engine.private import tell_deaths_when_asked
from fitkit.engine.signals import STOPS, held
from fitkit.errors import DataError

RAISED = "fitkit.errors.DataError: "  # how the traceback of a worker ends that raised one of ours
DYING_SECONDS = 5.0  # that a process may take to be gone after it crashed
MEMORY = (signal.SIGKILL, signal.SIGBUS)  # what the system sends when memory, or shared memory, runs out

_started: weakref.WeakSet[Any] = weakref.WeakSet()  # every worker process that is still known of
_serving: weakref.WeakKeyDictionary[Any, list[Any]] = weakref.WeakKeyDictionary()  # those that read for a loader now


def start_workers(loader: DataLoader[Any]) -> Iterator[Any]:
    """Return `iter(loader)`; signals wait until the processes that it may start know what to make of them."""
    before = set(multiprocessing.active_children())
    with held():  # to its end: a signal that ended the fit in between would leave processes that nobody ends
        iterator = iter(loader)
        tell_deaths_when_asked(iterator)
        started = [process for process in multiprocessing.active_children() if process not in before]
        if started:  # else those of the last epoch live on
            _started.update(started)
            _serving[loader] = started
    return iterator


class StartWorker:
    """What a worker process does first: leave signals to the process that trains, then call the user's own function."""

    def __init__(self, own: Callable[[int], None] | None) -> None:
        self.own = own

    def __call__(self, number: int) -> None:
        """Start worker `number`."""
        # A handler, since an ignored signal would be ignored by every program that the dataset starts.
        for name in STOPS:
            signal.signal(name, _leave_to_parent)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
        sys.excepthook = _unless_parent_left
        if self.own is not None:
            self.own(number)


def _leave_to_parent(number: int, frame: Any) -> None:
    """Do nothing: a signal to the whole group must not take the samples away from a process that saves its state."""


def _unless_parent_left(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """Report an error, but not what Python's sharing of tensors meets when the parent leaves while it takes one."""
    if not issubclass(kind, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, trace)


@atexit.register  # runs after torch has waited for its workers, and before Python waits for them without end
def _end_stuck_workers() -> None:
    if stuck := [process for process in _started if process.is_alive()]:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for process in stuck:
        process.kill()


def fault_of_rows(error: Exception, name: str, rows: str) -> DataError:
    """Return what to say when reading samples failed: their rows, and the last line of the traceback with its place."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{frame.filename}:{frame.lineno}, in {frame.name}"
    return DataError(f"{name}: reading {rows} failed: {type(error).__name__}: {error} ({where}).")


def fault_of_reading(error: Exception, name: str, loader: DataLoader[Any]) -> DataError:
    """Return what to say of an error that a loader raised, from its own process or from one of its workers."""
    text, workers = str(error).strip(), _serving.get(loader, [])
    if isinstance(error, DataError):
        return DataError(text.rpartition(RAISED)[2])
    if "Original Traceback" in text:
        return DataError(f"{name}: reading the data failed: {text.splitlines()[-1]}.")
    if isinstance(error, ConnectionError | EOFError):  # somebody is dying who was to hand over a tensor
        dying = multiprocessing.connection.wait([worker.sentinel for worker in workers], DYING_SECONDS)
        for worker in workers:
            worker.join(DYING_SECONDS if worker.sentinel in dying else 0)
    for number, worker in enumerate(workers, 1):
        if worker.exitcode:
            return DataError(f"{name}: {_death(number, len(workers), worker.pid, worker.exitcode)}")
    return DataError(f"{name}: reading the data failed: {type(error).__name__}: {text}.")


def _death(number: int, count: int, process: int, code: int) -> str:
    how = f"was killed by the signal {signal.strsignal(-code)}" if code < 0 else f"ended with exit code {code}"
    why = "The code of the dataset crashed: with fit.workers: 0 it does so where a debugger sees it."
    if -code in MEMORY:
        why = "Mostly memory has run out: take fewer workers (fit.workers), or samples that need less."
    return f"worker {number} of {count} that read samples (process {process}) {how}. {why}"
