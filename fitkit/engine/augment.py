"""Random numbers of a sample as tensors, and the augmentations that use them, inside a step and for a whole batch.

A sample's numbers are a function of (seed, epoch, which augmentation, row): not of its batch, its place in the order,
or what was drawn before. They are those of `seeds.derive`, for all samples at once, in int64 that wraps around.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fitkit.engine.seeds import AUGMENT, FIRST, GOLDEN, MASK, SECOND, derive_state

BITS = 24  # of a uniform number: as many as float32 holds


def mix(state: Tensor, words: Tensor) -> Tensor:  # int64, broadcast against each other
    """Return the states after one more word each, as `seeds.derive` takes it in."""
    # -(words + 1), which torch's compiler does not take for arithmetic: it would multiply places out beyond 64 bits.
    state = state - ~words * signed(GOLDEN)
    state = (state ^ _shifted(state, 30)) * signed(FIRST)
    state = (state ^ _shifted(state, 27)) * signed(SECOND)
    return state ^ _shifted(state, 31)


def signed(word: int) -> int:
    """Return a 64-bit word as int64 holds it."""
    return word - (MASK + 1) if word > MASK >> 1 else word


def _shifted(state: Tensor, bits: int) -> Tensor:
    return (state >> bits) & (MASK >> bits)  # without copies of the sign


def uniform(states: Tensor, count: int) -> Tensor:  # (B,) -> (B, count)
    """Return numbers in [0, 1) for each sample, float32, multiples of 2^-24."""
    numbers = mix(states[:, None], torch.arange(count, device=states.device))
    drawn = _shifted(numbers, 64 - BITS).float() * 2.0**-BITS
    return drawn.as_strided(drawn.shape, drawn.stride())  # a graph keeps it, and does not draw anew for each pixel


@dataclass
class Augment:
    """Augmentations in their order: functions `(x, draw) -> x` of a batch, where `draw(n)` gives (B, n) in [0, 1).

    `key` is where the numbers of an epoch begin: a tensor, so that a graph that holds a step serves every epoch.
    """

    functions: Sequence[Callable[[Tensor, Callable[[int], Tensor]], Tensor]]
    key: Tensor  # (1,) int64

    def begin(self, seed: int, epoch: int) -> None:
        """Draw the numbers of an epoch from here on."""
        self.key.fill_(signed(derive_state(seed, AUGMENT, epoch)))

    def __call__(self, x: Tensor, rows: Tensor) -> Tensor:  # (B, ...), (B,) -> (B, ...)
        """Return the samples with these row numbers as this epoch sees them."""
        for number, function in enumerate(self.functions):
            states = mix(mix(self.key, torch.full_like(self.key, number)), rows)
            x = function(x, lambda count, states=states: uniform(states, count))  # type: ignore[misc]
        return x
