"""Which epoch is the best."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Monitor:
    """Which column tells the best epoch, and in which direction."""

    column: str
    mode: Literal["min", "max"]

    def better(self, value: float, best: float | None) -> bool:
        """Tell whether `value` beats the best so far; a NaN never does."""
        if not math.isfinite(value):
            return False
        return best is None or (value < best if self.mode == "min" else value > best)
