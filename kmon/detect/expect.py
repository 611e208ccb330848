"""What to expect of a window: one estimate from today's recent bins and the same hours of other days.

    today   |----recent (RECENT bins)----|window|        level: how much there is today
    a day   |------------the same hours---------|+AFTER  shape: how the window compares with the hours before it

Counts: the other days give the shape, today the level. The level is a gamma variable whose prior is the other days'
level, as much to be trusted as the fleet's levels agree from day to day, updated by today's count (Poisson-gamma
regression with a discount, Harvey and Fernandes 1989). Shares: likewise with a beta variable. Both are counted in
events, as sums of money and lots of lines do not come one by one. How far a normal window
may still lie from that comes from the residuals of past bins, by moments, each monitor's shrunk towards the fleet's.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy import special

from kmon.config import bins
from kmon.detect.dispersion import ROBUST, overdispersion, overdispersions

Floats = npt.NDArray[np.float64]
T = TypeVar("T", bound=np.generic)
RECENT = bins.RECENT
"""Bins before the end of the window, today and of each day."""
LEARNT = RECENT // 4
"""Of them, as many as must be known of a count without another day."""
AFTER = 6
"""Bins after the end of the window, of each day but today."""
LATELY = 3.0
"""The last bins, those of the window among them, tell no noise: what has begun in them must not hide itself."""
HALF_LIFE = 9.0
"""Bins after which a count tells half as much of today's level."""
NEAR = 2
"""Bins before and after the window's time of day that are the same time of day,"""
SAME_TIME = 1800.0
"""as far as they lie within so many seconds of it."""
LEVEL_DRIFT = (0.003, 0.01)
"""Relative variance of a monitor's level between the recent bins and the window, at least and at most: bounds what a
large count tells. In between it is what the recent bins wander, in WANDERED of them, EXTRAPOLATED times."""
WANDERED = 3
EXTRAPOLATED = 2.0
"""What lies ahead of the recent bins is further from their mean than they are: a random walk of `n` steps lies n / 6
about its mean, by variance, and its end n / 3."""
TREND = 0.04
"""Relative variance by which a count without another day moves within its window and the 12 bins before."""
SHORT = 300.0
"""Seconds of the bins that LEVEL_DRIFT is of; it grows with time, as a random walk."""
FEW = 5.0
"""Events of other days below which they tell no shape."""
OWN = 1.5
"""Events a bin from which on the chance that other days lend to a level is taken off: of fewer it is not well known,
nor of hours that no neighbours smooth, where an event may be a large order."""
PRIOR = 20.0
"""Events, or bins, that what is usual in the fleet weighs against a monitor's own."""
TOGETHER = 300.0
"""Residuals that the fleet's `phi` weighs against a segment's: a segment of one monitor has but its own."""
ALIKE = 40.0
"""Independent residuals that the fleet's noise weighs against a monitor's own."""
STEADY = 0.01
"""Least relative variance of a level from day to day."""
LOOSE = 1.0
"""Relative variance of a level of today that no other day is like, such as a holiday's."""
LIMITED = 1.0
"""Standard deviations of chance by which a shape is moved towards the fleet's at most."""
DIFFER = 0.02
"""Relative variance by which monitors differ in their shape where the fleet does not tell."""
LIKELY = 2e-4
"""The same of a rate."""
SHAPELESS = 3e-3
"""Relative variance that a day's shape is off by at best."""
APART = 0.35
"""Independent residuals that a bin is worth: bins next to each other are alike."""
WILD = 2.0
"""Times the fleet's noise that a monitor's own must be, to be believed without the fleet."""
BATCH = 4.0
"""Times the fleet's event, from which on a monitor's are batches: not single ones that came together by chance."""
EMPTY = 0.2
"""Share of a batch that there is at most in the bins beside it."""
BURST = 16.0
"""Squared residuals, in variances, count up to this where events come in bursts: lines of an invoice, for one."""


@dataclass(frozen=True)
class Expectation:
    """Of the current window of each monitor."""

    level: Floats
    """Count per window, or rate or mean."""
    noise: Floats
    """Factor on the Poisson or binomial variance, at least 1; of a mean the variance of one event."""
    drift: Floats
    """Relative variance of the level: what does not shrink with the window's volume."""
    volume: Floats
    """Events in the references that it rests on."""
    known: npt.NDArray[np.bool_]
    """False while learning."""
    weights: Floats
    """(days, monitors): how much each day counts, 1 in all; 0 where no day is used."""
    freedom: float | Floats = np.inf
    """Degrees of freedom of the noise of a mean, which is its own monitor's alone."""
    names: tuple[str, ...] = ()
    """Of the days: ``day1``, ...; ``model`` for what was forecast."""
    unit: Floats | float = 1.0
    """What one event adds to a count or a rate's numerator: 1, a typical amount of money, a lot of lines, a batch."""
    on_days: Floats | float = np.nan
    """A count per window as other days had it, at the fleet's level of today; NaN where no day is like today."""


@dataclass(frozen=True)
class References:
    """The arrays of a detector's input; NaN where a bin must not be used."""

    bin: float
    """Seconds of a bin."""
    bins: float
    """The window's width, in bins."""
    near: float
    """Bins before and after it that are the same time of day."""
    recent: tuple[Floats, Floats]
    """Value and exposure: (monitors, RECENT)."""
    days: tuple[tuple[Floats, Floats], ...]
    """The same of each day: (monitors, RECENT + AFTER)."""
    previous: tuple[Floats, Floats]
    """The windows just before, of the same width: (monitors, any number)."""
    unlike: npt.NDArray[np.bool_]
    """(monitors,): none of the days is of today's kind."""
    company: npt.NDArray[np.int64]
    """Who tells what is usual in the fleet; the others were chosen for what happens to them now."""
    segment: npt.NDArray[np.uint16]
    """(monitors,): whose noise is alike, numbered from 0."""
    along: bool = False
    """Whether the rows are one monitor at several times."""
    model: tuple[tuple[Floats, Floats], ...] = ()
    """A day that a model forecast, if any: it tells what is usual, and nothing of chance."""
    names: tuple[str, ...] = ()
    """Of the days, then of the model."""

    @classmethod
    def of(cls, windows: pl.DataFrame, kind: str) -> References:
        m = windows.height
        least = 0.0 if kind == "count" else -np.inf  # a sum of less is one of which more was paid back

        def pair(name: str, count: int) -> tuple[Floats, Floats]:
            if f"{name}_value" not in windows.columns:
                return np.full((m, count), np.nan), np.full((m, count), np.nan)
            value, exposure = (windows[f"{name}_{part}"].to_numpy().astype(float) for part in ("value", "exposure"))
            good = np.isfinite(value) & np.isfinite(exposure)
            return np.where(good, np.maximum(value, least), np.nan), np.where(good, exposure, np.nan)

        names = [c.removesuffix("_value") for c in windows.columns if c.startswith("day") and c.endswith("_value")]
        width, bin_ = (float(windows[name][0]) for name in ("width", "bin"))
        days = tuple(pair(name, RECENT + AFTER) for name in names)
        near = min(NEAR, SAME_TIME / bin_)
        unlike = windows["unlike"].to_numpy() if "unlike" in windows.columns else np.zeros(m, dtype=bool)
        model = (pair("model", RECENT + AFTER),) if "model_value" in windows.columns else ()
        names += ["model"] * len(model)
        company = np.flatnonzero(windows["company"].to_numpy()) if "company" in windows.columns else np.arange(m)
        recent, previous = pair("recent", RECENT), pair("previous", 0)
        segment = np.zeros(m, dtype=np.uint16)
        if "segment" in windows.columns:
            segment = np.unique(windows["segment"].to_numpy(), return_inverse=True)[1].astype(np.uint16)
        return cls(
            bin_,
            width / bin_,
            near,
            recent,
            days,
            previous,
            unlike,
            company,
            segment,
            "along" in windows.columns,
            model,
            tuple(names),
        )

    def over(self, unit: Floats, exposure: Floats | float = 1.0) -> References:
        """With all values in units of `unit`, and exposures of `exposure`, each monitor's own."""
        value_unit, exposure_unit = np.reshape(unit, (-1, 1)), np.reshape(exposure, (-1, 1))

        def each(pair: tuple[Floats, Floats]) -> tuple[Floats, Floats]:
            return pair[0] / value_unit, pair[1] / exposure_unit

        days, model = (tuple(map(each, pairs)) for pairs in (self.days, self.model))
        return replace(self, recent=each(self.recent), days=days, previous=each(self.previous), model=model)


def expect(windows: pl.DataFrame, kind: str) -> Expectation:
    """The expectation of every row of a detector's input."""
    with np.errstate(all="ignore"):
        references = References.of(windows, kind)
        if kind == "mean":
            return _means(references)
        unit = _units(references, kind)
        found = _counts(references.over(unit)) if kind == "count" else _rates(references.over(unit, unit))
        level = unit * found.level if kind == "count" else found.level
        noise, volume, on_days = (unit * part for part in (found.noise, found.volume, found.on_days))
        return replace(found, level=level, noise=noise, volume=volume, unit=unit, on_days=on_days)


def _units(given: References, kind: str) -> Floats:
    """What one event of each monitor adds: as in the whole fleet, or a batch where it sends many events at once."""
    share = _share_in_all(given) if kind == "rate" else None
    usual = _unit(given, share)
    units = np.full(len(given.recent[0]), usual)
    rows, sizes = _batches(given, share, BATCH * usual)
    units[rows] = sizes
    return units


def _batches(given: References, share: Floats | None, least: float) -> tuple[npt.NDArray[np.int64], Floats]:
    """Who sends many events at once, where most come in one or two bins with next to none beside them; and how many.

    The median batch, weighted by its events, of those of whom it is `least` or more. Of a rate, which has a `share`,
    those events of a numerator that do not come with their denominator.
    """
    each, weight = [], []
    for value, exposure in (given.recent, *given.days):
        events = np.nan_to_num(value)
        usual = 0.0 if share is None else share * np.nan_to_num(exposure)
        chance, off = events + usual, events - usual
        full = _padded(events > EMPTY * functools.reduce(np.maximum, _beside(events, 2)), 1, 2)
        before, now, then, after = (full[:, i : i + events.shape[1]] for i in range(4))
        one, two = now & ~before & ~then, now & then & ~before & ~after
        ends = _padded(two, 1, 0)[:, :-1]
        size, moved, held = (part + np.where(two, _padded(part, 0, 1)[:, 1:], 0.0) for part in (events, off, chance))
        each.append(np.where(one | two, moved**2 / np.maximum(held, 1e-9), 0.0))
        weight.append(np.where(ends, 0.0, size))
    sizes, weights = np.concatenate(each, axis=1), np.concatenate(weight, axis=1)
    half = weights.sum(axis=1) / 2
    rows = np.flatnonzero(np.where(sizes < least, weights, 0.0).sum(axis=1) < half)
    sizes, weights = sizes[rows], weights[rows]
    order = np.argsort(sizes, axis=1)
    sizes, weights = (np.take_along_axis(part, order, axis=1) for part in (sizes, weights))
    middle = np.minimum((np.cumsum(weights, axis=1) < half[rows, None]).sum(axis=1), sizes.shape[1] - 1)
    return rows, np.asarray(np.take_along_axis(sizes, middle[:, None], axis=1)[:, 0])


def _unit(given: References, share: Floats | None) -> float:
    """What one event adds, at least 1: how much neighbouring bins differ, as a multiple of what they hold.

    Of independent events that is the mean of an event's squared amount over the mean amount (the index of dispersion of
    a compound Poisson process), by differences of neighbours, which a slow shape leaves alone (von Neumann 1941). The
    lines of an invoice are one event, as is a sum of money. Of a rate it is what lies beyond its `share`. The median
    over the days of the smaller half of the monitors: of the larger ones what moves all their events together would
    pass for large events.
    """
    parts = [given.recent, *given.days]
    if share is None:
        pairs = [(value, value) for value, _ in parts]
    else:
        pairs = [(value - share * exposure, share * (1 - share) * exposure) for value, exposure in parts]
    differ, held = np.array([_neighbours(*pair) for pair in pairs])[..., given.company].swapaxes(0, 1)
    total = held.sum(axis=0)
    usual = float(np.median(total[total > 0])) if (total > 0).any() else 0.0
    small = (held > 0) & (total <= usual)
    return max(1.0, float(np.median(differ[small] / held[small]))) if small.any() else 1.0


def _share_in_all(given: References) -> Floats:
    """(monitors, 1): of a rate in all that is known."""
    hits, trials, other_hits, other_trials = _pools(given)
    return np.clip((hits + other_hits) / np.maximum(trials + other_trials, 1e-9), 0.0, 1.0)[:, None]


def _neighbours(values: Floats, variance: Floats) -> Floats:
    """(2, monitors): squared differences of neighbouring bins, and their variances, both summed over the bins."""
    square, size = (values[:, 1:] - values[:, :-1]) ** 2, variance[:, 1:] + variance[:, :-1]
    good = np.isfinite(square) & np.isfinite(size)
    return np.array([np.where(good, part, 0.0).sum(axis=1) for part in (square, size)])


def _counts(given: References) -> Expectation:
    recent = given.recent[0]
    days = [value for value, _ in (*given.days, *given.model)]
    m = len(recent)
    decay = 0.5 ** (np.arange(RECENT - 1, -1, -1) / HALF_LIFE)
    shapes = [_Shape.of(recent, day, decay, given) for day in days]
    weights = _skill(shapes, given.company)
    window, before, today, around, spread, squared = (
        _weighted([getattr(s, name) for s in shapes], weights, m)
        for name in ("window", "before", "today", "around", "decay", "decay2")
    )
    used = np.sum([s.used for s in shapes], axis=0) if shapes else np.zeros(m)
    effective = np.where(squared > 0, spread / np.maximum(squared, 1e-9), 1.0)  # plain counts in a decaying one
    alone = _Alone.of(recent, decay, given.bins)
    flat = (used == 0) | (around + before * np.maximum(used, 1) < FEW)
    own = np.where(flat, 1.0, (today + 0.5) / (before + 0.5))
    trace = np.where(flat[:, None], alone.rate[:, None], _traced(shapes, weights, m))
    certain = ~flat & (own * before >= OWN * np.maximum(spread, 1e-9)) & (given.near >= 1)
    of_days = np.where(certain, own * (_shares(weights, m)[: len(given.days)] ** 2).sum(axis=0), 0.0)
    earlier = _earlier(recent, given)
    if given.bins < LATELY:
        trace = trace * _ratio(earlier, trace)
    residuals = [(earlier - trace, trace, trace * (1 + of_days * _kept(1.0, given))[:, None])]
    near = max(int(given.near), 1)
    kept = np.sqrt(1 - 1 / (2 * near + 1))  # the bin itself is a part of its mean
    for (day, _), s in zip(given.days, shapes, strict=False):  # a forecast has no residuals
        smooth = s.profile if given.near >= 1 else np.where(s.used[:, None] > 0, _smooth(day, near), np.nan)
        residuals.append(((day - smooth) / kept, smooth, smooth))
    off, mean, chance = (np.concatenate(part, axis=1) for part in zip(*residuals, strict=True))
    noise, floor, phi = _noise(off, chance, mean**2, given)
    wander = noise * _at_width(given, earlier - trace, trace, floor, phi, of_days)
    walked = _at_width(replace(given, bins=float(WANDERED)), earlier - trace, trace, floor, phi, of_days)
    moves = np.clip(EXTRAPOLATED * walked, *LEVEL_DRIFT)
    noise = floor * noise

    volume = around * np.maximum(used, 1) + np.nansum(recent, axis=1)
    disagreement = _disagreement(shapes[: len(given.days)], weights[: len(given.days)], noise)
    effective, around = effective / noise, around / noise  # what varies more tells less
    fit = _of(given.company, ~flat & (before > 0) & ~given.unlike)
    alike = np.full(m, len(fit) > 0 and not given.along)  # other times of one monitor have other shapes
    for s in shapes if len(fit) else ():
        alike &= np.isclose(s.decay, np.median(s.decay[fit]), rtol=1e-6)  # the same bins are known
    like = fit[alike[fit]]
    of_fleet = [
        _weighted([np.full(m, part[like].sum()) for part in parts], weights, m)
        for parts in ([s.window for s in shapes], [s.before for s in shapes])
    ]
    usual_window = np.where(alike, before * of_fleet[0] / np.maximum(of_fleet[1], 1e-9), window)
    near_events = usual_window / given.bins * _kernel(given).sum() / noise
    chance = (1 / (near_events + 0.5) + 1 / (effective * before + 0.5) + wander) / np.maximum(used, 1)
    window, shaped = _shaped(window, usual_window, chance, like)
    usual = today[fit].sum() / before[fit].sum() if len(fit) else 1.0
    level = usual * (before + 0.5 / effective)
    base = level / effective * (1 + usual / np.maximum(used, 1))
    steady = max(STEADY, overdispersion((today - level)[fit] ** 2, base[fit], level[fit] ** 2, most=1.0))
    moved = ((today - level) ** 2 - base) / level**2  # a holiday moves some, and them far
    moved = np.where(given.unlike, np.fmax(moved, LOOSE), moved)
    prior, counted = 1 / np.maximum(steady, moved), effective * today
    discount = 1 / (1 + effective * level * moves * given.bin / SHORT)
    share = discount * effective * level / (prior + discount * effective * level)
    factor = usual * (prior + discount * counted) / (prior + discount * effective * level)
    drift = 1 / (prior + discount * counted) + np.where(alike, shaped, 1.0) / (around + 0.5)
    by_before = np.where(alike, (1 - shaped - share) ** 2, 0.0)  # the fleet's shape is a multiple of it, less the level
    drift += np.maximum(share, by_before) / (effective * before * np.maximum(used, 1) + 0.5)
    drift += np.where(given.unlike, TREND, 0.0)  # the shape is of another kind of day, too
    expected = np.where(flat, alone.window, factor * window)
    drift = np.where(flat, noise * alone.drift, drift + disagreement)
    known = np.isfinite(expected) & ((used > 0) | (np.isfinite(recent).sum(axis=1) >= LEARNT))
    on_days, shares = np.where(flat | given.unlike, np.nan, usual * window), _shares(weights, m)
    return Expectation(expected, noise, drift + wander, volume, known, shares, names=given.names, on_days=on_days)


@dataclass(frozen=True)
class _Shape:
    """How one day went from the hours before the window to the window."""

    window: Floats
    """Events in the window, had it been that day."""
    before: Floats
    """Events that day in the recent bins, decaying."""
    today: Floats
    """Events today in the same bins, decaying."""
    around: Floats
    """Events that `window` rests on."""
    decay: Floats
    decay2: Floats
    used: Floats
    """1 where the day can be used."""
    profile: Floats
    """(monitors, RECENT + AFTER): events a bin, smoothed; NaN where nothing is known."""
    error: Floats
    """Squared relative error of today's recent bins as that day's, in excess of what chance explains; and its base."""
    error_base: Floats
    error_chance: Floats
    """Standard deviation of `error` by chance."""

    @classmethod
    def of(cls, recent: Floats, day: Floats, decay: Floats, given: References) -> _Shape:
        good, now = np.isfinite(day), np.isfinite(recent)
        events = np.where(good, day, 0.0)
        kernel = _kernel(given)
        covered = good @ kernel
        around = events @ kernel
        both = (good[:, :RECENT] & now) * decay
        used = ((covered >= kernel.sum() / 2) & ((both > 0).sum(axis=1) >= 3)).astype(float)
        before = (events[:, :RECENT] * both).sum(axis=1)
        today = (np.where(now, recent, 0.0) * both).sum(axis=1)
        used *= (before + around >= FEW) | (today < 4 * FEW)  # a day on which it was closed tells no shape
        profile = np.where(used[:, None] > 0, _smooth(day, int(given.near)), np.nan)
        trace = (today / np.maximum(before, 1e-9))[:, None] * profile[:, :RECENT]
        most = np.fmax(trace, recent)
        off = np.where(both > 0, np.minimum((recent - trace) ** 2, ROBUST * (most + 0.1 * most**2)), 0.0)
        excess = np.where(both > 0, off - trace, 0.0)
        rate = (around + 0.5) / np.maximum(covered, 1e-9)
        return cls(
            window=rate * given.bins,
            before=before,
            today=today,
            around=around,
            decay=both.sum(axis=1),
            decay2=(both**2).sum(axis=1),
            used=used,
            profile=profile,
            error=np.nansum(excess, axis=1),
            error_base=np.nansum(np.where(both > 0, trace**2, 0.0), axis=1),
            error_chance=np.sqrt(np.nansum(np.where(both > 0, trace + 2 * trace**2, 0.0), axis=1)),
        )


@dataclass(frozen=True)
class _Alone:
    """What today alone says: the hour before goes on."""

    window: Floats
    rate: Floats
    """Events a bin."""
    drift: Floats

    @classmethod
    def of(cls, recent: Floats, decay: Floats, bins: float) -> _Alone:
        good = np.isfinite(recent)
        weight = good * decay
        size = np.maximum(weight.sum(axis=1), 1e-9)
        effective = size / np.maximum((weight**2).sum(axis=1), 1e-9)
        events = (np.where(good, recent, 0.0) * weight).sum(axis=1)
        rate = np.where(good.any(axis=1), (events + 0.5 / effective) / size, np.nan)
        drift = 1 / (effective * events + 0.5) + TREND * (1 + bins / 12)
        return cls(rate * bins, rate, drift)


def _skill(shapes: Sequence[_Shape], company: npt.NDArray[np.int64]) -> list[Floats]:
    """Weights of the days, by how well each tells today's recent bins: a monitor's own error shrunk to the fleet's.

    A day is better than another only as far as chance does not explain it: few events tell no best day. One that is
    known in part counts as far as it is.
    """
    found, known = [], np.max([s.decay for s in shapes], axis=0, initial=1e-9)
    for s in shapes:
        error, base = s.error[company], s.error_base[company]
        fleet = max(0.0, float(error.sum() / max(base.sum(), 1e-9)))
        typical = np.median(base[base > 0]) if (base > 0).any() else 1.0
        own = (s.error + PRIOR * typical * fleet) / (s.error_base + PRIOR * typical)
        off = SHAPELESS + np.maximum(own, 0.0) + s.error_chance / (s.error_base + PRIOR * typical)
        found.append(s.used * (s.decay / known) / off)
    return found


def _disagreement(shapes: Sequence[_Shape], weights: Sequence[Floats], noise: Floats) -> Floats:
    """Relative variance of what the days say of the window, each at today's level, beyond what chance explains.

    Days that disagree (a shop that opens later on Sundays) tell little of today. 0 with fewer than two days.
    """
    if len(shapes) < 2:
        return np.zeros(len(noise))
    said = np.array([s.today * s.window / np.maximum(s.before, 0.5) for s in shapes])
    chance = np.array([noise * (1 / (s.around + 0.5) + 1 / (s.before + 0.5)) for s in shapes])
    telling = [(s.before >= FEW * noise) & (s.around >= FEW) for s in shapes]  # a closed day tells no shape
    share = _shares([w * t for w, t in zip(weights, telling, strict=True)], len(noise))
    days = 1 / np.maximum((share**2).sum(axis=0), 1e-9)  # how many count (Kish 1965)
    mean = (share * said).sum(axis=0)
    spread = (share * (said - mean) ** 2).sum(axis=0) * days / np.maximum(days - 1, 1e-9) / np.maximum(mean, 0.5) ** 2
    spread -= (share * chance).sum(axis=0)
    return np.where(days > 1.2, np.clip(spread, 0.0, 1.0) * (1 + 1 / days), 0.0)


def _shaped(window: Floats, usual: Floats, chance: Floats, fit: npt.NDArray[np.int64]) -> tuple[Floats, Floats]:
    """The window of other days, shrunk towards the one that the fleet makes `usual`; and how far it is its own.

    The few events of a small monitor are a poor guess of its shape: it is its own only as far as monitors differ in
    theirs by more than `chance`, a relative variance (empirical Bayes). But nothing is moved by more than chance could
    have: a few monitors live by other clocks (limited translation; Efron and Morris 1972).
    """
    telling = fit[usual[fit] >= FEW]
    square, off = usual[telling] ** 2, (window - usual)[telling] ** 2
    differ = overdispersion(off, square * chance[telling], square, most=1.0, guess=DIFFER, weight=PRIOR)
    moved = LIMITED * np.sqrt(chance) * usual / np.maximum(np.abs(window - usual), 1e-9)
    own = np.maximum(differ / (differ + chance), 1 - moved)
    return usual + own * (window - usual), own


def _earlier(recent: Floats, given: References) -> Floats:
    """The recent bins but for those of LATELY, which are not known any more."""
    lately = max(math.ceil(LATELY - given.bins), 0)
    return np.where(np.arange(RECENT) < RECENT - lately - given.bins, recent, np.nan)


def _ratio(values: Floats, usual: Floats) -> Floats:
    """(monitors, 1): all known values, as a multiple of the usual ones; 1 where there are none."""
    known = np.isfinite(values) & np.isfinite(usual)
    total, size = (np.where(known, part, 0.0).sum(axis=1) for part in (values, usual))
    return np.where(size > 0, total / np.maximum(size, 1e-9), 1.0)[:, None]


def _weighted(parts: Sequence[Floats], weights: Sequence[Floats], m: int) -> Floats:
    """The weighted mean over the days that have it; 0 without any."""
    total, size = np.zeros(m), np.zeros(m)
    for part, weight in zip(parts, weights, strict=True):
        total += np.where(weight > 0, weight, 0.0) * np.nan_to_num(part)
        size += weight
    return total / np.maximum(size, 1e-300)


def _traced(shapes: Sequence[_Shape], weights: Sequence[Floats], m: int) -> Floats:
    """(monitors, RECENT): what the days make one expect of today's bins; NaN where none knows one.

    Each bin by the days that know it, at today's level against theirs.
    """
    total = np.zeros((4, m, RECENT))
    for s, weight in zip(shapes, weights, strict=True):
        profile = s.profile[:, :RECENT]
        known = np.where(np.isfinite(profile), weight[:, None], 0.0)
        today, before = ((part + 0.5) / np.maximum(s.decay, 1e-9) for part in (s.today, s.before))
        for i, part in enumerate((1.0, np.nan_to_num(profile), today[:, None], before[:, None])):
            total[i] += known * part
    size, profile, today, before = total
    return (today / np.maximum(before, 1e-9)) * profile / np.where(size > 0, size, np.nan)


def _shares(weights: Sequence[Floats], m: int) -> Floats:
    """The weights of the days, 1 in all."""
    stacked = np.array(weights).reshape(len(weights), m)
    return np.asarray(stacked / np.maximum(stacked.sum(axis=0), 1e-300))


def _of(company: npt.NDArray[np.int64], which: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Those of the company that are such."""
    return np.asarray(company[which[company]])


def _kernel(given: References) -> Floats:
    """How much of each bin of a day lies in the window or near it."""
    edge = np.arange(RECENT + AFTER, dtype=float)
    begin, end = max(RECENT - given.bins - given.near, 0.0), RECENT + given.near
    return np.asarray(np.clip(np.minimum(edge + 1, end) - np.maximum(edge, begin), 0.0, 1.0))


def _smooth(values: Floats, near: int) -> Floats:
    """The mean of each bin and so many before and after it, as far as they are known; NaN where none is."""
    good = np.isfinite(values)
    total, size = (sum(_beside(part, near)) for part in (np.where(good, values, 0.0), good.astype(float)))
    return np.asarray(total / np.where(size > 0, size, np.nan))


def _beside(values: Floats, near: int) -> list[Floats]:
    """Each bin's neighbours, `near` before it to as many after it, 0 beyond the ends; faster than sliding windows."""
    padded = _padded(values, near, near)
    return [padded[:, i : i + values.shape[1]] for i in range(2 * near + 1)]


def _padded(values: npt.NDArray[T], before: int, after: int) -> npt.NDArray[T]:
    """With so many 0 before and after the bins; np.pad takes longer than what is done with them."""
    padded = np.zeros((len(values), before + values.shape[1] + after), dtype=values.dtype)
    padded[:, before : before + values.shape[1]] = values
    return padded


def _noise(off: Floats, mean: Floats, square: Floats, given: References) -> tuple[Floats, float, Floats]:
    """Each monitor's noise, the fleet's `floor` and its segment's `phi`.

    The variance is noise x (floor x mean + phi x square). The smaller bins tell the floor: 1 for a Poisson count, more
    where an order counts in the bin after its session's, or where each event is a sum of money. The larger ones then
    tell `phi`.
    """
    good = np.isfinite(off) & (mean > 0.05)
    telling = np.zeros_like(good)
    telling[given.company] = (good & (mean >= 3))[given.company]
    if telling.any():
        small = telling & (mean <= np.median(mean[telling]))
        floor = float(_robust_mean((off[small] ** 2 / mean[small])[None, :], 1.0)[0])
    else:
        floor = 1.0
    residuals = off[telling] ** 2, floor * mean[telling], square[telling]
    phi = _by_segment(*residuals, given.segment[np.nonzero(telling)[0]], given)
    squares = np.where(good, off**2 / (floor * mean + phi[:, None] * square), 0.0)
    count = APART * good.sum(axis=1)
    raw = APART * np.minimum(squares, BURST).sum(axis=1)
    noise = np.maximum((raw + ALIKE) / (count + ALIKE), 1.0)
    wild = np.flatnonzero(raw > WILD * count)  # by more than chance: the fleet does not tell
    noise[wild] = _robust_mean(squares[wild], raw[wild] / count[wild], count[wild], FEW)
    return noise, floor, phi


def _by_segment(
    squares: Floats,
    base: Floats,
    scale: Floats,
    segment: npt.NDArray[np.uint16],
    given: References,
    guess: float = 0.0,
    weight: float = 0,
) -> Floats:
    """(monitors,): the `phi` of each monitor's segment, shrunk to the fleet's, of residuals of some `segment`s.

    The fleet's is shrunk to a `guess`, which weighs as much as `weight` residuals.
    """
    usual = overdispersion(squares, base, scale, most=1.0, guess=guess, weight=weight)
    groups = int(given.segment.max(initial=0)) + 1
    if groups == 1:
        return np.full(len(given.segment), usual)
    each = overdispersions(squares, base, scale, segment, groups, most=1.0, guess=usual, weight=TOGETHER)
    return each[given.segment]


def _robust_mean(
    squares: Floats, first: Floats | float, count: Floats | None = None, usual: float = 0.0
) -> npt.NDArray[np.float64]:
    """Of each row, at least 1: each square counts up to BURST times the row's mean; 1 counts `usual` times more."""
    size = squares.shape[1]
    own = np.full(len(squares), first, dtype=float)
    each = np.ones(len(squares)) if count is None else count / max(size, 1)
    total = each * size + usual
    for _ in range(25):
        cut = np.minimum(squares, BURST * own[:, None]).sum(axis=1)
        own = np.maximum((each * cut + usual) / np.maximum(total, 1e-9), 1.0)
    return own


def _kept(bins: float, given: References) -> float:
    """What a day, smoothed, keeps of its variance by chance in a window of so many `bins`: from 0 to 1."""
    size = 2 * int(given.near) + 1
    whole = max(round(bins), 1)
    weights = np.convolve(np.ones(whole), np.full(size, 1 / size))
    return float((weights**2).sum() / whole * min(bins, 1.0))


def _at_width(given: References, off: Floats, mean: Floats, floor: float, phi: Floats, of_days: Floats) -> Floats:
    """(monitors,): its segment's `phi` of windows as long as this one, from past ones around the recent level.

    That level has chance of its own, by the other days: `of_days` times what a window's would be, were they not
    smoothed. It is counted where the window is expected, and must not pass for what today's level wanders.
    """
    width = given.bins
    if given.bins < 1:
        past = given.previous[0]
        each = _stretched(mean, past.shape[1], given.bins) * given.bins
        last = min(round(LATELY / given.bins) - 1, past.shape[1] // 2)
        off, mean, kept = (past - each)[:, : past.shape[1] - last], each[:, : past.shape[1] - last], 1.0
    else:
        known = np.isfinite(off).any(axis=0)
        off, mean = off[:, known], mean[:, known]
        join = max(1, min(round(given.bins), off.shape[1] // 3))
        off, mean, width = _joined(off, join), _joined(mean, join), float(join)
        kept = 1 - 1 / max(off.shape[1], 2)  # the level was fitted to the same bins
    chance = mean * (1 + of_days * _kept(width, given))[:, None]
    segment = np.broadcast_to(given.segment[:, None], off.shape)[given.company]
    off, mean, chance = off[given.company], mean[given.company], chance[given.company]
    telling = np.isfinite(off) & (mean >= 3)
    residuals = off[telling] ** 2 / kept, floor * chance[telling], mean[telling] ** 2
    return _by_segment(*residuals, segment[telling], given, guess=float(np.mean(phi)), weight=5 * PRIOR)


def _stretched(mean: Floats, count: int, bins: float) -> Floats:
    """Events a bin at each of the `count` windows of `bins` just before the current one."""
    back = np.arange(count, 0, -1) * bins + bins / 2
    column = np.clip(np.floor(RECENT - back).astype(int), 0, RECENT - 1)
    return mean[:, column]


def _joined(values: Floats, join: int) -> Floats:
    count = values.shape[1] // join
    return np.asarray(values[:, values.shape[1] - count * join :].reshape(len(values), count, join).sum(axis=2))


def _rates(given: References) -> Expectation:
    hits, trials, _, _ = _pools(given)
    days = _RateDays.of(given, hits, trials)
    other_hits, other_trials = days.hits, days.trials
    shares = list(days.shares)
    for value, exposure in given.model:
        forecast = np.nansum(value, axis=1), np.nansum(exposure, axis=1)
        trust = _trust((hits, trials), (other_hits, other_trials), forecast)
        other_hits, other_trials = other_hits + trust * forecast[0], other_trials + trust * forecast[1]
        shares.append(trust * forecast[1])
    of_all = [float(total[given.company].sum()) for total in (hits, other_hits, trials, other_trials)]
    fleet = float(np.clip(sum(of_all[:2]) / max(sum(of_all[2:]), 1.0), 1e-6, 1 - 1e-6))
    off, size, square = _share_residuals(given, days)
    noise, floor, phi = _noise(off, size, square, given)
    wander, noise = noise * phi, max(floor, _unpaired(given, hits, trials)) * noise
    volume = trials + other_trials
    hits, other_hits = np.minimum(hits, trials), np.minimum(other_hits, other_trials)
    hits, trials, other_hits, other_trials = (x / noise for x in (hits, trials, other_hits, other_trials))
    usual = (other_hits + PRIOR * fleet) / (other_trials + PRIOR)
    variance = usual * (1 - usual)
    telling = _of(given.company, (trials * variance >= FEW) & (other_trials * variance >= FEW))
    moved = (hits / np.maximum(trials, 1e-9) - usual) ** 2
    base = variance * (1 / np.maximum(trials, 1e-9) + 1 / (other_trials + PRIOR))
    steady = max(LIKELY, overdispersion(moved[telling], base[telling], variance[telling], most=1.0))
    own = np.fmax(np.where(given.unlike, 1 / PRIOR, steady), (moved - base) / variance)
    prior = np.where(other_trials > 0, 1 / (own + 1 / (other_trials + PRIOR)), PRIOR)
    discount = 1 / (1 + trials * steady / 2)
    level = (prior * usual + discount * hits) / (prior + discount * trials)
    level = np.clip(special.expit(special.logit(np.clip(level, 1e-6, 1 - 1e-6)) + days.moved), 1e-6, 1 - 1e-6)
    drift = 1 / (prior + discount * trials) + level * (1 - level) * days.unsure + wander
    weights = _shares(shares, len(trials))
    return Expectation(level, noise, drift, volume, np.asarray(volume >= PRIOR), weights, names=given.names)


@dataclass(frozen=True)
class _RateDays:
    """What the other days say of a rate: its usual level in the recent bins, and how it moves from there to the window.

    The move is one of log odds, a monitor's own shrunk to the fleet's (as in `_shaped`): a conversion that is higher in
    the evening is so every evening. Days count by how well each tells today's recent bins (as in `_skill`).
    """

    hits: Floats
    """In all bins, those at the window's time of day as if they were of the level before."""
    trials: Floats
    shares: Floats
    """(days, monitors): the trials that each day brings."""
    levels: tuple[tuple[Floats, Floats], ...]
    """Of each day the rate before the window's time of day, and from then on."""
    begin: int
    """The bin that is the first of that time."""
    moved: Floats
    """By how much the log odds are higher at the window's time of day than before."""
    unsure: Floats
    """Variance of that."""

    @classmethod
    def of(cls, given: References, hits: Floats, trials: Floats) -> _RateDays:
        begin, end = max(int(RECENT - given.bins - given.near), 1), RECENT + max(int(given.near), 1)
        parts = [
            [np.nansum(part[:, where], axis=1) for where in (slice(begin), slice(begin, end)) for part in day]
            for day in given.days
        ]
        if not parts:
            zero = np.zeros(len(hits))
            return cls(zero, zero, np.zeros((0, len(hits))), (), begin, zero, zero)
        before_hits, before, near_hits, near = np.array(parts).swapaxes(0, 1)  # (days, monitors) each
        weights = _rate_skill(before_hits, before, hits, trials, given.company)
        mean = [(weights * part).sum(axis=0) for part in (before_hits, before, near_hits, near)]
        moved, unsure = _rate_moves((mean[0], mean[1]), (mean[2], mean[3]), given.company)
        late_hits, late = (np.array([np.nansum(day[i][:, begin:], axis=1) for day in given.days]) for i in range(2))
        rates = _share(before_hits, before), _share(late_hits, late)
        counted = before_hits + late_hits * special.expit(special.logit(rates[1]) - moved) / rates[1]
        shares = weights * (before + late)
        return cls(
            hits=(weights * counted).sum(axis=0),
            trials=shares.sum(axis=0),
            shares=shares,
            levels=tuple(zip(*rates, strict=True)),
            begin=begin,
            moved=moved,
            unsure=unsure,
        )


def _share(hits: Floats, trials: Floats) -> Floats:
    """Of hits among trials, never 0 or 1: also where orders of sessions before make more of them than there are."""
    return np.asarray((np.minimum(hits, trials) + 0.5) / (trials + 1))


def _log_odds(hits: Floats, trials: Floats) -> Floats:
    """Of a rate, hardly biased where there are few (Haldane 1956; Anscombe 1956)."""
    return np.asarray(np.log((hits + 0.5) / (np.maximum(trials - hits, 0.0) + 0.5)))


def _rate_skill(
    day_hits: Floats, day_trials: Floats, hits: Floats, trials: Floats, company: npt.NDArray[np.int64]
) -> Floats:
    """(days, monitors): 1 for the day that tells today's recent bins best, less for the others; by chance alone 1."""
    now, usual = (hits + 0.5) / (trials + 1), (day_hits + 0.5) / (day_trials + 1)
    variance = np.maximum(usual * (1 - usual), 1e-9)
    chance = 1 / np.maximum(trials, 1.0) + 1 / np.maximum(day_trials, 1.0)
    size = 1 / chance
    error = (now - usual) ** 2 / variance - chance
    known = size[:, company]
    fleet = (known * error[:, company]).sum(axis=1, keepdims=True) / np.maximum(known.sum(axis=1, keepdims=True), 1e-9)
    fleet = np.maximum(fleet, 0.0)
    own = np.maximum((size * error + PRIOR * fleet) / (size + PRIOR), 0.0) + LIKELY + chance
    return np.asarray(own.min(axis=0) / own)


def _rate_moves(
    before: tuple[Floats, Floats], near: tuple[Floats, Floats], company: npt.NDArray[np.int64]
) -> tuple[Floats, Floats]:
    """How far the log odds of each monitor are higher at the window's time of day than before, and the variance of it.

    `before` and `near` are the hits and trials of the other days.

    Its own is shrunk to the fleet's by as much as those of monitors differ beyond chance (empirical Bayes).
    """
    moved = _log_odds(*near) - _log_odds(*before)
    rate = (before[0] + near[0] + 0.5) / (before[1] + near[1] + 1)
    chance = (1 / (before[1] + 1) + 1 / (near[1] + 1)) / np.maximum(rate * (1 - rate), 1e-6)
    usual = float(np.clip(before[0][company].sum() / max(before[1][company].sum(), 1.0), 1e-6, 1 - 1e-6))
    telling = _of(company, np.minimum(before[1], near[1]) * usual * (1 - usual) >= FEW)
    if not len(telling):
        return np.zeros_like(moved), np.zeros_like(moved)
    weight = 1 / (chance[telling] + DIFFER)
    fleet, sure = float((weight * moved[telling]).sum() / weight.sum()), float(1 / weight.sum())
    fleet *= fleet**2 / (fleet**2 + sure)  # next to nothing is nothing
    square = (moved[telling] - fleet) ** 2
    differ = overdispersion(square, chance[telling], np.ones(len(telling)), most=1.0, weight=5 * PRIOR)
    own = differ / (differ + chance)
    return fleet + own * (moved - fleet), own * chance + sure


def _unpaired(given: References, hits: Floats, trials: Floats) -> float:
    """The noise of windows shorter than a bin, times what chance says, by those just before, of the whole fleet.

    An order comes after its session: the shorter the window, the more of its orders are of sessions before it. Of two
    independent counts the variance is (1 + rate) / (1 - rate) times the binomial one.
    """
    if given.bins >= 1:
        return 1.0
    value, exposure = (part[given.company] for part in given.previous)
    level = ((hits + 0.5) / (trials + 1))[given.company, None]
    off, known = value - exposure * level, np.isfinite(exposure)
    usual = np.where(known, exposure, 0.0).sum(axis=1) / np.maximum(known.sum(axis=1), 1)
    size = usual[:, None] * level * (1 - level)  # not a window's own: those with more sessions have fewer orders each
    telling = np.isfinite(off) & (size >= 1)
    return float(_robust_mean((off**2 / size)[telling][None, :], 1.0)[0]) if telling.any() else 1.0


def _trust(now: tuple[Floats, Floats], days: tuple[Floats, Floats], forecast: tuple[Floats, Floats]) -> Floats:
    """How far a forecast rate is as good as a day, 0 to 1: by how far each is off what was seen, beyond chance."""
    seen, usual, told = ((hits + 0.5) / (trials + 1) for hits, trials in (now, days, forecast))
    variance = np.maximum(usual * (1 - usual), 1e-9)
    chance = variance * (LIKELY + 1 / np.maximum(now[1], 1.0))
    off_days, off = (np.maximum((seen - rate) ** 2 - chance, 0.0) for rate in (usual, told))
    alone = days[1] < PRIOR  # without days there is nothing to be worse than
    trust = np.where(alone, 1.0, np.minimum((chance + off_days) / (chance + off), 1.0))
    return np.asarray(np.where(forecast[1] > 0, trust, 0.0))


def _pools(given: References) -> tuple[Floats, Floats, Floats, Floats]:
    """Value and exposure of all recent bins, and of the same of all days. Of a single bin only without a like day."""
    m = len(given.recent[0])
    value, exposure = (np.nansum(part, axis=1) for part in given.recent)
    others = [[np.nansum(part, axis=1) for part in day] for day in given.days]
    zero = np.zeros(m)
    other_value, other_exposure = (sum((o[i] for o in others), zero) for i in range(2))
    single = (np.isfinite(given.recent[1]).sum(axis=1) == 1) & (other_exposure > 0) & ~given.unlike
    return np.where(single, 0.0, value), np.where(single, 0.0, exposure), other_value, other_exposure


def _share_residuals(given: References, days: _RateDays) -> tuple[Floats, Floats, Floats]:
    """Hits beyond the level of today or of a day, bin by bin; their binomial variance; that times the trials."""
    value, exposure = (_earlier(part, given) for part in given.recent)
    today = _share(np.nansum(value, axis=1), np.nansum(exposure, axis=1))[:, None]
    later = np.arange(RECENT + AFTER) >= days.begin
    levels = [today, *(np.where(later, after[:, None], before[:, None]) for before, after in days.levels)]
    parts = [
        (value - exposure * level, exposure * level * (1 - level), exposure**2 * level * (1 - level))
        for (value, exposure), level in zip(((value, exposure), *given.days), levels, strict=True)
    ]
    off, variance, square = (np.concatenate(part, axis=1) for part in zip(*parts, strict=True))
    return off, variance, square


def _means(given: References) -> Expectation:
    total, size, other_total, other_size = _pools(given)
    now, usual = total / size, other_total / other_size
    parts = [(*given.recent, now), *((*day, usual) for day in given.days)]
    chi2, df = np.zeros(len(now)), np.zeros(len(now))
    for value, exposure, level in parts:
        good = np.isfinite(value) & (exposure > 0) & np.isfinite(level)[:, None]
        chi2 += np.where(good, (value - exposure * level[:, None]) ** 2 / np.maximum(exposure, 1e-300), 0).sum(axis=1)
        df += np.maximum(good.sum(axis=1) - 1, 0)
    one = np.where(df >= 3, chi2 / np.maximum(df, 1), np.nan)
    both = _of(given.company, np.isfinite(now) & np.isfinite(usual) & np.isfinite(one))
    moved, base = (now - usual) ** 2, one * (1 / size + 1 / other_size)
    square = usual**2
    steady = max(LIKELY, overdispersion(moved[both], base[both], square[both], most=1.0))
    recent = np.where(np.isfinite(now), 1 / (one / size + steady / 2 * now**2), 0.0)
    loose = np.where(given.unlike, LOOSE, steady)
    days = np.where(np.isfinite(usual), 1 / (one / other_size + loose * square), 0.0)
    level = (np.nan_to_num(now) * recent + np.nan_to_num(usual) * days) / (recent + days)
    drift = 1 / (recent + days) / level**2
    weights = _shares([np.nansum(exposure, axis=1) for _, exposure in given.days], len(now))
    known = np.isfinite(level) & np.isfinite(one)
    return Expectation(
        level, one, drift, size + other_size, known, weights, np.maximum(df, 1.0), given.names[: len(weights)]
    )
