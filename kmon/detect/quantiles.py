"""Quantiles of counts in buckets, and the share of events by which detectors judge them.

    references  ►  the edge beyond which a share of 1 - q usually lies  ►  a rate: events beyond it, of all
    a rate's scores  ►  how far the odds of every number moved with it  ►  scores in the number's own unit

How far a quantile of few events is off by chance depends on how dense events are around it; how many of them lie beyond
a fixed point is binomial. So the test is that of a rate, exact as any other, and only what people see is a quantile.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import polars as pl

from kmon.config import Histogram, Metric

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
CHANGE = 0.3
"""Least relative fall and rise of a quantile worth telling, unless its metric says otherwise."""
LEAST = 1e-3
"""The noise of a share is taken no nearer to 0 or 1,"""
CERTAIN = 1e-9
"""and they themselves no nearer than this."""


def value_of(metric: Metric, sums: Sequence[Floats]) -> Floats:
    """What a metric is, of the sums of its `measures`, in their order; NaN where nothing was that it is a part of."""
    with np.errstate(all="ignore"):
        if metric.kind == "quantile":
            return quantile(np.stack(sums, axis=-1), metric)
        return sums[0] if len(sums) == 1 else np.asarray(sums[0] / sums[1])


def quantile(counts: Floats, metric: Metric) -> Floats:
    """The metric's quantile of (..., measures) counts, between the ends of the histogram; NaN without events.

    Inside a bucket events lie evenly by the logarithm of their number.
    """
    events = counts[..., 0]
    found = _number(metric.histogram, _position(_tails(counts), (1 - _q(metric)) * events))
    return np.where(events > 0, found, np.nan)


def beyond(counts: Floats, histogram: Histogram, number: float) -> Floats:
    """How many of (..., measures) counted events lie above `number`, those of its own bucket in part."""
    tails = _tails(counts)
    place = np.log(number / histogram.low) / np.log(histogram.ratio)
    place = float(np.clip(place, 0.0, tails.shape[-1] - 1))
    edge = min(int(place), tails.shape[-1] - 2)
    return np.asarray(tails[..., edge] + (place - edge) * (tails[..., edge + 1] - tails[..., edge]))


def nearest_edges(reference: Floats, metric: Metric) -> Ints:
    """Of (monitors, measures) counts: the edge beyond which the share of events is nearest to 1 - q, by its odds."""
    share = (_tails(reference) + 0.5) / (reference[:, :1] + 1)
    return np.asarray(np.abs(_odds(share) - _odds(1 - _q(metric))).argmin(axis=1))


def in_its_unit(scores: pl.DataFrame, windows: pl.DataFrame, metric: Metric) -> pl.DataFrame:
    """What a detector said of the share beyond an edge, as numbers of the quantile itself.

    What was observed is the quantile of the window. A share that was expected stands for the number at which the
    reference distribution has come to 1 - q, were the odds to lie beyond every number changed as much as those to lie
    beyond the edge (proportional odds, McCullagh 1980). A quantile is normal where the odds are not further off than
    the interval of the share is wide: by the slope of their logarithm, and for a share of 1 - q instead of that beyond
    the edge, which is as noisy otherwise. The change worth telling is the quantile's.
    """
    reference, current = (windows[name].to_numpy() for name in ("reference", "current"))
    share, lower, upper = (scores[name].to_numpy() for name in ("expected", "lower", "upper"))
    with np.errstate(all="ignore"):
        tails = _tails(reference) / reference[:, :1]
        usual = np.take_along_axis(tails, windows["edge"].to_numpy()[:, None], axis=1)[:, 0]
        moved = _odds(share) - _odds(usual)
        inside, q = np.clip(share, LEAST, 1 - LEAST), _q(metric)
        half = np.fmax(upper - share, share - lower)  # one end may be cut off at 0 or 1
        wide = half / np.sqrt(inside * (1 - inside) * q * (1 - q))

        def number(odds: Floats) -> Floats:
            target = np.clip(1 / (1 + np.exp(odds - _odds(1 - _q(metric)))), CERTAIN, 1 - CERTAIN)
            known = np.isfinite(odds) & (reference[:, 0] > 0)
            return np.where(known, _number(metric.histogram, _position(tails, target)), np.nan)

        observed, expected = quantile(current, metric), number(moved)
        effect = observed / expected - 1
        fall, rise = (CHANGE if own is None else own for own in (metric.min_effect, metric.min_rise))
        enough = np.where(scores["direction"].to_numpy() == "down", effect <= -fall, effect >= rise)
    return scores.with_columns(
        observed=pl.Series(observed),
        expected=pl.Series(expected),
        lower=pl.Series(number(moved - wide)),
        upper=pl.Series(number(moved + wide)),
        effect=pl.Series(effect),
        notable=pl.col("notable") & pl.Series(enough, dtype=pl.Boolean),
    )


def _q(metric: Metric) -> float:
    return metric.q or 0.5


def _tails(counts: Floats) -> Floats:
    """(..., edges): how many events lie above each edge."""
    return np.asarray(np.cumsum(counts[..., :0:-1], axis=-1)[..., ::-1])


def _position(tails: Floats, target: Floats) -> Floats:
    """Where the tails have come down to `target`, in buckets above the lowest edge, within the edges."""
    last = tails.shape[-1] - 1
    reached = (tails > target[..., None]).sum(axis=-1)
    edges = np.clip(np.stack([reached - 1, reached], axis=-1), 0, last)
    high, low = np.moveaxis(np.take_along_axis(tails, edges, axis=-1), -1, 0)
    part = np.where(high > low, (high - target) / np.maximum(high - low, 1e-300), 0.0)
    return np.where(reached == 0, 0.0, edges[..., 0] + part)


def _number(histogram: Histogram, position: Floats) -> Floats:
    return np.asarray(histogram.low * histogram.ratio**position)


def _odds(share: Floats | float) -> Floats:
    """Their logarithm."""
    inside = np.clip(share, CERTAIN, 1 - CERTAIN)
    return np.asarray(np.log(inside / (1 - inside)))
