"""The verbs `silent`, hourly counts of those who have not come for a while, and `arrivals`, of who came."""

import pytest

from kmon.store import Span
from tests.conftest import T, settle
from tests.store.conftest import HOUR, MINUTE

ASKED = {"quiet": HOUR, "hours": 48, "lasting": 24, "least": 1}


@pytest.fixture
def five(commit):
    """p1 was here an hour and a half ago and twice the day before, p2 just now, p3 is gone for good."""
    for partner, *ago in (("p1", 1.5, 25.2, 25.4), ("p2", 0.5, 24.5), ("p3", 30.5)):
        commit(*({"partner": partner, "country": "SE", "event_time": T - h * HOUR} for h in ago))


def told(reader, by=("partner",), **changes):
    rows = reader.silent(list(by), "sessions", T, **{**ASKED, **changes})
    names = reader.names("partner", [n for n in rows["partner"].unique() if n is not None])
    return sorted((names.get(r["partner"], ""), r["hour"], r["n"]) for r in rows.iter_rows(named=True)), rows


EVERYBODY = [("", 0, 1), ("", 1, 1), ("", 24, 1), ("", 25, 2), ("", 30, 1)]


@pytest.mark.parametrize("compacted", [False, True])
def test_the_silent_by_the_hour(reader, store, config, five, compacted):
    if compacted:
        settle(store, config, minutes=T - HOUR)
    found, rows = told(reader)
    assert found == [*EVERYBODY, ("p1", 1, 1), ("p1", 25, 2)]
    assert set(rows.filter(rows["partner"].is_not_null())["tests"]) == {2}  # p3 is asked about no more
    assert rows.filter(rows["hour"] == 1)["newest"].max() == (T - 90 * MINUTE).replace(tzinfo=None)


@pytest.mark.parametrize(
    ("changes", "partners"),
    [
        ({"least": 2}, {"p1"}),
        ({"least": 2.5}, set()),
        ({"quiet": 2 * HOUR}, set()),  # p1 was here
        ({"quiet": 20 * MINUTE, "lasting": 1}, {"p2"}),
        ({"by": ("partner", "country")}, {"p1"}),
    ],
)
def test_who_is_silent(reader, five, changes, partners):
    assert {name for name, _, _ in told(reader, **changes)[0]} - {""} == partners


@pytest.mark.parametrize("compacted", [False, True])
def test_who_came_in_each_window(reader, store, config, commit, compacted):
    """Twice in the first ten minutes, once and without a partner in the second; an order is no session."""
    commit(
        {"partner": "p1", "event_time": T},
        {"partner": "p1", "event_time": T + 3.5 * MINUTE},
        {"partner": "p2", "event_time": T + 10 * MINUTE},
        {"partner": None, "event_time": T + 19 * MINUTE},
        {"partner": "p2", "event_time": T + 11 * MINUTE, "operation": "order"},
        {"partner": "p2", "event_time": T + 20 * MINUTE},
    )
    if compacted:
        settle(store, config, minutes=T + HOUR)
    rows = reader.arrivals(Span("", T, 2, 10 * MINUTE), "partner", "sessions")
    names = {**reader.names("partner", rows["number"].to_list()), 0: ""}
    found = sorted((r["slot"], names[r["number"]], r["n"], r["minute"]) for r in rows.iter_rows(named=True))
    assert found == [(0, "p1", 2, 3), (1, "", 1, 9), (1, "p2", 1, 0)]
