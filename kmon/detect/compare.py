"""The comparison detector: the current window against the previous ones, yesterday and the weeks before.

A window is abnormal if it deviates from *every* usable reference in the same direction (an intersection-union test:
its p-value is the largest of the references', Berger 1982), so that neither the daily shape, which the previous
windows do not know, nor today's level, which yesterday does not know, raises an alarm by itself.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy import stats
from statsmodels.stats.proportion import test_proportions_2indep
from statsmodels.stats.rates import test_poisson_2indep

from kmon.detect.contract import REFERENCES, SCORES
from kmon.errors import UsageError

Floats = npt.NDArray[np.float64]
SETTLED = 3
"""Degrees of freedom from other days that suffice to tell the dispersion without today's."""
DOUBT = 0.1
"""Chance that the dispersion is larger than what is assumed of it where there is little history."""
RARE = 30
"""Below this many events of the rarer outcome the normal approximation of a rate's score test is not trusted."""
NOISE = 2.0
"""Standard deviations by which a falling rate's numerator must have fallen itself."""
PLENTY = 1e6
"""Evidence (nats) beyond which more says no more."""
_DIRECTIONS = pl.Series(["up", "down"])


@dataclass(frozen=True)
class Compare:
    """Two-sample tests with an over-dispersion estimated from the references.

    Counts: the exact conditional test of two Poisson rates (Przyborowski and Wilenski 1940). Rates: the score test of
    two proportions (Farrington and Manning 1990), backed by the exact test on the rarer outcome where that is rare.
    Means: a t-test on the references' spread. Over-dispersion divides counts and sizes (quasi-likelihood, McCullagh
    and Nelder 1989, section 6.2; for rates Rao and Scott 1992).
    """

    name: ClassVar[str] = "compare"

    min_volume: float = 20.0
    """Least observed or expected count in a window, or least denominator of a rate or mean, to judge it."""
    min_effect: float = 0.3
    """Least relative fall of a rate or mean worth telling."""
    min_fall: float = 0.5
    """Least relative fall of a count worth telling: demand falls by a third for harmless reasons, such as a holiday."""
    min_rise: float = 1.0
    """Least relative rise worth telling."""
    coverage: float = 0.999
    """Of the interval shown as normal."""
    prior: float = 10.0
    """Degrees of freedom that the fleet's dispersion weighs against a monitor's own."""

    def __post_init__(self) -> None:
        for key, value in asdict(self).items():
            if not isinstance(value, int | float) or not 0 <= value < (1 if key == "coverage" else np.inf):
                message = f"the detector {self.name!r} needs a number for {key!r}, not {value!r}"
                raise UsageError(message)

    def score(self, windows: pl.DataFrame) -> pl.DataFrame:
        if windows.is_empty():
            return pl.DataFrame(schema=SCORES)
        kind = str(windows["kind"][0])
        with np.errstate(all="ignore"):
            references = _References.of(windows, kind)
            now = _Now.of(windows, kind)
            dispersion = self._dispersion(references, kind)
            return self._combine(windows, now, references, dispersion)

    def _dispersion(self, references: _References, kind: str) -> Floats:
        """Variance over what the model says, per monitor, shrunk towards the fleet's; NaN where nothing is known.

        Other days tell it where there are enough: a change that began a window ago has already spoilt the previous
        ones. The fleet's grows with the mean where its monitors say so (a negative binomial's 1 + mean x c, by
        moments). Where all of them together know little, each has the upper confidence bound of its own. Of a mean it
        is the variance of one event.
        """
        previous = np.array([name == "previous" for name in references.names], dtype=bool)
        settled = references.df[~previous].sum(axis=0) >= SETTLED
        used = ~(settled & previous[:, None])
        chi2, df = (np.where(used, part, 0).sum(axis=0) for part in (references.chi2, references.df))
        if kind == "mean":
            return np.where(df >= SETTLED, chi2 / np.maximum(df, 1), np.nan)
        level = np.fmax.reduce(references.level, axis=0, initial=np.nan)
        telling = (df > 0) & (level >= 1) if kind == "count" else df > 0
        total = df[telling].sum()
        if total < self.prior:
            upper = np.maximum(1, chi2 / stats.chi2.ppf(DOUBT, np.maximum(df, 1)))
            never_moved = (
                np.nanmax(references.size, axis=0, initial=0) > 0 if kind == "rate" else np.zeros(len(df), bool)
            )
            return np.where(df > 0, upper, np.where(never_moved, 1.0, np.nan))
        pooled = np.full(len(df), chi2[telling].sum() / total)
        if kind == "count":
            weight = (df * level)[telling].sum()
            growth = max(0.0, float((chi2 - df)[telling].sum() / weight))
            constant = float(np.median((chi2 / np.maximum(df, 1))[telling]))
            pooled = np.maximum(constant, 1 + growth * np.nan_to_num(level))
        return np.asarray(np.maximum(1, (chi2 + self.prior * pooled) / (df + self.prior)))

    def _combine(self, windows: pl.DataFrame, now: _Now, references: _References, dispersion: Floats) -> pl.DataFrame:
        usable = (references.size > 0) & np.isfinite(dispersion)
        count = usable.sum(axis=0)
        fall, rise, sd = _tests(now, references, dispersion)
        down, up = (np.where(usable, p, -1).max(axis=0, initial=-1) for p in (fall, rise))
        observed = now.value / now.exposure
        levels = np.where(usable, references.level, np.nan)
        expected = np.nansum(levels, axis=0) / count
        falls = (down < up) | ((down == up) & (observed < expected))
        lower, upper = _interval(now.kind, levels, sd, stats.norm.isf((1 - self.coverage) / 2))
        least_fall = self.min_fall if now.kind == "count" else self.min_effect
        defaults = {"min_volume": self.min_volume, "min_effect": least_fall, "min_rise": self.min_rise}
        own = {key: _threshold(windows, key, default) for key, default in defaults.items()}
        # a count that fell by a third and is low by chance has not fallen by half: one standard deviation of doubt
        doubt = np.where(falls, np.sqrt(dispersion * (now.value + 1)), 0) if now.kind == "count" else 0
        change = (observed + doubt - levels) / np.abs(levels)
        enough = np.where(falls, change <= -own["min_effect"], change >= own["min_rise"])
        if now.kind == "rate":  # more sessions with as many orders are no lost orders: the numerator moves too
            before = np.where(usable, references.per_window, np.nan)
            lost = np.fmax(before * own["min_effect"] / 2, NOISE * np.sqrt(dispersion * before))
            enough &= np.where(falls, before - now.value >= lost, now.value > before)
        volume = np.fmax(observed, expected) if now.kind == "count" else now.exposure
        judged = (count > 0) & (now.exposure > 0) & (volume >= own["min_volume"]) & np.isfinite(observed)
        if now.kind == "count":
            judged &= (references.total > 0).any(axis=0)  # new today: nothing to compare with
        evidence = np.where(judged, _gain(now, expected) / dispersion, 0)
        return pl.DataFrame(
            {
                "observed": observed,
                "expected": expected,
                "lower": np.fmin.reduce(lower, axis=0, initial=np.nan),
                "upper": np.fmax.reduce(upper, axis=0, initial=np.nan),
                "p_value": np.where(judged, np.clip(2 * np.minimum(down, up), 0, 1), 1.0),
                "effect": (observed - expected) / np.abs(expected),
                "direction": _DIRECTIONS.gather(falls.astype(np.uint32)),
                "evidence": np.clip(np.nan_to_num(evidence), 0, PLENTY),
                "judged": judged,
                "notable": judged & (enough | ~usable).all(axis=0),
            }
        )


@dataclass(frozen=True)
class _Now:
    """The current window of every monitor."""

    kind: str
    value: Floats
    exposure: Floats

    @classmethod
    def of(cls, windows: pl.DataFrame, kind: str) -> _Now:
        value, exposure = (windows[name].to_numpy().astype(float) for name in ("value", "exposure"))
        return cls(kind, _bounded(kind, value, exposure), exposure)


@dataclass(frozen=True)
class _References:
    """The references of every monitor, the usable windows of each pooled: arrays of shape (references, monitors)."""

    names: tuple[str, ...]
    level: Floats
    """Per window, or the pooled rate or mean; NaN without a usable window."""
    size: Floats
    """Number of usable windows, or the pooled denominator."""
    total: Floats
    per_window: Floats
    """Count or numerator per usable window."""
    chi2: Floats
    """Pearson's, of the windows around `level`."""
    df: Floats

    @classmethod
    def of(cls, windows: pl.DataFrame, kind: str) -> _References:
        names = tuple(name for name in REFERENCES if f"{name}_value" in windows.columns)
        parts = [_pooled(windows, name, kind) for name in names]
        return cls(names, *np.array(parts).reshape(len(names), 6, windows.height).swapaxes(0, 1))


def _pooled(windows: pl.DataFrame, name: str, kind: str) -> tuple[Floats, ...]:
    """What `_References` holds of one reference, in its order."""
    value, exposure = (windows[f"{name}_{part}"].to_numpy().astype(float) for part in ("value", "exposure"))
    usable = np.isfinite(value) & np.isfinite(exposure) & (exposure > 0)
    value, exposure = np.where(usable, value, 0), np.where(usable, exposure, 0)
    value = _bounded(kind, value, exposure)
    total, size, count = value.sum(axis=1), exposure.sum(axis=1), usable.sum(axis=1)
    level = np.where(size > 0, total / size, np.nan)
    variance = {"count": level, "rate": level * (1 - level), "mean": np.ones_like(level)}[kind]
    spread = (value - exposure * level[:, None]) ** 2 / (exposure * variance[:, None])
    chi2 = np.where(usable & (variance > 0)[:, None], spread, 0).sum(axis=1)
    df = np.where((variance > 0) & (count > 1), count - 1.0, 0.0)
    return level, size, total, total / np.maximum(count, 1), chi2, df


def _binomial_variance(total: Floats, size: Floats) -> Floats:
    """Of one event, by a rate half an event away from 0 and 1: what was always so need not be so for ever."""
    rate = (total + 0.5) / (size + 1)
    return np.asarray(np.where(size > 0, rate * (1 - rate), np.nan))


def _bounded(kind: str, value: Floats, exposure: Floats) -> Floats:
    """A count is not negative, and a rate at most 1: an order can come in the window after its session."""
    if kind == "mean":
        return value
    return np.clip(value, 0, exposure if kind == "rate" else None)


def _tests(now: _Now, references: _References, dispersion: Floats) -> tuple[Floats, Floats, Floats]:
    """One-sided p-values for a fall and for a rise, and the standard deviation of the current window's deviation.

    Only the side that the window deviates to is tested; the other's p-value is 1.
    """
    total, level = references.total, references.level
    size = np.where(references.size > 0, references.size, np.nan)
    value, exposure, dispersion = (np.broadcast_to(x, total.shape) for x in (now.value, now.exposure, dispersion))
    if now.kind == "count":
        sd = np.sqrt(dispersion * (1 + 1 / size))  # on the scale of 2 x the square root, see _interval
        return *_poisson(value, np.ones_like(value), total, size, dispersion), sd
    if now.kind == "mean":
        sd = np.sqrt(dispersion * (1 / exposure + 1 / size))
        t, df = (value / exposure - level) / sd, references.df + 1
        fall, rise = stats.t.cdf(t, df), stats.t.sf(t, df)
        return np.where(np.isnan(t), 1.0, fall), np.where(np.isnan(t), 1.0, rise), sd
    sd = np.sqrt(dispersion * _binomial_variance(total, size) * (1 / exposure + 1 / size))
    effective = [x / dispersion for x in (value, exposure, total, size)]
    _, p = test_proportions_2indep(*effective, compare="diff", method="score", return_results=False)
    p = np.where(np.isfinite(p), p / 2, 1.0)
    falls = value * size <= total * exposure
    common = level > 0.5
    rarer, rarer_total = np.where(common, exposure - value, value), np.where(common, size - total, total)
    exact_fall, exact_rise = _poisson(rarer, exposure, rarer_total, size, dispersion)
    rare = np.minimum(rarer, exposure * rarer_total / size) / dispersion < RARE
    exact = np.where(falls == common, exact_rise, exact_fall)
    p = np.where(rare, np.fmax(p, exact), p)
    return np.where(falls, p, 1.0), np.where(falls, 1.0, p), sd


def _poisson(count: Floats, exposure: Floats, total: Floats, size: Floats, dispersion: Floats) -> tuple[Floats, Floats]:
    """Exact p-values for a lower and for a higher rate, effective counts rounded towards no change."""
    x, y = count / dispersion, total / dispersion
    known = np.isfinite(x) & np.isfinite(y) & (size > 0) & (exposure > 0)
    falls = x * size <= y * exposure

    def tail(x: Floats, y: Floats, which: npt.NDArray[np.bool_], alternative: str) -> Floats:
        p = np.ones(x.shape)
        if which.any():
            counts = (part[which] for part in (x, exposure, y, size))
            p[which] = test_poisson_2indep(*counts, method="exact-cond", alternative=alternative).pvalue
        return p

    fall = tail(np.ceil(x), np.floor(y), known & falls, "smaller")
    return fall, tail(np.floor(x), np.ceil(y), known & ~falls, "larger")


def _interval(kind: str, level: Floats, sd: Floats, z: float) -> tuple[Floats, Floats]:
    if kind == "count":  # on the square-root scale, where a count's variance is constant (Anscombe 1948)
        root = 2 * np.sqrt(level + 3 / 8)
        low, high = np.maximum(root - z * sd, 0) / 2, (root + z * sd) / 2
        return np.where(np.isfinite(low), np.maximum(low**2 - 3 / 8, 0), np.nan), high**2 - 3 / 8
    low, high = level - z * sd, level + z * sd
    return (np.clip(low, 0, 1), np.clip(high, 0, 1)) if kind == "rate" else (low, high)


def _gain(now: _Now, expected: Floats) -> Floats:
    """Log-likelihood of the observed level over that of the expected one, in nats."""
    value, exposure = now.value, now.exposure
    if now.kind == "count":
        return _xlogy(value, value / np.maximum(expected, 1e-9)) - value + expected
    if now.kind == "mean":
        return exposure * (value / exposure - expected) ** 2 / 2
    p = np.clip(expected, 1e-6, 1 - 1e-6)
    missed = exposure - value
    return _xlogy(value, value / (exposure * p)) + _xlogy(missed, missed / (exposure * (1 - p)))


def _xlogy(x: Floats, y: Floats) -> Floats:
    return np.where(x > 0, x * np.log(np.where(x > 0, y, 1)), 0)


def _threshold(windows: pl.DataFrame, name: str, default: float) -> Floats:
    if name not in windows.columns:
        return np.full(windows.height, default)
    own = windows[name].to_numpy().astype(float)
    return np.where(np.isnan(own), default, own)
