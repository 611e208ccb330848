"""Comparable days: the same local time across clock changes, holidays among holidays, events among their like."""

import datetime as dt
import zoneinfo

import numpy as np
import polars as pl
import pytest

from kmon.config import load_config
from kmon.detect import expected_series, observe, sweep
from kmon.detect.calendar import Calendar, clock_shift, country_in, zone_of
from kmon.detect.fleet import grain_for, numbers_of, spans_for
from kmon.detect.guests import row_of
from kmon.errors import ConfigError
from kmon.ledger import Ledger
from kmon.reasons import why
from kmon.windows import days_unused
from tests.detect.worlds import DAY, MINUTE, config, shop

FIVE, HOUR = 5 * MINUTE, 60 * MINUTE
ZONES = {"SE": "Europe/Stockholm", "DE": "Europe/Berlin", "US": "America/New_York"}
OWN = {"enrich": {"country": "country"}}


def utc(text):
    return dt.datetime.fromisoformat(text).replace(tzinfo=dt.UTC)


def by_the_hour(local):
    """As many events in 5 minutes as the local clock has hours, and one more."""
    return local.hour + 1


def world(at, level=by_the_hour, days=(0, 1, 2, 7), countries=("SE", "US"), partner="p0"):
    """Events of each country in the hours around `at` on those days: `level` of local time (and country) in a bin."""
    rows = []
    for day in days:
        for i in range(-48, 24 if day else 0):
            start = at - day * DAY + i * FIVE
            for country in countries:
                local = start.astimezone(zoneinfo.ZoneInfo(ZONES[country]))
                n = round(level(local) if level is by_the_hour else level(local, country, day))
                rows += [(start.replace(tzinfo=None), partner, country, "chrome", "s")] * n
    return pl.DataFrame(rows, schema=["event_time", "partner", "country", "browser", "kind"], orient="row").sort(
        "event_time"
    )


def seen(store, settings, at, metric="sessions", **scope):
    """One monitor's input."""
    fleet = observe(store, settings, at)
    row = row_of(fleet, numbers_of(store, scope))
    given = fleet.windows(settings.metrics[metric], FIVE, np.array([row]))
    return given.row(0, named=True), fleet.unlike_days(row)


def days_with(given):
    """The days that have a bin left."""
    return {c.removesuffix("_value") for c, v in given.items() if c.startswith("day") and "value" in c and has(v)}


def has(values):
    return bool(np.isfinite(np.array(values, float)).any())


# ---- the clock change --------------------------------------------------------------------------------------------

CHANGES = [  # the day after clocks went forward and back: on other dates in Stockholm and in New York
    ("2026-03-09T13:10", {"US": 1, "SE": 0}),
    ("2026-03-30T08:10", {"US": 0, "SE": 1}),
    ("2026-10-26T08:10", {"US": 0, "SE": -1}),
    ("2026-11-03T14:10", {"US": -1, "SE": 0}),
    ("2026-06-15T08:10", {"US": 0, "SE": 0}),
]


@pytest.mark.parametrize(("time", "hours"), CHANGES)
def test_the_bins_of_a_day_are_those_of_the_same_local_time(time, hours):
    at, settings = utc(time), config(**OWN)
    with shop(world(at), settings, at) as store:
        for country in hours:
            given, _ = seen(store, settings, at, country=country)
            today = np.array(given["recent_value"], float)
            today[-1] = given["value"]
            for name in ("day2", "day7"):
                assert np.array_equal(np.array(given[f"{name}_value"], float)[:24], today), (country, name)


@pytest.mark.parametrize(("time", "hours"), CHANGES)
def test_as_much_more_is_read_as_clocks_were_changed(time, hours):
    at, settings = utc(time), config(**OWN)
    spans = spans_for(at, FIVE, grain_for(at, settings.windows), at - 30 * DAY)
    with shop(world(at), settings, at) as store:
        wide = Calendar(settings, store).widened(spans)
        more = max(w.count - s.count for w, s in zip(wide, spans, strict=True))
        assert more == max(map(abs, hours.values())) * 12
        assert wide[:2] == spans[:2]


def test_without_countries_and_partners_days_are_24_hours_long():
    at = utc("2026-03-30T08:10")
    with shop(world(at), config(), at) as store:
        given, _ = seen(store, config(), at, country="SE")
        assert given["day7_value"][23] == given["value"] - 1


def test_a_monitor_that_is_nowhere_keeps_universal_time():
    at, settings = utc("2026-03-30T08:10"), config(**OWN)
    with shop(world(at, countries=("SE",)), settings, at) as store:
        given, _ = seen(store, settings, at, browser="chrome")
        assert given["day7_value"][23] == given["value"] - 1


def test_a_partner_lives_by_the_zone_of_its_reference(tmp_path):
    (tmp_path / "partners.csv").write_text("partner,timezone\np0,Europe/Stockholm\np1,Mars/Olympus\n")
    at, settings = utc("2026-03-30T08:10"), config(tmp_path, partners="partners.csv", **OWN)
    with shop(pl.concat([world(at), world(at, partner="p1")]), settings, at) as store:
        known, unknown = (seen(store, settings, at, partner=p)[0] for p in ("p0", "p1"))
        assert known["day7_value"][23] - unknown["day7_value"][23] == 2  # both countries an hour later
        abroad = seen(store, settings, at, partner="p0", country="US")[0]
        assert abroad["day7_value"][23] == abroad["value"]  # its customers there have changed no clock


@pytest.mark.parametrize(
    ("zone", "start", "hours"),
    [
        ("Europe/Stockholm", "2026-03-27T06:00", 1),
        ("Europe/Stockholm", "2026-10-23T06:00", -1),
        ("America/New_York", "2026-03-27T06:00", 0),
        ("Australia/Lord_Howe", "2026-10-02T06:00", 0.5),
        ("Africa/Nairobi", "2026-03-27T06:00", 0),
        (None, "2026-03-27T06:00", 0),
    ],
)
def test_the_shift_of_a_clock(zone, start, hours):
    assert clock_shift(zone, utc(start), 3 * DAY) == dt.timedelta(hours=hours)


def test_places():
    assert (zone_of("SE", {}), zone_of("AU", {}), zone_of("atlantis", {})) == (
        "Europe/Stockholm",
        "Australia/Sydney",
        None,
    )
    assert zone_of("US", {"US": "America/Chicago"}) == "America/Chicago"
    assert (country_in("Europe/Berlin"), country_in("UTC")) == ("DE", None)


# ---- kinds of days -----------------------------------------------------------------------------------------------

UNITY = "public holiday in DE (Tag der Deutschen Einheit)"


def test_a_holiday_is_no_reference_for_an_ordinary_day():
    at, settings = utc("2026-10-10T10:00"), config(**OWN)
    with shop(world(at, countries=("SE", "DE")), settings, at) as store:
        german, told = seen(store, settings, at, country="DE")
        swedish, none = seen(store, settings, at, country="SE")
    assert days_with(german) == {"day1", "day2"}
    assert days_with(swedish) == {"day1", "day2", "day7"}
    assert (told, none) == ({"day7": UNITY}, {})
    assert not german["unlike"]


def test_a_holiday_without_another_one_keeps_its_days_but_not_their_level():
    at, settings = utc("2026-10-03T10:00"), config(**OWN)
    with shop(world(at, countries=("SE", "DE")), settings, at) as store:
        german, told = seen(store, settings, at, country="DE")
        swedish, _ = seen(store, settings, at, country="SE")
    assert days_with(german) == {"day1", "day2", "day7"}
    assert told["day1"] == f"today is another kind of day: {UNITY}"
    assert (german["unlike"], swedish["unlike"]) == (True, False)


def test_holidays_are_compared_with_holidays():
    at, settings = utc("2026-12-26T10:00"), config(**OWN)  # the second day of Christmas
    with shop(world(at, countries=("DE",)), settings, at) as store:
        given, told = seen(store, settings, at, country="DE")
    assert days_with(given) == {"day1"}
    assert set(told) == {"day2", "day7"}
    assert not given["unlike"]


def test_holidays_can_be_left_alone():
    at, settings = utc("2026-10-10T10:00"), config(calendar={"holidays": False}, **OWN)
    with shop(world(at, countries=("DE",)), settings, at) as store:
        assert seen(store, settings, at, country="DE")[1] == {}


def test_a_day_is_one_of_the_local_calendar():
    settings = config(**OWN)
    for time, holiday in (("2026-10-02T21:00", False), ("2026-10-02T23:00", True), ("2026-10-03T22:30", False)):
        at = utc(time)
        with shop(world(at, countries=("DE",), days=(0, 14)), settings, at) as store:
            assert bool(seen(store, settings, at, country="DE")[0]["unlike"]) is holiday


EVENTS = [
    ({}, {"SE", "DE", "p0", "chrome"}),
    ({"country": "DE"}, {"DE"}),
    ({"partner": "p0"}, {"p0"}),
    ({"browser": "firefox"}, set()),
]


@pytest.mark.parametrize(("scope", "concerned"), EVENTS)
def test_an_event_concerns_the_monitors_in_its_scope(scope, concerned):
    event = {"name": "sale", "from": "2026-06-07", "to": "2026-06-08", "scope": scope}
    at, settings = utc("2026-06-15T10:00"), config(calendar=[event], **OWN)
    with shop(world(at, countries=("SE", "DE")), settings, at) as store:
        found = {
            value
            for dimension, value in (("country", "SE"), ("country", "DE"), ("partner", "p0"), ("browser", "chrome"))
            if seen(store, settings, at, **{dimension: value})[1] == {"day7": "sale"}
        }
    assert found == concerned


def test_a_partner_is_in_the_country_of_its_zone(tmp_path):
    (tmp_path / "partners.csv").write_text("partner,timezone\np0,Europe/Berlin\n")
    at, settings = utc("2026-10-10T10:00"), config(tmp_path, partners="partners.csv")
    with shop(world(at, countries=("DE",)), settings, at) as store:
        assert seen(store, settings, at, partner="p0")[1] == {"day7": UNITY}


# ---- what becomes of it ------------------------------------------------------------------------------------------


def half_on_holidays(local, country, day):
    """Forty sessions in 5 minutes, on holidays a third of them; nothing at all in the last ten minutes of a failure."""
    return 40 / 3 if country == "DE" and local.date() == dt.date(2026, 10, 3) else 40


def found(at, level):
    settings = config(watch=[["country"]], false_alerts_per_day=1.0, **OWN)
    with shop(world(at, level, countries=("SE", "DE", "US")), settings, at) as store:
        result = sweep(store, settings, at)
        (scored,) = result.scored
        sessions = scored.scores.filter(pl.col("metric") == "sessions").sort("row")
        names = [store.names("country", [n])[n] for n in scored.fleet.monitors["country"]]
        return {names[r["row"]]: r for r in sessions.iter_rows(named=True)}, result.anomalies


def test_a_quiet_holiday_is_no_outage_and_an_outage_on_it_is_one():
    at = utc("2026-10-03T10:00")
    scores, anomalies = found(at, half_on_holidays)
    assert anomalies == 0
    assert scores["DE"]["expected"] == pytest.approx(40 / 3, rel=0.1)

    def broken(local, country, day):
        gone = country == "DE" and not day and local.astimezone(dt.UTC) >= at - FIVE
        return 0 if gone else 3 * half_on_holidays(local, country, day)

    scores, anomalies = found(at, broken)
    assert anomalies == 1
    assert scores["DE"]["p_value"] < 1e-4


def test_an_ordinary_day_after_a_holiday_is_no_surge():
    scores, anomalies = found(utc("2026-10-04T10:00"), half_on_holidays)
    assert anomalies == 0
    assert scores["DE"]["expected"] == pytest.approx(40, rel=0.1)


def test_why_says_which_day_was_not_used():
    at, settings = utc("2026-10-10T10:00"), config(**OWN)
    with shop(world(at, lambda *_: 40, countries=("DE",)), settings, at) as store, Ledger.open("sqlite://") as ledger:
        (window,) = why(settings, store, ledger, "sessions", {"country": "DE"}, at).windows
    assert days_unused(window) == [f"day7 not used: {UNITY}"]
    assert set(window.days) == {"day1", "day2"}


# ---- a level that changed for good -----------------------------------------------------------------------------------


def shifted(at, ago):
    """Germany's level changed so long before `at`."""
    return config(calendar={"holidays": False, "shifts": [{"name": "new", "at": at - ago, "scope": {"country": "DE"}}]})


@pytest.mark.parametrize(
    ("ago", "unlike"),
    [
        (10 * DAY, set()),
        (DAY + MINUTE, {"day2", "day7"}),
        (DAY, {"day1", "day2", "day7"}),
        (MINUTE, {"day1", "day2", "day7"}),
        (-MINUTE, set()),  # it is still to come
    ],
)
def test_what_came_before_a_shift_is_another_kind_of_day(ago, unlike):
    at = utc("2026-06-15T08:10")
    settings = shifted(at, ago)
    with shop(world(at, countries=("DE", "SE")), settings, at) as store:
        _, found = seen(store, settings, at, country="DE")
        assert found == dict.fromkeys(unlike, "before new")
        for elsewhere in ({"country": "SE"}, {"partner": "p0"}, {}):
            assert seen(store, settings, at, **elsewhere)[1] == {}
        like, _ = Calendar(settings, store).hours(observe(store, settings, at).monitors, at, 7)
    assert 7 * len(like) - like.sum() == len({1, 2, 3, 4, 5, 6, 7} - like_since(ago)) * 2  # DE, and p0 in it


def like_since(ago):
    """The days ago, of a week, that are like today."""
    return {day for day in range(1, 8) if ago < dt.timedelta(0) or ago > day * DAY}


def test_the_days_of_a_series_are_like_its_buckets_from_the_minute_of_a_shift_on():
    at, shift = utc("2026-06-15T10:00"), utc("2026-06-14T09:00")
    settings = shifted(at, at - shift)
    with shop(world(at, countries=("DE", "SE")), settings, at) as store:
        along = Calendar(settings, store).along({"country": "DE"}, [shift + DAY, shift + DAY + FIVE, at], (1, 2, 7))
    assert {day: like.tolist() for day, like in along.like.items()} == {
        1: [False, True, True], 2: [False] * 3, 7: [False] * 3,
    }  # fmt: skip


# ---- kmon.yaml ---------------------------------------------------------------------------------------------------

BASE = """
source: {kind: files, paths: [x]}
events: {fields: {ts: {type: time}, partner: {}, country: {}}}
enrich: {country: country}
dimensions: [partner, country]
measures: {sessions: count(*)}
metrics: {sessions: {count: sessions}}
watch: [[partner]]
"""
ERRORS = [
    ("zones: {US: America/Chicgo}", "zones.US: 'America/Chicgo' is not a time zone; did you mean 'America/Chicago'?"),
    ("zones: {USA: America/Chicago}", "zones.USA: 'USA' is not a country; did you mean 'US'?"),
    ("events: [{name: x, dates: [2026-02-30]}]", "'2026-02-30' is not a date: write for example 2026-11-27"),
    ("events: [{name: x, dates: [soon]}]", "events.0.dates.0: 'soon' is not a date: write for example 2026-11-27"),
    ("events: [{name: x}]", "events.0: the event 'x' has either dates, or from and to"),
    ("events: [{name: x, from: 2026-01-02}]", "events.0: the event 'x' has either dates, or from and to"),
    (
        "events: [{name: x, from: 2026-01-02, to: 2026-01-01}]",
        "events.0: the event 'x' ends on 2026-01-01, before it begins on 2026-01-02",
    ),
    ("events: [{name: x, dates: [2026-01-02], until: 2026-01-02}]", "events.0.until: unknown key 'until'"),
    (
        "events: [{name: x, dates: [2026-01-02], scope: {contry: DE}}]",
        "events.0.scope.contry: 'contry' is not a dimension; did you mean 'country'?",
    ),
    (
        "events: [{name: x, dates: [2026-01-02], scope: {country: Germany}}]",
        "events.0.scope.country: 'Germany' is not a country; write its ISO 3166 code, such as DE",
    ),
    ("shifts: [{name: x, at: soon}]", "shifts.0.at: 'soon': input should be a valid datetime"),
    (
        "shifts: [{name: x, at: 2026-01-02T10:00:00Z, scope: {contry: DE}}]",
        "shifts.0.scope.contry: 'contry' is not a dimension; did you mean 'country'?",
    ),
]


@pytest.mark.parametrize(("text", "says"), ERRORS)
def test_a_wrong_calendar_is_told_in_a_sentence_with_its_place(tmp_path, text, says):
    path = tmp_path / "kmon.yaml"
    path.write_text(f"{BASE}calendar:\n  {text}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert says in str(caught.value)
    assert str(caught.value).startswith(f"{path}, line 10: calendar")
    assert "\n" not in str(caught.value)


def test_a_list_stands_for_the_events(tmp_path):
    path = tmp_path / "kmon.yaml"
    path.write_text(f"{BASE}calendar:\n  - {{name: sale, from: 2026-11-23, to: 2026-11-30, scope: {{country: DE}}}}\n")
    (event,) = load_config(path).calendar.events
    assert [event.on(dt.date(2026, 11, day)) for day in (22, 23, 30)] == [False, True, True]
    path.write_text(f"{BASE}calendar:\n  - {{name: sale, dates: [2026-11-31]}}\n")
    with pytest.raises(ConfigError, match=r"line 10: calendar\.0\.dates\.0: '2026-11-31' is not a date"):
        load_config(path)


# ---- the band of a chart ---------------------------------------------------------------------------------------------


def band(at, level, **where):
    settings = config(**OWN)
    with shop(world(at, level, countries=("DE", "US")), settings, at) as store:
        return expected_series(store, settings, "sessions", where, at - HOUR, at, grain=FIVE)


def test_the_band_of_a_chart_follows_the_local_clock():
    """Sixty times as many from 8 o'clock: at 8 local time, the day after the clocks went forward."""
    at = utc("2026-03-30T06:30")
    shown = band(at, lambda local, *_: 60 if local.hour >= 8 else 1, country="DE")
    before, after = shown["expected"][3], shown["expected"][8]
    assert before < 20
    assert after > 40
    assert shown["yesterday"].to_list() == shown["observed"].to_list()


def test_the_band_of_a_chart_leaves_out_holidays():
    shown = band(utc("2026-10-04T10:00"), half_on_holidays, country="DE")
    assert shown["expected"].to_list() == pytest.approx([40] * 12, rel=0.1)
    assert set(shown["yesterday"]) == {13.0}
