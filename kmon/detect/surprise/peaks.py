"""How surprising a value is, by the values that the same series had before: nats against an exponential tail.

Peaks over a threshold, of which the generalized Pareto distribution with shape 0 is the simplest (Pickands 1975; its
streaming use for anomalies is SPOT, Siffer 2017), fitted through two quantiles rather than by likelihood: what lies
above the upper one, earlier incidents for instance, does not bend it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
MOST = 20.0
"""Nats beyond which more says no more: once in half a billion points."""
FLAT = 0.3
"""Of the series' mean step, the least scale of a tail: what hardly ever moved has no quantiles to tell one."""
RELATIVE = 1e-3
"""Of the lower quantile, the least scale of a tail."""
ROUNDING = 1e-9
"""Of the series' mean size, the least scale of a tail."""


def surprise(
    values: Floats,
    x: Floats,
    quantiles: Sequence[tuple[float, float]],
    *,
    history: int,
    least: int,
    every: int,
    phase: int = 0,
    start: int = 0,
) -> list[Floats]:
    """-log of the chance of a value at least as large, in nats, once for each pair of quantiles.

    `values` are oddities of the series `x`. The tail is fitted where (index + `phase`) is a multiple of `every`, to
    the `history` values before, and stays until the next fit; NaN where fewer than `least` are known, and before the
    index `start`, whose tails are not needed. With the quantiles q1 < q2, of the values u1 and u2, it is
    -log(1 - q1) + (value - u1) / s with the scale s = (u2 - u1) / log((1 - q1) / (1 - q2)) above u1, and 0 below.
    """
    found = [np.full(len(values), np.nan) for _ in quantiles]
    levels = [q for pair in quantiles for q in pair]
    steps, sizes = np.abs(np.diff(x, prepend=np.nan)), np.abs(x)
    first = start - (start + phase) % every
    for fit in range(first if first >= 0 else first + every, len(values), every):
        past = slice(max(0, fit - history), fit)
        known = values[past]
        known = known[~np.isnan(known)]
        if len(known) < max(least, 1):
            continue
        ends = np.quantile(known, levels)
        floor = max(FLAT * _mean(steps[past]), ROUNDING * _mean(sizes[past]))
        now = slice(max(fit, start), fit + every)
        for i, (q1, q2) in enumerate(quantiles):
            u1, u2 = ends[2 * i], ends[2 * i + 1]
            scale = max((u2 - u1) / np.log((1 - q1) / (1 - q2)), RELATIVE * u1, floor)
            above = values[now] - u1
            with np.errstate(divide="ignore", invalid="ignore"):
                nats = np.where(above > 0, above / scale - np.log(1 - q1), 0.0 * above)
            found[i][now] = np.minimum(nats, MOST)
    return found


def _mean(x: Floats) -> float:
    known = x[~np.isnan(x)]
    return float(known.mean()) if len(known) else 0.0
