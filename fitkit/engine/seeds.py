"""Randomness as a function: every stream of random numbers is derived from the seed and where the run is."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch

MASK = (1 << 64) - 1
# What a stream is for; never renumber: the numbers are part of every result.
SPLIT, INIT, ORDER, STEP, SAMPLE, BATCH, AUGMENT, EVALUATE, FOLD = range(9)
GOLDEN, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # SplitMix64's


def derive(seed: int, *words: int) -> int:
    """Return a number in [0, 2^63) that depends on the seed and every word, by SplitMix64's finalizer (Steele 2014)."""
    return derive_state(seed, *words) >> 1


def derive_state(seed: int, *words: int) -> int:
    """Return the 64 bits of `derive`, from which more words can be taken in."""
    state = seed & MASK
    for word in words:
        state = (state + GOLDEN * (word + 1)) & MASK
        state = ((state ^ (state >> 30)) * FIRST) & MASK
        state = ((state ^ (state >> 27)) * SECOND) & MASK
        state ^= state >> 31
    return state


def order(rows: torch.Tensor, seed: int, epoch: int) -> torch.Tensor:  # (N,) -> (N,)
    """Return the rows in the order of an epoch: a permutation that depends on (seed, epoch) alone."""
    generator = torch.Generator().manual_seed(derive(seed, ORDER, epoch))
    permutation = torch.randperm(len(rows), generator=generator)
    return rows.index_select(0, permutation.to(rows.device))


@contextlib.contextmanager
def kept_random_state() -> Iterator[None]:
    """Put back the state of Python's, torch's and NumPy's global generators, whatever is drawn in between."""
    numpy = loaded_numpy()
    before = random.getstate(), torch.get_rng_state(), numpy and numpy.random.get_state()
    try:
        yield
    finally:
        random.setstate(before[0])
        torch.set_rng_state(before[1])
        if numpy:
            numpy.random.set_state(before[2])


def host_random_state() -> tuple[Any, ...]:
    """Return the state of Python's, torch's and NumPy's global generators as values that can be compared."""
    theirs: Any = (numpy := loaded_numpy()) and numpy.random.get_state()
    own = random.getstate(), bytes(torch.get_rng_state().tolist())
    return (*own, theirs and (theirs[1].tobytes(), *theirs[2:]))


def drawn_again() -> Callable[[], None]:
    """Return a function that puts Python's and NumPy's global generators where they are now."""
    numpy = loaded_numpy()
    python, theirs = random.getstate(), numpy and numpy.random.get_state()

    def again() -> None:
        random.setstate(python)
        if numpy:
            numpy.random.set_state(theirs)

    return again


def seed_sample(seed: int) -> None:
    """Seed Python's, torch's and NumPy's global generators, from which the code of a dataset may draw."""
    random.seed(seed)
    torch.default_generator.manual_seed(seed)
    if numpy := loaded_numpy():
        numpy.random.seed(seed & 0xFFFFFFFF)


def loaded_numpy() -> Any:
    """Return NumPy, or None."""
    return sys.modules.get("numpy")  # where nobody imported it, nobody draws from it


def seed_epoch(seed: int, epoch: int) -> None:
    """Seed what a dataset that is only iterated may draw from; one read by rows is seeded for each sample instead."""
    seed_sample(derive(seed, SAMPLE, epoch))


def seed_step(device: torch.device, seed: int, step: int) -> None:
    """Seed the generator that dropout draws from on `device`, so that a step's masks depend on (seed, step) alone."""
    _seed_device(device, derive(seed, STEP, step))


def random_state(device: torch.device) -> torch.Tensor:
    """Return the state of the generator that dropout draws from on `device`."""
    if device.type == "cuda":
        return torch.cuda.get_rng_state(device)
    return torch.mps.get_rng_state() if device.type == "mps" else torch.get_rng_state()


def seed_evaluation(device: torch.device, seed: int, epoch: int) -> None:
    """Seed what a model or a dataset may draw from in an evaluation, which must not depend on the steps before it."""
    value = derive(seed, EVALUATE, epoch)
    seed_sample(value)
    _seed_device(device, value)


def _seed_device(device: torch.device, value: int) -> None:
    torch.default_generator.manual_seed(value)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(value)
    elif device.type == "mps":
        torch.mps.manual_seed(value)
