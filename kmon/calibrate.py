"""Calibration: p-values made true by the fleet's own recent ones, because heavy tails fool any model.

Each sweep counts how many p-values of normal monitors lay beyond some levels. Where the usual hour of the last day had
more than it should, the excess is taken off: beyond the last level that is seen often enough, the tail of -log p goes
on as an exponential with the slope that was seen (peaks over a threshold, Pickands 1975). The usual hour is the median
one: an incident that nobody has seen yet makes one hour look wild, and must not make the next ones blind. Calibration
never makes a p-value smaller.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

LEVELS = (0.05, 0.01, 1e-3, 1e-4)
"""The p-values beyond which are counted."""
GROUPS = 3
"""Groups of hours that tell what is usual."""
ENOUGH = 5.0
"""P-values that should lie beyond a level in a group of hours, for its share to tell."""
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


@dataclass(frozen=True)
class Calibration:
    """What share of normal p-values lies at or below each level, usually; levels that tell nothing are left out."""

    levels: tuple[float, ...]
    shares: tuple[float, ...]

    @classmethod
    def of(cls, hours: Sequence[Tail]) -> Calibration:
        """From the hours of the last day in their order, put together so far that each group tells something."""
        tests = np.array([hour.tests for hour in hours], dtype=float)
        told = []
        for i, level in enumerate(LEVELS):
            groups = min(len(hours), int(tests.sum() * level / ENOUGH))
            if groups >= GROUPS:
                beyond = np.array([hour.beyond[i] for hour in hours], dtype=float)
                parts = np.array_split(np.arange(len(hours)), groups)
                share = float(np.median([beyond[part].sum() / max(tests[part].sum(), 1.0) for part in parts]))
                told += [(level, share)] if 0 < share < 1 else []
        return cls(tuple(level for level, _ in told), tuple(share for _, share in told))

    @property
    def excess(self) -> float:
        """How many times more lay beyond the last level that tells than should; 1 where none tells."""
        return self.shares[-1] / self.levels[-1] if self.levels else 1.0

    def calibrated(self, p: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The shares of normal p-values that are as small as these, where that is larger."""
        if not self.levels:
            return p
        nominal, seen = (np.array([0.0, *(-math.log(x) for x in part)]) for part in (self.levels, self.shares))
        slope = min(float((seen[-1] - seen[-2]) / (nominal[-1] - nominal[-2])), 1.0) if len(nominal) > 2 else 1.0
        surprise = -np.log(np.maximum(p, 1e-300))
        beyond = seen[-1] + (surprise - nominal[-1]) * max(slope, LEAST_SLOPE)
        true = np.where(surprise <= nominal[-1], np.interp(surprise, nominal, seen), beyond)
        return np.asarray(np.maximum(p, np.exp(-true)))


LEAST_SLOPE = 0.05
"""Of the tail of -log p: a surprise counts so much of itself at least."""
Calibrations = Mapping[Key, Calibration]
Tails = Mapping[Key, Tail]
