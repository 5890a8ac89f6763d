"""What the corpus is made of: a case, the harmless files around it, and what a bomb is."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SPEC = """\
data: {csv: {path: data.csv}}
splits: {random: {val: 0.25, test: 0.25}}
model: {mlp: [4]}
metrics: [accuracy]
callbacks: [EMA]
fit: {epochs: 1, batch_size: 4, device: cpu}
"""
COLOURS = ("red", "green", "blue")
TABLE = "size,colour,kind\n" + "".join(f"{i * 0.37:.2f},{COLOURS[i % 3]},{'ab'[i % 2]}\n" for i in range(60))


@dataclass(frozen=True)
class Case:
    """One attack: the files that it writes into a folder, the ways in, and those at which it must be refused.

    A way that is not in `must` may also end well, where the attack has nothing to do with it; it has to be clean.
    """

    name: str
    make: Callable[[Path], Any]
    ways: tuple[str, ...]
    must: tuple[str, ...]
    data: str = "data.csv"  # what `evaluate`, `predict` and `init` are given


class _Bomb:
    def __reduce__(self) -> Any:
        return os.system, ("touch pwned",)


def bomb() -> Any:
    """Return an object whose pickle runs a command when it is read."""
    return _Bomb()
