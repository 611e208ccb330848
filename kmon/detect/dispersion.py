"""How much more residuals vary than chance alone: a `phi`, by moments and robustly, of all of them or of each group.

    variance of a residual = base + phi x scale

`base` is what chance says, such as the mean of a Poisson count; `scale` is what the excess grows with, such as its
square.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy import stats

Floats = npt.NDArray[np.float64]
ROBUST = 4.0
"""Squared residuals, in variances, count up to this: what is abnormal must not pass for noise."""
_USUAL = float(stats.chi2.cdf(ROBUST, 3) + ROBUST * stats.chi2.sf(ROBUST, 1))
"""Mean of a chi-squared variable cut at ROBUST."""
_SAMPLE = 8_000
STEPS, CLOSE = 30, 1e-6
"""Most steps to a root, and how far from 0 a function may be there."""
GRID = 2**15
"""How finely a `phi` is told: rounding, and so the order of the residuals, must not show."""


def overdispersion(
    squares: Floats, base: Floats, scale: Floats, *, most: float, guess: float = 0.0, weight: float = 0
) -> float:
    """The `phi` for which squared residuals are as large as the variance `base` + `phi` x `scale` says, robustly.

    By moments, each square counting up to ROBUST variances. `guess` weighs as much as `weight` residuals.
    """
    one = np.zeros(len(squares), dtype=np.uint16)
    return float(overdispersions(squares, base, scale, one, 1, most=most, guess=guess, weight=weight)[0])


def overdispersions(
    squares: Floats,
    base: Floats,
    scale: Floats,
    group: npt.NDArray[np.uint16],
    groups: int,
    *,
    most: float,
    guess: float = 0.0,
    weight: float = 0,
) -> Floats:
    """(groups,): the same of the residuals of each `group`."""
    fine = np.isfinite(squares) & (base > 0) & (scale > 0)
    chosen = _evenly(np.flatnonzero(fine), group, groups)
    squares, base, scale, group = squares[chosen], base[chosen], scale[chosen], group[chosen]
    if not len(squares):
        return np.full(groups, guess)
    sizes = np.bincount(group, minlength=groups)
    typical = float(np.median(base / scale)) if weight else 1.0
    wanted = _USUAL * (sizes + weight)

    def off(phi: Floats) -> Floats:
        """How far it is off, above 0 where it is too large: nearly a straight line, as squares are divided by it."""
        each = np.minimum(squares / (base + (phi[group] if groups > 1 else phi) * scale), ROBUST)
        total = np.bincount(group, each, groups) if groups > 1 else each.sum()
        total = total + weight * _USUAL * (typical + guess) / (typical + phi)
        return np.asarray(wanted / np.maximum(total, 1e-300) - 1)

    found = _root(off, np.zeros(groups), np.full(groups, most))
    step = most / GRID
    found = np.where((found > 0) & (found < most), (np.floor(found / step) + 0.5) * step, found)
    return np.where(sizes > 0, found, guess)


def _root(off: Callable[[Floats], Floats], low: Floats, high: Floats) -> Floats:
    """Where each of some rising functions is 0; where none of [low, high] is, the end that is nearest to it.

    By false position, with less weight for an end that stays (Anderson and Bjorck 1973). SciPy's own, made for many
    functions at once, takes ten times as long for a few.
    """
    below, above = off(low), off(high)
    found = np.where(below >= 0, low, high)
    inside, stayed = (below < 0) & (above > 0), np.zeros(len(low))
    for _ in range(STEPS):
        if not inside.any():
            break
        found = np.where(inside, low - below * (high - low) / (above - below), found)
        value = off(found)
        inside &= np.abs(value) > CLOSE
        left = value < 0
        less = 1 - value / np.where(left, below, above)
        less = np.where(less > 0, less, 0.5)
        below, above = (
            np.where(left, value, np.where(stayed < 0, below * less, below)),
            np.where(left, np.where(stayed > 0, above * less, above), value),
        )
        low, high, stayed = np.where(left, found, low), np.where(left, high, found), np.where(left, 1, -1)
    return found


def _evenly(places: npt.NDArray[np.int64], group: npt.NDArray[np.uint16], groups: int) -> npt.NDArray[np.int64]:
    """At most _SAMPLE of some places, evenly, and about as many of each group as there are of it or of the others."""
    if len(places) <= _SAMPLE:
        return places
    if groups == 1:
        return places[np.linspace(0, len(places) - 1, _SAMPLE).astype(np.int64)]
    places = places[np.argsort(group[places], kind="stable")]
    sizes = np.bincount(group[places], minlength=groups)
    step = -(-sizes * groups // _SAMPLE)
    rank = np.arange(len(places)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.asarray(places[rank % np.repeat(step, sizes) == 0])
