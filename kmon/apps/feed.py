"""What a page shows, read from store and ledger. It never raises for a store that is away: it says so in words."""

from __future__ import annotations

import datetime as dt
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import polars as pl

from kmon.apps import selection as choose
from kmon.apps.samples import Samples, read
from kmon.apps.selection import Selection
from kmon.config import BUCKET, Config, load_config
from kmon.detect import expected_measures
from kmon.detect.series import CONTEXT
from kmon.errors import ConfigError, KmonError, StoreError
from kmon.hit import Hits, hit
from kmon.impact import is_due
from kmon.ledger import Incident, Label, Ledger, open_ledger
from kmon.partners import Partner, Partners
from kmon.references import MONTH, References
from kmon.store import EmbeddedStore, Store, open_for_reading
from kmon.store.schema import EVENTS
from kmon.versions import Version, version_of

MANY, FEW = 500, 100
"""How many values are on offer of the first dimension and of each other one."""
_OFFERS_AGE = 300.0
"""Seconds after which the values on offer are read again."""
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
ENOUGH = 60
"""Events that a bucket should have on average: with fewer, lines are mostly noise."""
LEAST = 12
"""Buckets that a range must have."""


@dataclass(frozen=True)
class View:
    """Everything a page shows of one selection, at one time."""

    selection: Selection
    watermark: dt.datetime | None = None
    start: dt.datetime | None = None
    grain: dt.timedelta | None = None
    """The width of a bucket: wider than the range asks for where the selection has few events."""
    end: dt.datetime | None = None
    """The end of the last bucket, complete; [start, end) is drawn."""
    series: Mapping[str, pl.DataFrame] = field(default_factory=dict)
    """By metric: the columns of `expected_series`, on a fixed grid."""
    latest: Mapping[str, pl.DataFrame] = field(default_factory=dict)
    """By metric: the same for the one window that ends at `end`, which moves on every ten seconds."""
    shifted: dt.datetime | None = None
    """When in the range the level of the selection changed for good, the last time."""
    incidents: tuple[Incident, ...] = ()
    """Those that concern the selection and touch the range, and all that are open, newest first."""
    labels: Mapping[str, Label] = field(default_factory=dict)
    """By incident: what people said of it."""
    offers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By dimension: the values with most events in the last day."""
    unknown: tuple[str, ...] = ()
    """Filtered dimensions whose value was never seen."""
    read: bool = False
    """Whether the store answered for this selection."""
    problem: str | None = None
    """Why the data cannot be read, in words; the rest is then the last that could."""
    ledger_problem: str | None = None
    samples: Samples | None = None
    """The newest events of the selection's incident, if it has one."""
    hits: Hits | None = None
    """Whom the selection's incident hit most, if it has one that leaves that open."""
    outdated: bool = False
    """Whether kmon.yaml has changed since: another view has other metrics and dimensions."""

    @property
    def firing(self) -> list[Incident]:
        """Open incidents that concern the selection."""
        return [i for i in self.incidents if i.resolved_at is None and choose.concerns(self.selection.where, i)]

    @property
    def empty(self) -> bool:
        """Whether nothing was observed in the whole range."""
        return all(frame["observed"].null_count() == frame.height for frame in self.series.values())


class Feed:
    """Reads views for any number of sessions and threads.

    A served store is one connection that stays open; a file is opened for each read and let go, so that its owner can
    start while a page is open.
    """

    def __init__(self, config: Config, store: str | None = None) -> None:
        """`store` is a path or a ``quack:`` address, default the configuration's."""
        self.config = config
        self._where = store
        self._remote: Store | None = None
        self._ledger: Ledger | None = None
        self._offers: tuple[float, dict[str, tuple[str, ...]]] | None = None
        self._lock = threading.Lock()
        self._partners: Partners | None = None
        self._judged: tuple[Version | None, bool] = None, False

    def view(self, selection: Selection, last: View | None = None) -> View:
        """What `selection` shows now; `last`, the view before, saves reading what has not changed."""
        view = last if last and last.selection == selection else View(selection)
        view = replace(view, outdated=self._is_outdated())
        offers = last.offers if last else {}
        try:
            with self._reading() as store:
                view = self._read(store, replace(view, offers=offers, problem=None))
        except KmonError as error:
            return self._with_incidents(replace(view, offers=offers, problem=str(error)))
        return view

    def incident(self, id: str) -> Incident | None:
        """One incident; None where there is none or the ledger is away."""
        try:
            return self._open_ledger().incident(id)
        except KmonError:
            return None

    def partner(self, value: str) -> Partner | None:
        """What the partner reference says of a value of the first dimension."""
        with self._lock:
            try:
                if self._partners is None:
                    path = self.config.partners
                    self._partners = Partners.load(self.config.resolve(path) if path else None)
                self._partners.reload_if_changed()
            except KmonError:  # names are a convenience: without them a page shows the ids
                self._partners = self._partners or Partners.load(None)
            return self._partners.get(value)

    def _is_outdated(self) -> bool:
        """Whether the configuration's file is another one now; one that is broken is none yet."""
        version = version_of(self.config.file)
        if version not in (None, self._judged[0]):  # None: it is being replaced
            try:
                outdated = load_config(self.config.file).digest != self.config.digest
            except ConfigError:
                outdated = False
            self._judged = version, outdated
        return self._judged[1]

    def _read(self, store: Store, view: View) -> View:
        config, selection = self.config, view.selection
        watermark = store.watermark(config.events.lateness, config.events.idle)
        if watermark is None:
            return self._with_incidents(View(selection, offers=view.offers, read=True, outdated=view.outdated))
        end = _floor(selection.end(watermark), BUCKET)
        if view.end != end:  # nothing complete is new otherwise
            unknown = tuple(d for d, v in selection.where.items() if store.number(d, v) is None)
            view = replace(view, unknown=unknown, offers=self._on_offer(store, watermark))
            view = replace(view, series={}, latest={}) if unknown else self._with_series(store, view, end)
            incident = self.incident(selection.incident) if selection.incident else None
            sampled = read(store, config, incident, watermark) if incident else None
            hits = self._hits(store, view.hits, incident, watermark) if incident else None
            view = replace(view, samples=sampled, hits=hits)
        return self._with_incidents(replace(view, watermark=watermark, end=end, read=True))

    def _with_series(self, store: Store, view: View, end: dt.datetime) -> View:
        """The lines on a fixed grid, read again when the grid moves on, and the newest window, each time."""
        config, where, names = self.config, dict(view.selection.where), list(self.config.metrics)
        grain = view.grain or self._grain(store, view.selection, end)
        grid = _floor(end, grain)
        start = grid - view.selection.range.span
        told = self._references(start - MONTH, end)
        config, masks = told.config, [mask for mask in told.masks if choose.covers(where, mask)]
        series = view.series
        if not series or view.start != start:
            frames = expected_measures(store, config, names, where, start, grid, grain=grain, masks=masks)
            series = dict(zip(names, frames, strict=True))
        latest = {name: frame.tail(1) for name, frame in series.items()}
        if end > grid:
            first = end - CONTEXT * grain
            frames = expected_measures(store, config, names, where, first, end, grain=grain, masks=masks)
            latest = {name: frame.tail(1) for name, frame in zip(names, frames, strict=True)}
        shifts = (shift.at for shift in config.calendar.shifts if shift.at > start and choose.covers(where, shift))
        shifted = max(shifts, default=None)
        return replace(view, start=start, grain=grain, series=series, latest=latest, shifted=shifted)

    def _hits(self, store: Store, last: Hits | None, incident: Incident, watermark: dt.datetime) -> Hits | None:
        """Whom it hit: by the minute while it is young, then as often as its loss is told.

        What takes longer than a question may is not told: the rest of the page is.
        """
        end = incident.seen_at if incident.resolved_at else _floor(watermark, dt.timedelta(minutes=1))
        known = last if last and (last.metric, last.scope) == (incident.metric, incident.scope) else None
        if known is not None and (known.end == end or not is_due(incident, end, known.end)):
            return known
        told = self._references(incident.started_at - MONTH, end)
        try:
            return hit(store, told.config, incident, end, told.masks)
        except StoreError:
            return known

    def _grain(self, store: Store, selection: Selection, end: dt.datetime) -> dt.timedelta:
        """The narrowest buckets in which something can be seen: those of the range, or a wider detection window."""
        range_ = selection.range
        widths = sorted(w for w in self.config.windows if w > range_.grain and range_.span / w >= LEAST)
        events = store.totals(selection.where, end - range_.span, end)[EVENTS] if widths else 0
        widths = [range_.grain, *widths]
        return next((w for w in widths if events * (w / range_.span) >= ENOUGH), widths[-1])

    def _with_incidents(self, view: View) -> View:
        try:
            ledger = self._open_ledger()
            found = {i.id: i for i in ledger.open_incidents()}
            if view.start is not None and view.end is not None:
                touching = ledger.overlapping(view.start, view.end)
                found |= {i.id: i for i in touching if choose.concerns(view.selection.where, i)}
            labels = {label.incident: label for label in ledger.labels() if label.incident in found}
        except KmonError as error:
            self._ledger = None
            return replace(view, ledger_problem=str(error))
        newest = tuple(sorted(found.values(), key=lambda i: (i.started_at, i.id), reverse=True))
        return replace(view, incidents=newest, labels=labels, ledger_problem=None)

    def _references(self, start: dt.datetime, end: dt.datetime) -> References:
        """What serves as a reference, as far as the ledger can be read."""
        try:
            return References.of(self._open_ledger(), self.config, start, end)
        except KmonError:
            return References(self.config)

    def _on_offer(self, store: Store, watermark: dt.datetime) -> dict[str, tuple[str, ...]]:
        now = time.monotonic()
        if self._offers is None or now - self._offers[0] > _OFFERS_AGE:
            first = self.config.dimensions[0]
            found = {
                d: tuple(store.values(d, {}, watermark - choose.DAY, watermark, MANY if d == first else FEW)["value"])
                for d in self.config.dimensions
            }
            self._offers = now, found
        return self._offers[1]

    @contextmanager
    def _reading(self) -> Iterator[Store]:
        with self._lock:
            store = self._remote or open_for_reading(self.config, self._where)
            if not isinstance(store, EmbeddedStore):
                self._remote = store
        try:
            yield store
        except StoreError:
            self._remote = None
            raise
        finally:
            if isinstance(store, EmbeddedStore):
                store.close()

    def _open_ledger(self) -> Ledger:
        with self._lock:
            if self._ledger is None:
                self._ledger = open_ledger(self.config, self._where)
            return self._ledger


def _floor(at: dt.datetime, step: dt.timedelta) -> dt.datetime:
    return at - (at - _EPOCH) % step
