from __future__ import annotations

import datetime as dt
from dataclasses import replace

import pytest

from kmon.apps.selection import Selection, concerns, covers, default, of_incident, ranges, read_query, write_query
from kmon.config import Config
from tests.apps.shop import END, EVIL, incident

HOUR = dt.timedelta(hours=1)


@pytest.mark.parametrize(
    "name", ["north", EVIL, "123", "true", "null", "a&b=c#d?", "two\nlines", "%41+ ", "'; DROP TABLE x", ""]
)
def test_a_url_brings_every_name_back(empty: Config, name: str) -> None:
    asked = replace(
        default(empty), where={"shop": name, "region": "EU"}, metric="visits", at=END, range=ranges(empty)[3]
    )
    if not name:
        asked = replace(asked, where={"region": "EU"})
    assert read_query(empty, write_query(empty, asked)) == asked


def test_the_default_needs_no_query(empty: Config) -> None:
    assert write_query(empty, default(empty)) == ""
    assert read_query(empty, "").live


@pytest.mark.parametrize(
    ("query", "note"),
    [
        ("?metric=visit", "There is no metric 'visit'; one that exists is 'visits'."),
        ("?at=tomorrow", "'tomorrow' is not a time like 2026-01-31T09:30:00Z: showing now instead."),
    ],
)
def test_what_a_url_cannot_have_is_said(empty: Config, query: str, note: str) -> None:
    assert read_query(empty, query).notes == (note,)


def test_an_unknown_range_is_the_default_one(empty: Config) -> None:
    assert all(read_query(empty, f"?range={r}") == default(empty) for r in ("", "4h", "soon", "3h"))


@pytest.mark.parametrize(
    ("where", "touches", "inside"),
    [
        ({}, True, False),
        ({"shop": EVIL}, True, True),
        ({"region": "EU"}, True, False),
        ({"shop": "north"}, False, False),
        ({"shop": EVIL, "region": "EU"}, True, True),
    ],
)
def test_what_an_incident_has_to_do_with_a_selection(where: dict[str, str], touches: bool, inside: bool) -> None:
    assert concerns(where, incident()) is touches
    assert covers(where, incident()) is inside


def test_an_open_incident_is_shown_live_and_a_resolved_one_when_it_was(empty: Config) -> None:
    now = of_incident(empty, incident(), END)
    assert now == Selection(ranges(empty)[1], {"shop": EVIL}, "conversion", "inc_1")
    over = incident(started_at=END - 30 * HOUR, resolved_at=END - 20 * HOUR)
    then = of_incident(empty, over, END)
    assert then.end(END) >= END - 20 * HOUR
    assert then.end(END) - then.range.span <= END - 30 * HOUR


def test_windows_below_a_minute_are_shown_by_the_minute(empty: Config) -> None:
    """Ten-second buckets are kept for two hours."""
    fine = empty.model_copy(update={"windows": (dt.timedelta(seconds=10), *empty.windows)})
    assert [r.grain.total_seconds() / 60 for r in ranges(fine)] == [1, 1, 5, 15]


def test_hourly_windows_get_longer_ranges(empty: Config) -> None:
    hourly = empty.model_copy(update={"windows": (HOUR,)})
    assert [r.span.days for r in ranges(hourly)] == [2, 7, 28, 84]
    assert all(r.grain >= HOUR for r in ranges(hourly))
