"""The past of the monitors that deserve it, in steps: what models are fitted to, and series detectors look at.

`chosen` says which they are, by `models:` in kmon.yaml.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import polars as pl

from kmon.config import Config
from kmon.detect.calendar import Calendar
from kmon.detect.fleet import DAY, Mask, naive
from kmon.detect.models import LEAST, STEP
from kmon.store import Span, Store
from kmon.store.schema import EVENTS

Floats = npt.NDArray[np.float64]
Scope = dict[str, str]
A_QUESTION = 20_000_000
"""Events of the days that one question is about, as far as these are several."""
AT_ONCE = 7
"""Days that it is about at most."""


def chosen(config: Config, store: Store, end: dt.datetime) -> list[Scope]:
    """The configured monitors, then the largest of the day before `end` that have enough events to be worth it."""
    found = [dict(scope) for scope in config.models.monitors]
    if not config.models.largest:
        return found
    sets = [grouping for grouping in config.watch if grouping]
    rows = store.windows([Span("day", end - DAY, 1, DAY)], [*sets, ()], None, LEAST, [EVENTS])
    rows = rows.filter(pl.col(EVENTS) >= LEAST)
    if () not in config.watch:
        rows = rows.filter(pl.col("set") < len(sets))
    dimensions = [d for d in store.schema.dimensions if d in rows.columns]
    largest = rows.sort(EVENTS, *dimensions, descending=[True, *(False for _ in dimensions)])
    for row in largest.head(config.models.largest).iter_rows(named=True):
        scope = {d: store.names(d, [row[d]])[row[d]] for d in dimensions if row[d] is not None}
        if scope not in found:
            found.append(scope)
    return found


class Past:
    """Reads series in steps, a day or a few at a time: no question to the store takes long."""

    def __init__(
        self, store: Store, config: Config, masks: Sequence[Mask], start: dt.datetime, end: dt.datetime
    ) -> None:
        """Of [start, end); `masks` are the known incidents, and the calendar of `config` has what is the new normal."""
        self.start, self.end = start, end
        self._store, self._steps = store, (end - start) // STEP
        self._masks, self._shifts = masks, config.calendar.shifts
        self._calendar = Calendar(config, store)
        self._days = 1
        self._everything = self._measures({})
        a_day = self._everything[EVENTS].sum() / ((end - start) / DAY)
        self._days = int(np.clip(A_QUESTION / max(a_day, 1.0), 1, AT_ONCE))
        self._recorded = self._everything[EVENTS] > 0
        self._recorded &= self._starts() >= naive(store.oldest() or start)  # history begins within a step

    @property
    def times(self) -> Floats:
        """Where the steps begin, in epoch seconds."""
        return np.asarray(self.start.timestamp() + np.arange(self._steps) * STEP.total_seconds())

    def read(self, scope: Scope, newest: int = 0) -> dict[str, Floats]:
        """All measures of a monitor; NaN where nobody had an event, in a known incident, and before it was counted.

        The `newest` steps are told in a known incident too: they are judged, and no reference.
        """
        values = self._measures(scope) if scope else self._everything
        unspoilt, starts = self._unspoilt(scope), self._starts()
        unspoilt[self._steps - newest :] = True
        known = self._recorded & unspoilt
        schema = self._store.schema
        if scope and (since := schema.known_from(*scope)) is not None:
            known &= starts >= naive(since)
        found = {}
        for measure, steps in values.items():
            since = schema.known_from(measure)
            counted = known if since is None else known & (starts >= naive(since))
            found[measure] = np.where(counted, steps, np.nan)
        return found

    def special_days(self, scope: Scope, horizon: int) -> set[dt.date]:
        """The holidays and days of events of a monitor, in the past and in the `horizon` steps after it."""
        return self._calendar.special_days(scope, self.start.date(), (self.end + horizon * STEP).date())

    def _starts(self) -> npt.NDArray[np.datetime64]:
        return naive(self.start) + np.arange(self._steps) * np.timedelta64(STEP)

    def _unspoilt(self, scope: Scope) -> npt.NDArray[np.bool_]:
        starts = self._starts()
        fine = np.ones(self._steps, dtype=bool)
        for mask in self._masks:
            if mask.scope.items() <= scope.items():
                after = starts >= naive(mask.resolved_at or self.end)
                fine &= after | (starts + np.timedelta64(STEP) <= naive(mask.started_at))
        for shift in self._shifts:
            if shift.scope.items() <= scope.items():
                fine &= starts >= naive(shift.at)
        return fine

    def _measures(self, scope: Scope) -> dict[str, Floats]:
        found = {measure: np.zeros(self._steps) for measure in self._store.schema.measures}
        begin = self.start
        while begin < self.end:
            until = min(begin + self._days * DAY, self.end)
            rows = self._store.measures(scope, begin, until, STEP)
            place = ((rows["bucket"].to_numpy() - naive(self.start)) / np.timedelta64(STEP)).astype(np.int64)
            for measure, steps in found.items():
                steps[place] = rows[measure].fill_null(0).to_numpy()
            begin = until
        return found
