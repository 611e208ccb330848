"""Which days are comparable with today: the same local time of day, on a day of the same kind.

    where is a monitor?    its country, and the time zone of its partner or country
    the same time          after a clock change the bins of a day before it are an hour (or half) earlier or later
    the same kind of day   a public holiday is compared with holidays, a day of an event with days of that event, and
                           what came after a level has shifted for good with what came after it, too

A day of another kind becomes NaN in the detectors' input, like anything else that must not serve as a reference: so
every detector, also one's own, leaves it out without knowing of calendars. A monitor with no day of today's kind keeps
them all, as their shape is better than none, but its input says `unlike`: their level says little of today's.
"""

from __future__ import annotations

import bisect
import datetime as dt
import functools
import importlib.resources
import zoneinfo
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import polars as pl

from kmon.config import CalendarEvent, Config, Shift
from kmon.errors import KmonError
from kmon.partners import Partners
from kmon.store import Span, Store
from kmon.store.schema import EVENTS
from kmon.store.sql import Where

if TYPE_CHECKING:
    from kmon.detect.fleet import Fleet

Ints = npt.NDArray[np.int64]
DAY = dt.timedelta(days=1)
PARTNER = "partner"
"""The dimension that the partner reference describes."""
MANY = 5000
"""More values than this are no countries."""
LARGEST = {
    "AU": "Australia/Sydney",
    "BR": "America/Sao_Paulo",
    "CA": "America/Toronto",
    "RU": "Europe/Moscow",
    "UA": "Europe/Kyiv",
    "UZ": "Asia/Tashkent",
}
"""The zone of the largest city, where it is not the first of the country in the time zone database."""


# ---- places --------------------------------------------------------------------------------------------------------


@functools.cache
def _table() -> tuple[dict[str, str], dict[str, str]]:
    """(zone of a country, country of a zone), from the table that comes with the time zone database."""
    text = (importlib.resources.files("tzdata.zoneinfo") / "zone.tab").read_text(encoding="utf-8")
    rows = [line.split("\t") for line in text.splitlines() if not line.startswith("#")]
    known = zoneinfo.available_timezones()
    first: dict[str, str] = {}
    for code, _, zone, *_ in rows:
        if zone in known:
            first.setdefault(code, zone)
    return first | LARGEST, {zone: code for code, _, zone, *_ in rows}


def zone_of(country: str, own: Mapping[str, str]) -> str | None:
    """The time zone of a country by its alpha-2 code; `own` come first. None where it is no country."""
    return own.get(country) or _table()[0].get(country)


def country_in(zone: str) -> str | None:
    """The country in which a zone lies; None of UTC and the like."""
    return _table()[1].get(zone)


class _Reference:
    """The time zones of the partner reference, read again when the file changes."""

    def __init__(self, path: Path) -> None:
        self._partners = Partners.load(path)
        self._zones = self._read()

    def zones(self) -> dict[str, str]:
        with suppress(KmonError):  # what was known stays in use; who sends alerts says what is wrong
            if self._partners.reload_if_changed():
                self._zones = self._read()
        return self._zones

    def _read(self) -> dict[str, str]:
        known = pl.Series(sorted(zoneinfo.available_timezones()))
        rows = self._partners.frame.select(PARTNER, "timezone").filter(pl.col("timezone").is_in(known.implode()))
        return dict(rows.iter_rows())


_reference = functools.lru_cache(maxsize=4)(_Reference)


# ---- kinds of days -------------------------------------------------------------------------------------------------

HOLIDAY = "public holiday"


@functools.lru_cache(maxsize=512)
def _holidays(country: str, year: int) -> dict[dt.date, str]:
    """The public holidays of a country in its own language; none where the package does not know the country."""
    import holidays

    try:
        found = holidays.country_holidays(country, years=year)
        if (own := found.default_language) is not None:
            found = holidays.country_holidays(country, years=year, language=own)
    except NotImplementedError:
        return {}
    return {day: name for day, name in found.items() if day.year == year}


@dataclass(frozen=True)
class _Kind:
    """Monitors of one place and with the same events, which have all days in common."""

    zone: str | None
    country: str | None
    events: tuple[CalendarEvent, ...]
    shifts: tuple[Shift, ...] = ()

    def day(self, at: dt.datetime) -> dt.date:
        """The local date of the window that ends at `at`; without a zone by UTC."""
        return (at - dt.timedelta(microseconds=1)).astimezone(_info(self.zone)).date()

    def status(self, day: dt.date, at: dt.datetime) -> dict[str, str]:
        """What is special about a day, by the window that ends at `at`, in words; with the same keys they are alike."""
        found = self.special(day)
        return found | {shift.name: f"before {shift.name}" for shift in self.shifts if at <= shift.at}

    def special(self, day: dt.date) -> dict[str, str]:
        """The holidays and events of a day, in words."""
        found = {event.name: event.name for event in self.events if event.on(day)}
        name = _holidays(self.country, day.year).get(day) if self.country is not None else None
        return found if name is None else {HOLIDAY: f"{HOLIDAY} in {self.country} ({name})", **found}

    def unlike(self, at: dt.datetime, names: Iterable[str]) -> dict[str, str]:
        """Of the days called ``day<N>`` those that are not comparable with `at`, and why."""
        day = self.day(at)
        today = self.status(day, at)
        found = {}
        for name in names:
            then = self.status(day - days_ago(name), at - days_ago(name))
            more = [text for key, text in then.items() if key not in today]
            less = [text for key, text in today.items() if key not in then]
            if more or less:
                found[name] = ", ".join(more) or f"today is another kind of day: {', '.join(less)}"
        return found


def _info(zone: str | None) -> dt.tzinfo:
    return dt.UTC if zone is None else zoneinfo.ZoneInfo(zone)


def days_ago(name: str) -> dt.timedelta:
    """How long ago the day called ``day<N>`` was, by the calendar."""
    return int(name.removeprefix("day")) * DAY


def clock_shift(zone: str | None, start: dt.datetime, days: dt.timedelta) -> dt.timedelta:
    """By how much later than `start`, which lies `days` of 24 hours ago, it was then the same local time as today.

    Zero but where the clocks were changed in between: in the four weeks after they went forward by an hour, an hour.
    """
    if zone is None:
        return dt.timedelta(0)
    local = (start + days).astimezone(_info(zone)) - days  # arithmetic on the local clock
    return local.astimezone(dt.UTC) - start


def _shifts(zone: str | None, span: Span) -> Ints:
    """`clock_shift` of each bin of a day, in bins."""
    days = days_ago(span.name)
    edges = [clock_shift(zone, time, days) for time in (span.start, span.end)]
    if not any(edges):
        return np.zeros(span.count, dtype=np.int64)
    starts = [span.start + i * span.width for i in range(span.count)]
    return np.array([round(clock_shift(zone, start, days) / span.width) for start in starts], dtype=np.int64)


# ---- a fleet's days ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparable:
    """Which days are like today, monitor by monitor."""

    kind: Ints
    """(monitors,): index into `reasons`."""
    reasons: tuple[dict[str, str], ...]
    """By kind of monitor: the days that are not comparable, and why."""
    unlike: npt.NDArray[np.bool_]
    """(monitors,): no comparable day is left."""


@dataclass(frozen=True)
class Along:
    """The days of one monitor, time by time."""

    later: dict[int, list[dt.timedelta]]
    """By day ago: the `clock_shift` at each time."""
    like: dict[int, npt.NDArray[np.bool_]]
    """By day ago: whether it is comparable at each time."""

    @classmethod
    def plain(cls, count: int, days: Sequence[int]) -> Along:
        """Without a clock change and with all days alike."""
        return cls({d: [dt.timedelta(0)] * count for d in days}, {d: np.ones(count, dtype=bool) for d in days})


class Calendar:
    """Where monitors are, and what their days are, by one configuration."""

    def __init__(self, config: Config, store: Store) -> None:
        self._store, self._own, self._events = store, config.calendar.zones, config.calendar.events
        self._shifts = config.calendar.shifts
        self._with_holidays = config.calendar.holidays
        dimensions = store.schema.dimensions
        self._country = config.enrich.country if config.enrich.country in dimensions else None
        reference = config.resolve(config.partners) if config.partners and PARTNER in dimensions else None
        self._partners = _reference(reference).zones() if reference else {}

    @property
    def _says_nothing(self) -> bool:
        return not (self._events or self._shifts or self._country or self._partners)

    def _zones(self) -> list[str | None]:
        """The zones that monitors may be in."""
        found = dict.fromkeys(self._partners.values())
        if self._country is not None and (count := self._store.cardinality(self._country)) <= MANY:
            names = self._store.names(self._country, range(1, count + 1)).values()
            found |= dict.fromkeys(zone for name in names if (zone := zone_of(name, self._own)) is not None)
        return list(found)

    def widened(self, spans: Sequence[Span]) -> list[Span]:
        """The spans to read: a day's reach as much further as the clocks of some zone were changed since."""
        zones = self._zones()
        found = []
        for span in spans:
            low = high = 0
            if span.name.startswith("day"):
                for zone in zones:
                    shifts = _shifts(zone, span)
                    low, high = min(low, int(shifts.min())), max(high, int(shifts.max()))
            found.append(replace(span, start=span.start + low * span.width, count=span.count + high - low))
        return found

    def applied(self, fleet: Fleet, spans: Sequence[Span]) -> Fleet:
        """The fleet, which was read in the `widened` spans, in `spans`: its days in local time, and comparable."""
        if self._says_nothing:
            return fleet
        kind, kinds = self._kinds(fleet.monitors)
        if list(fleet.spans) != list(spans):
            fleet = _moved(fleet, spans, kind, [each.zone for each in kinds])
        reasons = tuple(each.unlike(fleet.at, fleet.days) for each in kinds)
        return _compared(fleet, kind, reasons) if any(reasons) else fleet

    def along(self, where: Where, times: Sequence[dt.datetime], days: Sequence[int]) -> Along:
        """The days of one monitor at each of some `times`, the ends of windows in their order."""
        if self._says_nothing or not times:
            return Along.plain(len(times), days)
        kind = self._kind_of(where)
        found = Along.plain(len(times), days)
        for day in days:
            ago = day * DAY
            if any(clock_shift(kind.zone, time - ago, ago) for time in (times[0], times[-1])):
                found.later[day] = [clock_shift(kind.zone, time - ago, ago) for time in times]
        names = [f"day{day}" for day in days]
        passed = sorted(shift.at + day * DAY for shift in kind.shifts for day in (0, *days))
        keys = [(kind.day(time), bisect.bisect_left(passed, time)) for time in times]
        unlike = {key: kind.unlike(time, names) for key, time in zip(keys, times, strict=True)}
        for day, name in zip(days, names, strict=True):
            found.like[day] = np.array([name not in unlike[key] for key in keys])
        return found

    def special_days(self, scope: Mapping[str, str], first: dt.date, last: dt.date) -> set[dt.date]:
        """The public holidays and days of events of one monitor, from `first` to `last`."""
        if self._says_nothing:
            return set()
        kind = self._kind_of(scope)
        days = (first + i * DAY for i in range((last - first).days + 1))
        return {day for day in days if kind.special(day)}

    def _kind_of(self, where: Where) -> _Kind:
        """The kind of one monitor."""
        named = {d: v for d, v in where.items() if isinstance(v, str)}
        numbers = self._store.numbers
        monitor = {d: pl.Series([numbers(d, [v]).get(v)], dtype=pl.UInt32) for d, v in named.items()}
        return self._kinds(pl.DataFrame(monitor or {"nowhere": pl.Series([None], dtype=pl.UInt32)}))[1][0]

    def hours(self, monitors: pl.DataFrame, at: dt.datetime, days: int) -> tuple[npt.NDArray[np.bool_], Ints]:
        """Of each monitor and of each of the last `days`: is it comparable, and its `clock_shift` in hours."""
        kind, kinds = self._kinds(monitors)
        names = [f"day{day}" for day in range(1, days + 1)]
        unlike = [each.unlike(at, names) for each in kinds]
        like = np.array([[name not in found for name in names] for found in unlike], dtype=bool)
        shifts = [
            [clock_shift(k.zone, at - days_ago(n), days_ago(n)) / dt.timedelta(hours=1) for n in names] for k in kinds
        ]
        return like[kind], np.array(shifts).round().astype(np.int64)[kind]

    def later(self, monitors: pl.DataFrame, at: dt.datetime, names: Iterable[str]) -> dict[str, Ints]:
        """(monitors,): the `clock_shift` in seconds of the days called ``day<N>`` on which somebody has one at `at`."""
        changed = [n for n in names if any(clock_shift(z, at - days_ago(n), days_ago(n)) for z in self._zones())]
        if not changed:
            return {}
        kind, kinds = self._kinds(monitors)
        shifts = [[clock_shift(k.zone, at - days_ago(n), days_ago(n)).total_seconds() for k in kinds] for n in changed]
        return {name: np.array(own, dtype=np.int64)[kind] for name, own in zip(changed, shifts, strict=True)}

    def _kinds(self, monitors: pl.DataFrame) -> tuple[Ints, list[_Kind]]:
        """The kind of each monitor, and all kinds."""
        places = monitors.select(
            zone=self._told(monitors, PARTNER, self._partners.get),
            country=self._told(monitors, self._country, lambda name: name),
        )
        keys = places.with_columns(_place(places, self._own)).hstack(self._concerned(monitors, places))
        unique = keys.unique(maintain_order=True).with_row_index("kind")
        joined = keys.join(unique, on=keys.columns, how="left", nulls_equal=True, maintain_order="left")
        return joined["kind"].to_numpy().astype(np.int64), [self._kind(row) for row in unique.iter_rows(named=True)]

    def _kind(self, row: dict[str, object]) -> _Kind:
        zone, country = row["zone"], row["country"] if self._with_holidays else None
        events = tuple(event for i, event in enumerate(self._events) if row[f"event{i}"])
        shifts = tuple(shift for i, shift in enumerate(self._shifts) if row[f"shift{i}"])
        return _Kind(zone and str(zone), country and str(country), events, shifts)  # type: ignore[arg-type]

    def _told(self, monitors: pl.DataFrame, dimension: str | None, of: object) -> pl.Series:
        """What `of` makes of a dimension's values; null where it says nothing, or the monitor has none."""
        if dimension is None or dimension not in monitors.columns or (dimension == PARTNER and not self._partners):
            return pl.Series([None], dtype=pl.String).new_from_index(0, monitors.height)
        numbers = monitors[dimension].drop_nulls().unique()
        names = self._store.names(dimension, numbers.to_list())
        told = {number: found for number, name in names.items() if (found := of(name)) is not None}  # type: ignore[operator]
        return monitors[dimension].replace_strict(told, default=None, return_dtype=pl.String)

    def _concerned(self, monitors: pl.DataFrame, places: pl.DataFrame) -> pl.DataFrame:
        """A column for each event and each shift: whether a monitor lies in its scope."""
        columns = {}
        for i, event in enumerate(self._events):
            inside = np.ones(monitors.height, dtype=bool)
            for dimension, value in event.scope.items():
                inside &= self._inside(monitors, places, dimension, value)
            columns[f"event{i}"] = inside
        for i, shift in enumerate(self._shifts):
            inside = np.ones(monitors.height, dtype=bool)
            for dimension, value in shift.scope.items():
                inside &= self._has(monitors, dimension, value)
            columns[f"shift{i}"] = inside
        return pl.DataFrame(columns)

    def _inside(
        self, monitors: pl.DataFrame, places: pl.DataFrame, dimension: str, value: str
    ) -> npt.NDArray[np.bool_]:
        """Whether a monitor is in the place, or has the value itself."""
        if dimension != self._country:
            return self._has(monitors, dimension, value)
        same = places.with_columns(_place(places, self._own))["country"] == value
        return same.fill_null(value=False).to_numpy()

    def _has(self, monitors: pl.DataFrame, dimension: str, value: str) -> npt.NDArray[np.bool_]:
        """Whether a monitor has this value of a dimension."""
        number = self._store.number(dimension, value)
        if number is None or dimension not in monitors.columns:
            return np.zeros(monitors.height, dtype=bool)
        return (monitors[dimension] == number).fill_null(value=False).to_numpy()


def _place(places: pl.DataFrame, own: Mapping[str, str]) -> Iterator[pl.Series]:
    """Zone and country of monitors from their partner's zone and their own country.

    A partner's zone is also its country. A monitor of a country lives by that country's clocks, so the partner's zone
    counts only where it is one of them.
    """
    codes = places["country"].drop_nulls().unique()
    theirs = {code: zone for code in codes if (zone := zone_of(code, own)) is not None}
    lands = {zone: code for zone in places["zone"].drop_nulls().unique() if (code := country_in(zone)) is not None}
    land = places["zone"].replace_strict(lands, default=None, return_dtype=pl.String)
    home = (places["country"].is_null() | (land == places["country"])).fill_null(value=False)
    abroad = places["country"].replace_strict(theirs, default=None, return_dtype=pl.String)
    yield places["zone"].zip_with(home & places["zone"].is_not_null(), abroad).alias("zone")
    yield land.zip_with(places["country"].is_null(), places["country"]).alias("country")


def _moved(fleet: Fleet, spans: Sequence[Span], kind: Ints, zones: Sequence[str | None]) -> Fleet:
    """The slots of `spans` out of the wider ones that were read, each kind of monitor by its own clock."""
    by_zone = {zone: _slots_at(zone, fleet.spans, spans) for zone in dict.fromkeys([None, *zones])}
    plain = by_zone[None]
    moved = [
        (np.flatnonzero(np.isin(kind, [k for k, z in enumerate(zones) if z == zone])), slots)
        for zone, slots in by_zone.items()
        if not np.array_equal(slots, plain)
    ]

    def taken(table: npt.NDArray[Any]) -> npt.NDArray[Any]:
        found = table[:, plain]
        for rows, slots in moved:
            found[rows] = table[np.ix_(rows, slots)]
        return found

    early = np.min(list(by_zone.values()), axis=0)  # a measure must be known in every zone
    return replace(
        fleet,
        spans=tuple(spans),
        values={measure: taken(table) for measure, table in fleet.values.items()},
        usable=taken(fleet.usable),
        recorded=fleet.recorded[plain],
        unknown={measure: before[early] for measure, before in fleet.unknown.items()},
    )


def _slots_at(zone: str | None, wide: Sequence[Span], spans: Sequence[Span]) -> Ints:
    """Where the slots of `spans` are among those of `wide`, by the clock of a zone."""
    first, found = 0, []
    for read, span in zip(wide, spans, strict=True):
        skipped = (span.start - read.start) // span.width
        shifts = _shifts(zone, span) if span.name.startswith("day") else 0
        found.append(first + skipped + np.arange(span.count) + shifts)
        first += read.count
    return np.concatenate(found)


def _compared(fleet: Fleet, kind: Ints, reasons: tuple[dict[str, str], ...]) -> Fleet:
    """The fleet without the days that are not like today, of the monitors that have one that is."""
    usable, left = fleet.usable.copy(), np.zeros(len(kind), dtype=bool)
    slots = {name: fleet.slots(name) for name in fleet.days}
    affected = np.array([bool(found) for found in reasons])[kind]
    good = {name: np.array([name not in found for found in reasons])[kind] for name in slots}
    for name, where in slots.items():
        some = usable[:, where].any(axis=1) & (fleet.values[EVENTS][:, where].sum(axis=1) > 0)
        left |= good[name] & some
    for name, where in slots.items():
        usable[affected & left & ~good[name], where] = False
    return replace(fleet, usable=usable, comparable=Comparable(kind, reasons, affected & ~left))
