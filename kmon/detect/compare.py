"""The comparison detector: the current window against what its own past and the same hours of other days expect.

expect the level (`kmon.detect.expect`)  ►  exact tails around it (`kmon.detect.tails`)  ►  large enough to tell
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy import stats

from kmon.config import Metric
from kmon.detect import tails
from kmon.detect.contract import SCORES
from kmon.detect.expect import Expectation, expect
from kmon.errors import UsageError

Floats = npt.NDArray[np.float64]
NOISE = 2.0
"""Standard deviations by which a falling rate's numerator must have fallen itself."""
EDGE = 3.0
"""Standard deviations that the exposure must have moved by within a lag, for a surge or an outage to begin or end."""
PAIRED = 1.5
"""Times what chance says that a rate varies by at most, where its numerator is a part of its denominator. Beyond that
few sessions in a window say little of its orders: a rise is one of as many as usual."""
TWICE = 2.0
"""Times what is expected, from which on a rate is judged as if its numerator came by itself, too: some orders of a
window are of sessions before it, and all may be as many as the sessions in it."""
LAST = 6
"""Bins that tell the usual exposure."""
GROWTH = 1.25
"""Times the exposure of the last half hour that a window may have by the course of the day; more is a surge."""
PLENTY = 1e6
"""Evidence (nats) beyond which more says no more."""
_DIRECTIONS = pl.Series(["up", "down"])


@dataclass(frozen=True)
class Compare:
    """Predictive tests: how likely is a window as low, or as high, as this one?

    Counts: negative binomial (a Poisson count of a gamma level). Rates: beta-binomial. Means: Student's t, by the
    variance of one event. The null is not one level but all within `tolerance` of the expected one, as no level stays
    exactly where it was (a minimum-effect test, Murphy and Myors 1999).
    """

    name: ClassVar[str] = "compare"

    min_volume: float = 10.0
    """Least observed or expected count in a window, or least denominator of a rate or mean, to judge it."""
    min_effect: float = 0.3
    """Least relative fall of a rate or mean worth telling."""
    min_fall: float = 0.35
    """Least relative fall of a count worth telling: demand falls by a third for harmless reasons, such as a holiday."""
    min_rise: float = 1.0
    """Least relative rise worth telling."""
    tolerance: float = 0.02
    """Relative deviation from the expected level that is still normal, however certain."""
    coverage: float = 0.999
    """Of the interval shown as normal."""

    def __post_init__(self) -> None:
        for key, value in asdict(self).items():
            if not isinstance(value, int | float) or not 0 <= value < (
                1 if key in ("coverage", "tolerance") else np.inf
            ):
                message = f"the detector {self.name!r} needs a number for {key!r}, not {value!r}"
                raise UsageError(message)

    def least_change(self, metric: Metric) -> tuple[float, float]:
        """See `kmon.detect.contract`: its tails are wider than Poisson's or the binomial's around what is expected."""
        own = self._thresholds(metric.kind)
        own |= {key: value for key in own if (value := getattr(metric, key)) is not None}
        return own["min_effect"], own["min_rise"]

    def score(self, windows: pl.DataFrame) -> pl.DataFrame:
        if windows.is_empty():
            return pl.DataFrame(schema=SCORES)
        kind = str(windows["kind"][0])
        with np.errstate(all="ignore"):
            expected = expect(windows, kind)
            now = _Now.of(windows, kind)
            return self._scores(windows, now, expected)

    def _scores(self, windows: pl.DataFrame, now: _Now, expected: Expectation) -> pl.DataFrame:
        level, observed = expected.level, now.value / now.exposure
        falls = observed < level
        null = np.where(falls, level - self.tolerance * np.abs(level), level + self.tolerance * np.abs(level))
        p = np.minimum(now.tail(falls, null, expected) * 2, 1.0)
        own = {key: _threshold(windows, key, default) for key, default in self._thresholds(now.kind).items()}
        volume = np.fmax(observed, level) if now.kind == "count" else now.exposure
        judged: npt.NDArray[np.bool_] = (
            expected.known & (now.exposure > 0) & (volume >= own["min_volume"]) & np.isfinite(observed)
        )
        judged &= np.isfinite(p)
        if now.kind == "count":  # what comes from nothing is new, and no surge
            judged &= falls | (expected.volume >= own["min_volume"])
        low, high = now.interval(expected, self.coverage)
        low, high = np.minimum(low, level), np.maximum(high, level)  # of next to nothing an interval has no shape
        evidence = np.where(judged, now.gain(expected), 0.0)
        sizes = {"noise": expected.noise, "unit": expected.unit, "on_days": expected.on_days}
        notable = judged & large(now.kind, now.value, now.exposure, now.usual, level, own, **sizes)
        told = expected.known | (now.kind != "rate")  # of nothing the share of the whole fleet would be expected
        return pl.DataFrame(
            {
                "observed": observed,
                "expected": np.where(told, level, np.nan),
                "lower": np.where(told, low, np.nan),
                "upper": np.where(told, high, np.nan),
                "p_value": np.where(judged, p, 1.0),
                "effect": (observed - level) / np.abs(level),
                "direction": _DIRECTIONS.gather(falls.astype(np.uint32)),
                "evidence": np.clip(np.nan_to_num(evidence), 0, PLENTY),
                "judged": judged,
                "notable": notable,
            }
        )

    def _thresholds(self, kind: str) -> dict[str, float]:
        fall = self.min_fall if kind == "count" else self.min_effect
        return {"min_volume": self.min_volume, "min_effect": fall, "min_rise": self.min_rise}


def large(
    kind: str,
    value: Floats,
    exposure: Floats,
    usual: Floats,
    level: Floats,
    own: Mapping[str, Floats | float],
    *,
    noise: Floats | float = 1.0,
    unit: Floats | float = 1.0,
    on_days: Floats | float = np.nan,
) -> npt.NDArray[np.bool_]:
    """Whether a change from the expected `level` is worth telling, of those that are certain.

    `usual` is a usual exposure, and `own` has `min_effect` and `min_rise`. A count that fell by a third and is low by
    chance has not fallen by half: it gets a standard deviation of doubt, by `noise` and `unit`. The end of a fall is no
    surge: a count so low today that its return to what it had `on_days` before would be worth telling must rise from
    there. More sessions with as many orders are no lost orders: of a rate the numerator must have moved too.
    """
    observed = value / exposure
    falls = observed < level
    doubt = np.sqrt(noise * (value + unit)) if kind == "count" else 0.0
    start = np.where(~falls & (on_days - level >= own["min_rise"] * np.abs(level)), on_days, level)
    change = (observed + np.where(falls, doubt, 0.0) - start) / np.abs(start)
    enough = np.where(falls, change <= -own["min_effect"], change >= own["min_rise"])
    if kind == "rate":
        before = level * np.fmin(exposure, GROWTH * usual)
        lost = np.fmax(before * own["min_effect"] / 2, NOISE * np.sqrt(noise * before))
        enough &= np.where(falls, before - value >= lost, value > before)
    return np.asarray(enough, dtype=bool)


@dataclass(frozen=True)
class _Now:
    """The current window of every monitor."""

    kind: str
    value: Floats
    exposure: Floats
    least: Floats
    """Of the exposures of this window and of the one a lag earlier; orders come after their sessions."""
    most: Floats
    usual: Floats
    """The exposure of a usual window."""

    @classmethod
    def of(cls, windows: pl.DataFrame, kind: str) -> _Now:
        value, exposure = (windows[name].to_numpy().astype(float) for name in ("value", "exposure"))
        lagged = "lagged_exposure" if "lagged_exposure" in windows.columns else "exposure"
        earlier = windows[lagged].to_numpy().astype(float)
        moved = np.abs(exposure - earlier) > EDGE * np.sqrt(exposure + earlier)  # more than chance moves it
        least = np.where(moved, np.fmin(exposure, earlier), exposure)
        most = np.where(moved, np.fmax(exposure, earlier), exposure)
        usual = _usual_exposure(windows, exposure)
        if kind == "rate":  # an order can come in the window after its session
            value = np.clip(value, 0, exposure)
        elif kind == "count":
            value = np.maximum(value, 0)
        return cls(kind, value, exposure, least, most, usual)

    def tail(self, falls: npt.NDArray[np.bool_], null: Floats, expected: Expectation) -> Floats:
        """The chance of as little, where it `falls`, or of as much, were the level `null`.

        As little: whole events are missing, of which there may be few. As much: their amounts may be large, too.
        """
        if self.kind == "mean":
            deviation = self.value / self.exposure - null
            z = deviation / np.sqrt(expected.noise / self.exposure + expected.drift * expected.level**2)
            return np.asarray(stats.t.cdf(np.where(falls, z, -z), expected.freedom))
        unit = np.where(falls, expected.unit, 1.0)
        if self.kind == "count":
            return tails.negative_binomial(self.value / unit, null / unit, self._excess(expected, unit), falls)

        unit = np.floor(unit)
        most = np.where(expected.noise > PAIRED, np.fmax(self.most, self.usual), self.most)
        trials = np.where(falls, np.ceil(self.least / unit), most)
        hits = np.minimum(np.where(falls, np.ceil(self.value / unit), self.value), trials)
        tail = tails.beta_binomial(hits, trials, null, self._spread(expected, trials, unit), falls)
        usual = np.maximum(null * most, 1e-9)
        many = np.flatnonzero(~falls & (hits >= TWICE * usual))
        excess = (expected.noise - 1) / usual + expected.drift * (1 - null) / np.maximum(null, 1e-9)
        free = tails.negative_binomial(hits[many], usual[many], excess[many], falls[many])
        tail[many] = np.fmax(tail[many], free)
        return tail

    def _excess(self, expected: Expectation, unit: Floats | float = 1.0) -> Floats:
        """Relative variance of a count beyond that of independent events of `unit` each."""
        return (expected.noise - unit) / np.maximum(expected.level, 1e-9) + expected.drift

    def _spread(self, expected: Expectation, trials: Floats, unit: Floats | float = 1.0) -> Floats:
        """Correlation within a window of `trials` of `unit` each, which gives it the noise and drift expected."""
        n = np.maximum(trials, 1.0)
        own = (expected.noise / unit - 1) / n + expected.drift
        return np.where(n > 1, own / (1 - 1 / np.maximum(n, 1 + 1e-9)), 0.0)

    def interval(self, expected: Expectation, coverage: float) -> tuple[Floats, Floats]:
        """Where a normal window falls."""
        level, z = expected.level, stats.t.isf((1 - coverage) / 2, expected.freedom)
        if self.kind == "count":  # of the gamma distribution with this variance (Wilson and Hilferty 1931)
            shape = 1 / (1 / np.maximum(level, 1e-9) + self._excess(expected))
            middle, width = 1 - 1 / (9 * shape), z / (3 * np.sqrt(shape))
            return level * np.maximum(middle - width, 0) ** 3, level * (middle + width) ** 3
        if self.kind == "mean":
            sd = np.sqrt(expected.noise / self.exposure + expected.drift * level**2)
            return level - z * sd, level + z * sd
        rate = np.clip(level, 1e-3, 1 - 1e-3)
        sd = np.sqrt(rate * (1 - rate) * (expected.noise / np.maximum(self.exposure, 1) + expected.drift))
        return np.clip(level - z * sd, 0, 1), np.clip(level + z * sd, 0, 1)

    def gain(self, expected: Expectation) -> Floats:
        """Log-likelihood of the observed level over that of the expected one, in nats, by chance alone.

        Without noise and drift, which differ from monitor to monitor: so that of a scope, its parts and what it is a
        part of the one tells most that holds the whole change and little else.
        """
        value, exposure, level = self.value, self.exposure, expected.level
        if self.kind == "count":
            gained = tails.divergence(value, level)
        elif self.kind == "mean":
            gained = exposure * (value / exposure - level) ** 2 / expected.noise / 2
        else:
            gained = tails.divergence(value, np.clip(level, 1e-6, 1 - 1e-6), exposure)
        return np.asarray(gained / expected.unit)  # of independent events: the lines of an invoice are one


def _usual_exposure(windows: pl.DataFrame, exposure: Floats) -> Floats:
    """Of a window as long as this one: the mean of the last known bins."""
    if "recent_exposure" not in windows.columns:
        return exposure
    bins = windows["recent_exposure"].to_numpy().astype(float)
    known = np.isfinite(bins)
    last = known & (np.cumsum(known[:, ::-1], axis=1)[:, ::-1] <= LAST)
    a_bin = np.where(last, bins, 0.0).sum(axis=1) / last.sum(axis=1)
    usual = a_bin * float(windows["width"][0]) / float(windows["bin"][0])
    return np.where(np.isfinite(usual), usual, exposure)


def _threshold(windows: pl.DataFrame, name: str, default: float) -> Floats:
    if name not in windows.columns:
        return np.full(windows.height, default)
    own = windows[name].to_numpy().astype(float)
    return np.where(np.isnan(own), default, own)
