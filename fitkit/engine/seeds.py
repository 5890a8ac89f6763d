"""Randomness as a function: every stream of random numbers is derived from the seed and where the run is."""

from __future__ import annotations

import torch

MASK = (1 << 64) - 1
SPLIT, INIT, ORDER, STEP, SAMPLE = range(
    5
)  # what a stream is for; never renumber: the numbers are part of every result


def derive(seed: int, *words: int) -> int:
    """Return a number in [0, 2^63) that depends on the seed and every word, by SplitMix64's finalizer (Steele 2014)."""
    state = seed & MASK
    for word in words:
        state = (state + 0x9E3779B97F4A7C15 * (word + 1)) & MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
        state ^= state >> 31
    return state >> 1


def order(rows: torch.Tensor, seed: int, epoch: int) -> torch.Tensor:  # (N,) -> (N,)
    """Return the rows in the order of an epoch: a permutation that depends on (seed, epoch) alone."""
    generator = torch.Generator().manual_seed(derive(seed, ORDER, epoch))
    permutation = torch.randperm(len(rows), generator=generator)
    return rows.index_select(0, permutation.to(rows.device))


def seed_step(device: torch.device, seed: int, step: int) -> None:
    """Seed the generator that dropout draws from on `device`, so that a step's masks depend on (seed, step) alone."""
    value = derive(seed, STEP, step)
    torch.default_generator.manual_seed(value)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(value)
    elif device.type == "mps":
        torch.mps.manual_seed(value)
