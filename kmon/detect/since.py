"""What was to be expected of a monitor since some time, by what was known then.

    before its bin   today's bins tell the level, as in a sweep at that time
    from then on     the other days tell how it would have gone on; today's bins tell nothing

An incident outlasts the references of a sweep, which look back two hours: what it costs is told by this.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from kmon.clock import floor
from kmon.config import Config
from kmon.config.bins import bin_for
from kmon.detect.calendar import Calendar
from kmon.detect.cube import Cube
from kmon.detect.expect import AFTER, NEAR, RECENT, expect
from kmon.detect.fleet import DAY, DAYS, Mask
from kmon.detect.series import leave_unlike, unspoilt
from kmon.store import Span, Store
from kmon.store.sql import Where

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def expected_since(
    store: Store,
    config: Config,
    measures: Sequence[str],
    where: Where,
    start: dt.datetime,
    end: dt.datetime,
    *,
    masks: Sequence[Mask] = (),
    cube: Cube | None = None,
) -> dict[str, float]:
    """What was to be expected of some measures of one monitor in all of [start, end).

    The expectation of a sweep (`kmon.detect.expect`), bin by bin: the level is that of the bins before `start`, the
    shape that of the other days, comparable ones first and none inside `masks`. A measure of which too little is known
    is left out. One question to the store, or none where `cube` has it.
    """
    bin_ = bin_for(config.windows)
    within = floor(start, bin_)
    n = -((within - end) // bin_)
    along = Calendar(config, store).along(where, [within + (i + 1) * bin_ for i in range(n)], DAYS)
    begin, oldest = within - RECENT * bin_, store.oldest() or start
    spans, later = [Span("today", begin, RECENT, bin_)], {}
    for days in DAYS:
        first, count = begin - days * DAY, RECENT + n + AFTER
        if n and first + count * bin_ > oldest:
            shifts = np.array([round(by / bin_) for by in along.later[days]], dtype=np.int64)
            low, high = min(0, int(shifts.min())), max(0, int(shifts.max()))
            spans.append(Span(f"day{days}", first + low * bin_, count + high - low, bin_))
            later[days] = shifts - low
    rows = _sums(store, cube, spans, where, measures)
    starts = np.array([span.start + i * bin_ for span in spans for i in range(span.count)], dtype=object)
    part = np.ones(n)  # of each bin
    part[:1] -= (start - within) / bin_
    part[-1:] -= (within + n * bin_ - end) / bin_
    found = {}
    for measure in measures:
        known = unspoilt(starts, bin_, masks, where) & (starts >= oldest).astype(bool)
        if (since := store.schema.known_from(measure, *where)) is not None:
            known &= (starts >= since).astype(bool)
        values = np.zeros(len(starts))
        values[rows["slot"].to_numpy()] = rows[measure].fill_null(0).to_numpy()
        parts = np.split(np.where(known, values, np.nan), np.cumsum([span.count for span in spans])[:-1])
        like = {days: along.like[days] for days in later}
        levels = expect(_input(parts, later, like, n, bin_.total_seconds()), "count").level
        if n and np.isfinite(levels).all():
            found[measure] = float(levels @ part)
    return found


def _sums(
    store: Store, cube: Cube | None, spans: Sequence[Span], where: Where, measures: Sequence[str]
) -> pl.DataFrame:
    """`slot`, over all spans in their order, and the measures of all that match `where`."""
    there, first = [], 0
    for span in spans:
        cells = None if cube is None else cube.cells(store, span, [], measures, where)
        if cells is None:
            return store.windows(spans, [()], where, measures=set(measures))
        there.append(cells.with_columns(pl.col("slot") + first))
        first += span.count
    return pl.concat(there).group_by("slot").agg(pl.col(measures).sum())


def _input(
    parts: Sequence[Floats],
    later: Mapping[int, Ints],
    like: Mapping[int, npt.NDArray[np.bool_]],
    n: int,
    seconds: float,
) -> pl.DataFrame:
    """The detectors' input for each of the `n` bins after a start, as if it came right after the bins before that.

    The bins next to it, which are the same time of day, stay its own: today they are not known. `parts` are the bins
    of today and of each day; `later` says by how many bins a day lies later, `like` whether it is comparable.
    """
    place, number = np.arange(RECENT + AFTER), np.arange(n)[:, None]
    bins = place + 1 + np.where(place >= RECENT - 1 - NEAR, number, np.minimum(number, NEAR))
    today, recent = parts[0], bins[:, :RECENT]
    values = {"recent": np.where(recent < RECENT, today[np.minimum(recent, RECENT - 1)], np.nan)}
    values |= {f"day{d}": part[bins + by[:, None]] for (d, by), part in zip(later.items(), parts[1:], strict=True)}
    columns: dict[str, Any] = {f"{name}_value": bins_ for name, bins_ in values.items()}
    columns |= {f"{name}_exposure": np.where(np.isfinite(bins_), 1.0, np.nan) for name, bins_ in values.items()}
    unlike = leave_unlike(columns, like, n)
    return pl.DataFrame({**columns, "unlike": unlike, "along": True}).with_columns(
        width=pl.lit(seconds), bin=pl.lit(seconds)
    )
