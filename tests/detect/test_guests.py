"""Monitors that no grouping set has, judged in the fleet's company."""

from __future__ import annotations

import polars as pl
import pytest

from kmon.config import Config
from kmon.detect import Fleet, Scored, sweep
from kmon.detect.fleet import numbers_of
from kmon.detect.guests import guest_scored, row_of, scope_of, with_guest
from kmon.store import EmbeddedStore
from tests.detect.worlds import AT, MINUTE, NEXT, Mask, config, shop, traffic

SE_EDGE = {"country": "SE", "browser": "edge"}
THERE = (pl.col("country") == "SE") & (pl.col("browser") == "edge")
ILL = pl.when(THERE & NEXT).then(0.1).otherwise(0.5)


def as_guest(store: EmbeddedStore, settings: Config, scope: dict[str, str], **how: object) -> tuple[Scored, Fleet]:
    seen = sweep(store, settings, AT).scored[0]
    fleet = with_guest(seen.fleet, store, settings, scope, **how)  # type: ignore[arg-type]
    assert fleet is not None
    return guest_scored(seen, fleet, "conversion", settings), fleet


def test_a_guest_is_judged_as_if_it_were_watched() -> None:
    watching = config(watch=[*config().watch, ["country", "browser"]])
    with shop(traffic(conversion=ILL)) as store:
        guest, fleet = as_guest(store, config(), SE_EDGE)
        own = sweep(store, watching, AT).scored[0]
        row = row_of(own.fleet, numbers_of(store, SE_EDGE))
        assert row is not None
        watched = own.score("conversion", row)
        assert scope_of(store, fleet, fleet.monitors.height - 1) == SE_EDGE
    (score,) = guest.scores.to_dicts()
    assert watched is not None
    assert score["observed"] == watched["observed"] < 0.2
    assert score["expected"] == pytest.approx(watched["expected"], rel=0.02)
    assert score["p_value"] < 1e-9
    assert score["notable"]


def test_a_guest_has_no_events_of_what_is_explained() -> None:
    with shop(traffic(conversion=ILL)) as store:
        whole, rest = (as_guest(store, config(), SE_EDGE, without=w)[0] for w in ([], [{"partner": "p1"}]))
    sessions = [one.fleet.values["sessions"][-1].sum() for one in (whole, rest)]
    assert sessions[1] == pytest.approx(5 / 6 * sessions[0], rel=0.05)


def test_a_guest_is_masked_like_any_monitor() -> None:
    mask = Mask(SE_EDGE, AT - 30 * MINUTE, AT - 10 * MINUTE)
    with shop(traffic()) as store:
        clean, masked = (as_guest(store, config(), SE_EDGE, masks=m)[1] for m in ((), (mask,)))
    assert clean.usable[-1].sum() > masked.usable[-1].sum() > 0


def test_a_guest_without_events_is_none() -> None:
    with shop(traffic()) as store:
        seen = sweep(store, config(), AT).scored[0].fleet
        assert with_guest(seen, store, config(), {"country": "SE", "browser": "never seen"}) is None
        assert row_of(seen, {"another dimension": 1}) is None


def test_a_guest_has_the_days_of_its_own_calendar() -> None:
    sale = {"events": [{"name": "sale", "dates": [str(AT.date())], "scope": {"country": "SE"}}]}
    with shop(traffic()) as store:
        swedish, german = (
            as_guest(store, config(calendar=sale), {"country": country, "browser": "edge"})[1]
            for country in ("SE", "DE")
        )
    last = swedish.monitors.height - 1
    assert list(swedish.unlike_days(last)) == ["day1"]
    assert german.unlike_days(last) == {}
    assert swedish.unlike_days(0) == german.unlike_days(0) == {}
