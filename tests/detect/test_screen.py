"""Who is looked at closely: nobody who could be an anomaly is missed, and what is usual is told by a fair sample."""

from __future__ import annotations

import datetime as dt
from typing import Any

import hypothesis
import numpy as np
import polars as pl
import pytest
from hypothesis import strategies as st

from kmon.config import Config
from kmon.detect import Sweep, cube, screen, sweep, sweeps
from kmon.detect.calendar import Calendar
from kmon.detect.cube import recall
from kmon.detect.screen import Asked, Sums, pick
from kmon.store import EmbeddedStore, Store
from tests.detect.worlds import AT, MINUTE, add, config, lately, shop, timed, timed_config, traffic

NOW = pl.col("today") & (pl.col("ago") <= 6)
ILL = {
    "an outage": {"sessions": pl.when((pl.col("partner") == "p1") & NOW).then(0.0).otherwise(6.0)},
    "a fall by 70 %": {"sessions": pl.when((pl.col("browser") == "safari") & NOW).then(2.0).otherwise(6.0)},
    "a surge": {"sessions": pl.when((pl.col("country") == "SE") & NOW).then(20.0).otherwise(6.0)},
    "declines": {"conversion": pl.when((pl.col("partner") == "p2") & NOW).then(0.1).otherwise(0.5)},
    "more than yesterday, all day": {"sessions": pl.when(pl.col("today")).then(9.0).otherwise(4.0)},
    "nothing": {},
}
SETTINGS: dict[str, Any] = {"windows": ["1m", "2m", "5m", "20m"], "false_alerts_per_day": 100}


def flagged(found: Sweep) -> set[tuple[Any, ...]]:
    return {
        (scored.width, row["metric"], row["direction"], scored.fleet.monitors.row(row["row"]))
        for scored, frame in zip(found.scored, found.flagged, strict=True)
        for row in frame.iter_rows(named=True)
    }


def looked_at(found: Sweep) -> set[tuple[Any, ...]]:
    return {
        (scored.width, row["metric"], scored.fleet.monitors.row(row["row"]))
        for scored in found.scored
        for row in scored.scores.iter_rows(named=True)
    }


@pytest.mark.parametrize(("sunday", "later"), [("2026-03-29", 60), ("2026-10-25", -60)])
def test_nobody_is_missed_on_the_day_after_the_clocks_were_changed(
    sunday: str, later: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sweden shops for half an hour a day, and has not come today; by the clock of UTC it was not there yesterday."""
    at = dt.datetime.combine(dt.date.fromisoformat(sunday), AT.timetz())
    opens = (AT + (later - 6) * MINUTE).time()
    closes = (AT + (later + 24) * MINUTE).time()
    there = ~pl.col("today") & pl.col("ts").dt.time().is_between(opens, closes)
    events = traffic(pl.when((pl.col("country") == "SE") & ~there).then(0.0).otherwise(8.0), minutes=150)
    settings = config(**SETTINGS, enrich={"country": "country"})
    with EmbeddedStore(":memory:", settings) as store:
        add(store, events.with_columns(pl.col("event_time") + (at - AT)), at)
        whole = sweep(store, settings, at)
        monkeypatch.setattr(screen, "COMPANY", 5)
        monkeypatch.setattr(cube, "FEW", 0)
        few = sweep(store, settings, at)
        sweden = store.number("country", "SE")
    fallen = {(width, metric, monitor) for width, metric, _, monitor in flagged(whole) if monitor[2] == sweden}
    assert {metric for _, metric, _ in fallen} == {"sessions", "orders"}
    assert fallen <= looked_at(few)


SLOW = {"slow browsers": pl.col("browser") == "edge", "a slow partner": pl.col("partner") == "p1"}


@pytest.mark.parametrize("case", [*ILL, *SLOW])
def test_nobody_who_could_be_an_anomaly_is_missed(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is flagged where all are looked at is looked at where few are."""
    settings, events = config(**SETTINGS), traffic(**ILL.get(case, {}))
    if case in SLOW:
        settings, events = timed_config(**SETTINGS), timed(events, lately(SLOW[case], 1.8, 6))
    monkeypatch.setattr(screen, "COMPANY", 5)
    monkeypatch.setattr(cube, "FEW", 0)
    with shop(events, settings) as store:
        few = sweep(store, settings, AT)
        monkeypatch.undo()
        whole = sweep(store, settings, AT)
    assert {(width, metric, monitor) for width, metric, _, monitor in flagged(whole)} <= looked_at(few)
    assert bool(flagged(whole)) == (case not in ("nothing", "more than yesterday, all day"))
    assert few.tests == pytest.approx(whole.tests, rel=0.05)
    assert sum(s.scores.height for s in few.scored) < 0.85 * sum(s.scores.height for s in whole.scored)


def test_a_shop_that_does_not_open_is_looked_at() -> None:
    """It has enough now, as yesterday at this time, though not on average over the hours before."""
    opens, p1 = AT.replace(hour=11, minute=45), pl.col("partner") == "p1"
    closed = (pl.col("ts").dt.time() < opens.time()) | (pl.col("today") & (pl.col("ago") <= 6))
    rate = pl.when(p1 & closed).then(0.0).when(p1).then(0.4).otherwise(4.0)
    with shop(traffic(rate, minutes=150)) as store:
        found = sweep(store, config(), AT).scored[0]
        row = found.fleet.monitors.to_dicts().index(
            {"set": 0, "partner": store.number("partner", "p1"), "country": None, "browser": None}
        )
        score = found.score("sessions", row)
    assert score is not None
    assert score["expected"] > 10
    assert score["p_value"] < 1e-4


def test_the_company_is_chosen_without_regard_to_what_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(screen, "COMPANY", 6)
    settings = config(**SETTINGS)
    chosen = []
    for what in ({}, ILL["an outage"]):
        with shop(traffic(**what)) as store:
            read = recall(store, settings, AT)
            chosen.append(_pick(store, read, settings, "sessions"))
    calm, ill = chosen
    assert calm.rows[calm.company].tolist() == ill.rows[ill.company].tolist()
    assert len(ill.rows) > ill.company.sum() == 6


def test_who_is_wanted_and_what_has_no_bound_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(screen, "COMPANY", 2)
    settings = config(**SETTINGS)
    with shop(traffic()) as store:
        read = recall(store, settings, AT)
        few = _pick(store, read, settings, "sessions")
        others = np.setdiff1d(read.watched(settings), few.rows)
        assert others[0] in _pick(store, read, settings, "sessions", keep=others[:1]).rows
        everybody = _pick(store, read, settings, "sessions", change=None)
    assert len(everybody.rows) == everybody.large > len(few.rows)
    assert everybody.company.all()


def _pick(
    store: Store,
    read: Any,
    settings: Config,
    metric: str,
    keep: Any = (),
    change: tuple[float, float] | None = (0.5, 1.0),
) -> screen.Pick:
    asked = {metric: Asked(settings.metrics[metric], 10.0, change)}
    sums = Sums(read, AT, read.watched(settings), asked, 5 * MINUTE, Calendar(settings, store))
    return pick(sums, 5 * MINUTE, asked, keep=np.array(keep, dtype=np.int64), rate=1e-3)[metric]


@hypothesis.given(
    p=st.lists(st.floats(1e-12, 1.0), min_size=1, max_size=60),
    share=st.lists(st.floats(1e-3, 1.0), min_size=60, max_size=60),
    rate=st.floats(1e-4, 0.2),
)
def test_lower_bounds_of_p_values_bound_the_cutoff(p: list[float], share: list[float], rate: float) -> None:
    bounds = np.array(p) * np.array(share)[: len(p)]
    assert screen._most(bounds, rate, len(p)) >= sweeps._cutoff(np.array(p), rate)
