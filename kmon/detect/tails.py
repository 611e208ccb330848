"""Exact tail probabilities of over-dispersed counts and shares, vectorised.

They are mid-p (Lancaster 1961): half of the probability of what was observed belongs to the tail, so that p-values are
uniform on average under the null also where counts are small.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import special

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
LEAST = 1e-9
"""Relative variance below which there is none."""
BLOCK = 50
"""Terms that are summed at once."""
TERMS = 500
"""Terms of a tail that are summed; the rest is a geometric series."""


def divergence(value: Floats, level: Floats, size: Floats | None = None) -> Floats:
    """Log-likelihood of what was observed over that of a Poisson (or binomial of `size`) `level`, in nats.

    The logarithm of Chernoff's bound of the tail.
    """
    if size is None:
        return _xlogy(value, np.maximum(level, 1e-9)) - value + level
    return _xlogy(value, size * level) + _xlogy(size - value, size * (1 - level))


def _xlogy(value: Floats, expected: Floats) -> Floats:
    some = value > 0
    return np.where(some, value * np.log(np.where(some, value / expected, 1.0)), 0.0)


def negative_binomial(count: Floats, mean: Floats, excess: Floats, low: Bools) -> Floats:
    """The tail of a count with the variance `mean` + `excess` x `mean`^2: the lower one where `low`, else the upper.

    By the regularised incomplete beta function, which also interpolates between whole numbers (a sum of money).
    """
    mean = np.maximum(mean, 1e-12)
    size = 1 / np.maximum(excess, LEAST / np.maximum(mean, 1.0))
    chance = np.where(low, size, mean) / (size + mean)

    def cut(at: Floats) -> Floats:
        return np.asarray(special.betainc(np.where(low, size, at), np.where(low, at, size), chance))

    with_it = np.where(count > 0, cut(np.maximum(count, 1e-300)), np.where(low, 0.0, 1.0))
    return np.asarray((with_it + cut(count + 1)) / 2)


def beta_binomial(hits: Floats, trials: Floats, share: Floats, spread: Floats, low: Bools) -> Floats:
    """The tail of `hits` of `trials`, each with the chance `share`: the lower one where `low`, else the upper.

    The variance is n p q (1 + (n - 1) x `spread`): `spread` is the correlation within one window. The nearer tail is
    summed downward from what was observed, term by term; in the middle of a large one the beta distribution of the
    same variance stands for it.
    """
    share = np.clip(share, 1e-9, 1 - 1e-9)
    size = 1 / np.clip(spread, LEAST, 0.999) - 1
    hits = np.clip(hits, 0, trials)
    falls = hits <= trials * share
    a, b = share * size, (1 - share) * size
    near = [np.where(falls, x, y) for x, y in ((hits, trials - hits), (a, b), (b, a))]
    tail = _summed(near[0], trials, near[1], near[2])
    variance = (1 + (trials - 1) / (size + 1)) / np.maximum(trials, 1)
    like = 1 / np.maximum(variance, 1e-12) - 1
    middle = (trials * np.sqrt(variance * share * (1 - share)) > TERMS / 5) & (tail > 1e-3)
    middle &= near[0] > TERMS  # else all terms were summed
    smooth = special.betainc(share * like, (1 - share) * like, hits / np.maximum(trials, 1))
    tail = np.where(middle, np.where(falls, smooth, 1 - smooth), tail)
    return np.where(falls == low, tail, 1 - tail)


def _summed(x: Floats, n: Floats, a: Floats, b: Floats) -> Floats:
    """P(X < x) + P(X = x) / 2 of beta-binomials."""
    log = special.betaln(x + a, n - x + b) - special.betaln(a, b)
    log += special.gammaln(n + 1) - special.gammaln(x + 1) - special.gammaln(n - x + 1)
    term = np.exp(log)
    total, below = term / 2, np.arange(BLOCK)
    going = np.flatnonzero((x >= 1) & (term > 0))
    for done in range(0, TERMS, BLOCK):
        if not len(going):
            break
        size, first, second = (part[going, None] for part in (n, a, b))
        at = x[going, None] - done - below
        ratios = at * (size - at + second) / ((size - at + 1) * np.maximum(at - 1 + first, 1e-300))
        terms = term[going, None] * np.cumprod(np.where(at >= 1, ratios, 0.0), axis=1)  # each over the one above it
        total[going] += terms.sum(axis=1)
        term[going] = terms[:, -1]
        going = going[terms[:, -1] > 1e-12 * total[going]]
    if len(going):
        at = x[going] - TERMS
        ratio = at * (n[going] - at + b[going]) / ((n[going] - at + 1) * np.maximum(at - 1 + a[going], 1e-300))
        rest = np.clip(np.where(at >= 1, ratio, 0.0), 0.0, 1 - 1e-9)
        total[going] += term[going] * rest / (1 - rest)
    return np.asarray(np.minimum(total, 1.0))
