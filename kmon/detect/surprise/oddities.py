"""What may be odd about the newest point of a series: five distances from what came before it, none of them negative.

Each works on a regular grid (NaN where nothing was measured), uses the past only, is proportional to the series'
scale, and is NaN where it cannot be told. What they are in multiples of is for `peaks` to say.
"""

from __future__ import annotations

import warnings

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy import ndimage

Floats = npt.NDArray[np.float64]


def level(x: Floats, span: float) -> Floats:
    """The exponentially weighted mean up to the point before (Roberts 1959); a gap ages it as time does."""
    mean = pl.Series(x).fill_nan(None).ewm_mean(span=span, ignore_nulls=False).forward_fill(round(span))
    return before(mean.cast(pl.Float64).fill_null(np.nan).to_numpy())


def before(x: Floats) -> Floats:
    """The value one point earlier."""
    return _back(x, 1)


def same_time(x: Floats, day: int, days: int) -> Floats:
    """The median over the last `days` days, of `day` points each, of the value at the same time; NaN without any."""
    past = np.sort([_back(x, back * day) for back in range(1, days + 1)], axis=0)  # NaN comes last
    known = np.count_nonzero(~np.isnan(past), axis=0)
    middle = [np.maximum(known - 1, 0) // 2, np.minimum(known // 2, days - 1)]
    low, high = (np.take_along_axis(past, index[None], axis=0)[0] for index in middle)
    return np.asarray((low + high) / 2)


def jump(residual: Floats) -> Floats:
    """How far the point lies from the level."""
    return np.abs(residual)


def fluctuation(residual: Floats, window: int) -> Floats:
    """By how much the point widens the spread of the last `window` residuals (the first step of FluxEV, Li 2021)."""
    panes = _panes(residual, window + 1)
    with warnings.catch_warnings():  # a window without a value has no spread
        warnings.simplefilter("ignore", RuntimeWarning)
        wider = np.nanstd(panes, axis=1) - np.nanstd(panes[:, :-1], axis=1)
    return np.where(np.isnan(residual), np.nan, np.maximum(wider, 0))


def shift(x: Floats, usual: Floats, held: int) -> Floats:
    """The least distance of the last `held` points from the level before them, if all lie on one side of it.

    `usual` is the level before each point.
    """
    panes = _panes(x, held) - _back(usual, held - 1)[:, None]
    return np.asarray(np.maximum(0, np.maximum(panes.min(axis=1), -panes.max(axis=1))))


def departure(x: Floats, window: int) -> Floats:
    """How far the point lies from the median of the `window` points before it."""
    median = pl.Series(x).fill_nan(None).rolling_median(window, min_samples=max(1, window // 6))
    return np.abs(x - before(median.cast(pl.Float64).fill_null(np.nan).to_numpy()))


def excursion(x: Floats, day: int, days: int, slack: int) -> Floats:
    """How far the point lies outside of what the last `days` days, of `day` points each, showed around this time.

    The range of a day is that of the `slack` points to either side of the time; the medians of the days' ends bound
    what is usual, so that one odd day does not. Nothing is said before the third day.
    """
    slack = min(slack, day - 1)
    high = same_time(_widest(x, slack), day, days)
    low = -same_time(_widest(-x, slack), day, days)
    outside = np.maximum(np.maximum(x - high, low - x), 0)
    outside[: 2 * day] = np.nan
    return outside


def unusual(oddity: Floats, day: int, days: int, slack: int) -> Floats:
    """What of an oddity does not recur at its time of day (the second step of FluxEV, with a median over the days).

    The median rather than FluxEV's maximum: an incident that was there yesterday does not excuse today's.
    """
    usual = same_time(_widest(oddity, min(slack, day - 1)), day, days)
    return np.maximum(oddity - np.nan_to_num(usual), 0)


def _back(x: Floats, by: int) -> Floats:
    """The value `by` points earlier."""
    return np.concatenate([np.full(min(by, len(x)), np.nan), x[: max(0, len(x) - by)]])


def _panes(x: Floats, width: int) -> Floats:
    """A row for each point: the `width` values up to it."""
    return np.lib.stride_tricks.sliding_window_view(np.concatenate([np.full(width - 1, np.nan), x]), width)


def _widest(x: Floats, slack: int) -> Floats:
    """The maximum over the `slack` points to either side."""
    found = ndimage.maximum_filter1d(np.where(np.isnan(x), -np.inf, x), 2 * slack + 1, mode="constant", cval=-np.inf)
    return np.where(np.isinf(found), np.nan, found)
