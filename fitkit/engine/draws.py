"""Calls of a user's code, each as if the global generators had been seeded for it, at no cost where it draws nothing.

To seed Python's, torch's and NumPy's generators takes some 10 µs, as long as many a sample takes to read. So it is
watched which of them the code draws from. The others are only looked at after each batch, and should the code draw
from one of them after all, the batch is called for again: the numbers are the same as with all generators seeded.
"""

from __future__ import annotations

import contextlib
import functools
import random
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch.utils.data import get_worker_info

from fitkit.engine.seeds import loaded_numpy

T = TypeVar("T")
R = TypeVar("R")
STILL = 0  # what a generator is seeded with that nothing is expected to be drawn from


class Generator(NamedTuple):
    """A global generator of random numbers.

    `seed` seeds it; `word` draws 64 bits; `keep` returns a function that puts its state back; `still` puts it in some
    state and returns the word that comes next.
    """

    seed: Callable[[int], object]
    word: Callable[[], int]
    keep: Callable[[], Callable[[], object]]
    still: Callable[[], int]


def _python_keep() -> Callable[[], object]:
    return functools.partial(random.setstate, random.getstate())


@functools.cache
def _python_stillness() -> tuple[Any, int]:
    twin = random.Random(STILL)
    twin.getrandbits(64)  # the first word after a seeding takes as long as the seeding
    return twin.getstate(), twin.getrandbits(64)


def _python_still() -> int:
    state, word = _python_stillness()
    random.setstate(state)
    return word


def _torch_word(generator: torch.Generator | None = None) -> int:
    return int(_WORD.random_(generator=generator).item())


_WORD = torch.empty((), dtype=torch.int64)


def _torch_keep() -> Callable[[], object]:
    return functools.partial(torch.default_generator.set_state, torch.default_generator.get_state())


@functools.cache
def _torch_stillness() -> tuple[torch.Tensor, int]:
    twin = torch.Generator().manual_seed(STILL)
    _torch_word(twin)
    return twin.get_state(), _torch_word(twin)


def _torch_still() -> int:
    state, word = _torch_stillness()
    torch.default_generator.set_state(state)
    return word


def _numpy_seed(seed: int) -> None:
    loaded_numpy().random.seed(seed & 0xFFFFFFFF)


def _numpy_word() -> int:
    draw = loaded_numpy().random.get_bit_generator().random_raw  # 32 bits
    return int(draw() << 32 | draw())


def _numpy_keep() -> Callable[[], object]:
    """Let NumPy draw from another source meanwhile: a copy of the state takes 30 µs, and to put it back as long."""
    theirs = loaded_numpy().random
    own = theirs.get_bit_generator()
    theirs.set_bit_generator(_spare_source())
    return functools.partial(theirs.set_bit_generator, own)


@functools.cache
def _spare_source() -> Any:
    return loaded_numpy().random.MT19937(STILL)


@functools.cache
def _numpy_stillness() -> int:
    first, second = struct.unpack("<2I", loaded_numpy().random.RandomState(STILL).bytes(8))
    return int(first << 32 | second)


def _numpy_still() -> int:
    _numpy_seed(STILL)
    return _numpy_stillness()


@contextlib.contextmanager
def kept_normal() -> Iterator[None]:
    """Put back the second normal number of a pair that NumPy's generator holds, which is lost in `_numpy_keep`.

    Unless somebody has drawn from that generator since.
    """
    theirs = loaded_numpy() and loaded_numpy().random
    before = theirs and theirs.get_state()
    try:
        yield
    finally:
        if before and isinstance(before, tuple) and before[3]:
            now = theirs.get_state()
            if not now[3] and now[2] == before[2] and (now[1] == before[1]).all():
                theirs.set_state(before)


GENERATORS = {
    "python": Generator(random.seed, functools.partial(random.getrandbits, 64), _python_keep, _python_still),
    "torch": Generator(torch.default_generator.manual_seed, _torch_word, _torch_keep, _torch_still),
    "numpy": Generator(_numpy_seed, _numpy_word, _numpy_keep, _numpy_still),
}


class Draws:
    """Calls of one function of the user's, and which global generators it has been seen to draw from.

    What it draws in a call depends on that call's seed alone; only of code that puts a generator back where it was
    this is not seen. The process's own random state is left as it was; a loader's worker has none worth keeping.
    """

    def __init__(self) -> None:
        self.drawn: set[str] | None = None  # None before the first call

    def __call__(self, function: Callable[[T], R], arguments: Sequence[T], seed: Callable[[T], int]) -> list[R]:
        """Return `function` of each argument, called with every generator seeded by `seed` of that argument.

        A call is repeated where the function draws from a generator that none of its first calls drew from.
        """
        here = dict(GENERATORS) if loaded_numpy() else {name: GENERATORS[name] for name in ("python", "torch")}
        put_back = [] if get_worker_info() else [generator.keep() for generator in here.values()]
        try:
            if self.drawn is None:
                return self._watched(here, function, arguments, seed)
            return self._called(here, self.drawn, function, arguments, seed)
        finally:
            for restore in put_back:
                restore()

    def _watched(
        self, here: dict[str, Generator], function: Callable[[T], R], arguments: Sequence[T], seed: Callable[[T], int]
    ) -> list[R]:
        """Call for the first time: with all generators seeded, and each of them looked at after each call."""
        results, drawn = [], set()
        for argument in arguments:
            value, first = seed(argument), {}
            for name, generator in here.items():
                generator.seed(value)
                first[name] = generator.word()
                generator.seed(value)
            results.append(function(argument))
            drawn |= {name for name, generator in here.items() if generator.word() != first[name]}
        self.drawn = drawn
        return results

    def _called(
        self,
        here: dict[str, Generator],
        drawn: set[str],
        function: Callable[[T], R],
        arguments: Sequence[T],
        seed: Callable[[T], int],
    ) -> list[R]:
        seeding = [here[name].seed for name in drawn]
        still = {name: generator.still() for name, generator in here.items() if name not in drawn}
        results: list[R] = []
        fault = None
        try:
            for argument in arguments:
                if seeding:
                    value = seed(argument)
                    for seeds in seeding:
                        seeds(value)
                results.append(function(argument))
        except Exception as error:  # perhaps of what it drew
            fault = error
        late = {name for name, word in still.items() if here[name].word() != word}
        if late:
            self.drawn = drawn | late
            return self._called(here, self.drawn, function, arguments, seed)
        if fault is not None:
            raise fault
        return results
