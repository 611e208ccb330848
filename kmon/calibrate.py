"""Calibration: p-values made true by the fleet's own recent ones, because heavy tails fool any model.

Each sweep counts how many p-values of normal monitors lay beyond some levels. Where a day of them has more than they
should, the excess is taken off: beyond the last level that was seen often enough, the tail of -log p goes on as an
exponential with the slope that was seen (peaks over a threshold, Pickands 1975). Calibration never makes a p-value
smaller.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

LEVELS = (0.05, 0.01, 1e-3, 1e-4)
"""The p-values beyond which are counted."""
ENOUGH = 20
"""P-values beyond a level that tell its share."""
Key = tuple[str, float]
"""Metric, and width of the windows in seconds."""


@dataclass(frozen=True)
class Tail:
    """P-values of normal monitors: how many there were, and how many lay at or below each of LEVELS."""

    tests: int
    beyond: tuple[int, ...]

    @classmethod
    def of(cls, p: npt.NDArray[np.float64]) -> Tail:
        return cls(len(p), tuple(int((p <= level).sum()) for level in LEVELS))

    def __add__(self, other: Tail) -> Tail:
        return Tail(self.tests + other.tests, tuple(a + b for a, b in zip(self.beyond, other.beyond, strict=True)))

    @property
    def excess(self) -> float:
        """How many times more lay beyond the last level that tells than should; 1 where none tells."""
        found = [count / (self.tests * level) for level, count in zip(LEVELS, self.beyond, strict=True) if count >= ENOUGH]
        return found[-1] if found else 1.0

    def calibrated(self, p: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The shares of normal p-values that are as small as these, where that is larger."""
        told = [
            (-math.log(level), -math.log(min(count / self.tests, 1.0)))
            for level, count in zip(LEVELS, self.beyond, strict=True)
            if count >= ENOUGH and count < self.tests
        ]
        if not told:
            return p
        nominal, seen = np.array([(0.0, 0.0), *told]).T
        slope = 1.0
        if len(told) > 1:
            slope = min(float((seen[-1] - seen[-2]) / (nominal[-1] - nominal[-2])), 1.0)
        surprise = -np.log(np.maximum(p, 1e-300))
        within = np.interp(surprise, nominal, seen)
        beyond = seen[-1] + (surprise - nominal[-1]) * max(slope, 0.05)
        true = np.where(surprise <= nominal[-1], within, beyond)
        return np.asarray(np.maximum(p, np.exp(-true)))


Tails = Mapping[Key, Tail]
