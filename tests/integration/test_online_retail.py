"""Real data through configuration alone: the totals are exact, and the incidents are what happened in that year."""

from __future__ import annotations

import contextlib
import datetime as dt
import sqlite3

import pytest

from tests.command import kmon, kmon_json
from tests.conftest import DATA

INVOICES = DATA / "online_retail.parquet"
pytestmark = [
    pytest.mark.data,
    pytest.mark.skipif(
        not INVOICES.exists(), reason="the Online Retail data set is missing: set KMON_DATA to its folder"
    ),
    pytest.mark.xdist_group("online_retail"),
    pytest.mark.timeout(1200),
]


@pytest.fixture(scope="session")  # of the one worker that has this group
def year(tmp_path_factory):
    """A folder in which the whole year was replayed, and the summary."""
    folder = tmp_path_factory.mktemp("retail")
    assert kmon("init", "--example", "online_retail", cwd=folder).returncode == 0
    return folder, kmon_json("replay", INVOICES, cwd=folder)


@pytest.fixture(scope="session")  # of the one worker that has this group
def incidents(year):
    found = kmon_json("incidents", cwd=year[0])
    for incident in found:
        for key in ("started_at", "detected_at", "resolved_at"):
            incident[key] = incident[key] and dt.datetime.fromisoformat(incident[key])
    return found


def test_nothing_is_lost(year):
    _, summary = year
    assert summary["events"] == 541_909
    assert summary["dead_letters"] == 0


def test_the_known_totals(year):
    folder, _ = year
    totals = kmon_json(
        "query",
        "SELECT sum(lines) AS lines, sum(cancelled_lines) AS cancelled_lines, count(DISTINCT Country) AS countries,"
        " sum(pieces) AS pieces, round(sum(revenue), 3) AS revenue FROM rollup",
        cwd=folder,
    )
    assert totals == [
        {
            "lines": 541_909,
            "cancelled_lines": 9_288,
            "countries": 38,
            "pieces": 5_176_450,
            "revenue": 9_747_747.934,
        }
    ]
    by_country = "SELECT Country, sum(lines) AS lines FROM rollup GROUP BY 1 ORDER BY 2 DESC"
    countries = kmon_json("query", by_country, cwd=folder)
    assert {row["Country"]: row["lines"] for row in countries[:4]} == {
        "United Kingdom": 495_478,
        "Germany": 9_495,
        "France": 8_557,
        "EIRE": 8_196,
    }
    by_day = "SELECT bucket::DATE AS day, sum(lines) AS n FROM rollup GROUP BY 1 ORDER BY 2 DESC"
    day = kmon_json("query", by_day, cwd=folder)
    assert day[0] == {"day": "2011-12-05", "n": 5_331}


def test_every_day_of_trade_is_judged(year):
    """A batch of the file holds weeks: none of them may be merged into hours before it was looked at."""
    days = kmon_json("query", "SELECT DISTINCT bucket::DATE AS day FROM rollup", cwd=year[0])
    with contextlib.closing(sqlite3.connect(year[0] / "online_retail.ledger.sqlite")) as ledger:
        judged = ledger.execute("SELECT DISTINCT date(at) FROM sweeps WHERE tests > 0").fetchall()
    assert {row["day"] for row in days} == {day for (day,) in judged}


@pytest.mark.parametrize(
    ("hour", "ordered"),
    [
        ("2011-01-18 11", {"pieces": 74_215, "revenue": 77_183.6}),
        ("2011-12-09 10", {"pieces": 80_995, "revenue": 168_469.6}),
    ],
)
def test_the_known_orders_are_found(incidents, hour, ordered):
    """Each is one incident at the end of its hour, of pieces or revenue, whichever tells more."""
    found = [i for i in incidents if f"{i['detected_at']:%Y-%m-%d}" == hour[:10]]
    assert [(f"{i['detected_at']:%Y-%m-%d %H}", i["scope"], i["direction"]) for i in found] == [
        (hour, {"Country": "United Kingdom"}, "up")
    ]
    assert ordered[found[0]["metric"]] <= found[0]["observed"] <= 1.1 * ordered[found[0]["metric"]]


def test_a_closed_shop_is_no_incident(incidents):
    closed = (dt.datetime(2010, 12, 24, tzinfo=dt.UTC), dt.datetime(2011, 1, 4, tzinfo=dt.UTC))
    assert [i for i in incidents if closed[0] <= i["detected_at"] < closed[1]] == []
    assert [i for i in incidents if i["detected_at"].weekday() == 5] == []  # Saturdays
    assert [i for i in incidents if i["direction"] == "down"] == []


def test_a_person_can_read_them_all(incidents):
    """Less than one a week; what the example's page says of them was checked line by line."""
    assert 10 <= len(incidents) <= 50
    assert {i["metric"] for i in incidents if i["severity"] != "info"} == {"cancellations"}
    assert all(i["status"] == "resolved" for i in incidents[:-1])
