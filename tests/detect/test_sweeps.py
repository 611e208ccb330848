"""One pass over all monitors."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from kmon.clock import floor
from kmon.config import show_duration
from kmon.detect import due_windows, sweep
from kmon.detect.sweeps import _cutoff, false_discovery_rate, look_every
from kmon.errors import UsageError
from tests.conftest import settle
from tests.detect.worlds import AT, DAY, MINUTE, NEXT, Mask, config, shop, spread, traffic

SECOND, HOUR = dt.timedelta(seconds=1), dt.timedelta(hours=1)

DEAD = pl.when((pl.col("partner") == "p1") & NEXT).then(0.0).otherwise(8.0)


@pytest.mark.parametrize(
    ("p", "rate", "cutoff"),
    [
        ([], 0.05, 0.0),
        ([0.5, 0.9], 0.05, 0.0),
        ([0.01, 0.02, 0.03, 0.9], 0.05, 0.03),  # the third is below 3/4 x 0.05, though 0.02 would do alone
        ([0.02, 0.06, 0.9, 0.9], 0.05, 0.0),
        ([0.0125, 0.9, 0.9, 0.9], 0.05, 0.0125),
    ],
)
def test_the_false_discovery_rate(p: list[float], rate: float, cutoff: float) -> None:
    assert _cutoff(np.array(p), rate) == cutoff


@pytest.mark.parametrize(
    ("windows", "every", "alerts", "rates"),
    [
        (["5m"], "1m", 1, {"5m": 1 / 1440}),  # a look a minute
        (["1m", "15m"], "1m", 1, {"1m": 1 / 2880, "15m": 3 / 2880}),  # in equal parts to both widths
        (["1m", "15m"], "5m", 1, {"1m": 1 / 576, "15m": 1 / 576}),  # no more looks than sweeps
        (["5m"], "10s", 1, {"5m": 1 / 1440}),  # more sweeps are no more looks
        (["5m", "1h"], "5m", 1000, {"5m": 0.05, "1h": 0.05}),  # never more than this
    ],
)
def test_the_budget_of_false_alerts_is_shared_by_widths_and_looks(
    windows: list[str], every: str, alerts: float, rates: dict[str, float]
) -> None:
    settings = config(windows=windows, every=every, false_alerts_per_day=alerts)
    found = {
        show_duration(width): false_discovery_rate(settings, look_every(settings, width)) for width in settings.windows
    }
    assert found == pytest.approx(rates)


@pytest.mark.parametrize(
    ("width", "every", "seconds"),
    [
        ("1m", "1m", 60),
        ("5m", "1m", 60),
        ("1h", "1m", 720),
        ("7m", "1m", 60),
        ("1m", "10s", 10),
        ("3m", "10s", 30),
        ("3m", "30s", 30),
        ("7m", "10s", 60),  # not 80, as what is a minute apart or more is on whole minutes
        ("1h", "10s", 720),
        ("7m", "50s", 50),  # which sweeps seldom are
    ],
)
def test_a_width_is_looked_at_five_times_in_its_length(width: str, every: str, seconds: int) -> None:
    settings = config(windows=[width], every=every)
    assert look_every(settings, settings.windows[0]) == dt.timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("minute", "every", "due"),
    [
        (0, "1m", ["1m", "5m"]),
        (2, "1m", ["1m", "5m", "15m"]),
        (3, "1m", ["1m", "5m", "1h"]),
        (5, "1m", ["1m", "5m", "15m"]),
        (15, "1m", ["1m", "5m", "1h"]),
        (5, "5m", ["1m", "5m", "15m", "1h"]),
        (10, "5m", ["1m", "5m", "15m"]),
    ],
)
def test_each_window_is_due_five_times_in_its_length(minute: int, every: str, due: list[str]) -> None:
    settings = config(windows=["1m", "5m", "15m", "1h"], every=every)
    at = AT + minute * MINUTE
    assert [show_duration(w) for w in due_windows(settings, at, at - settings.every)] == due


@pytest.mark.parametrize(
    ("seconds", "due"),
    [
        (10, ["1m", "5m", "1h"]),
        (60, ["1m", "5m", "1h"]),
        (70, ["1m", "5m", "15m", "1h"]),
        (None, ["1m", "5m", "15m", "1h"]),
    ],
)
def test_what_was_due_in_a_sweep_that_was_left_out_is_judged_in_the_next(seconds: int | None, due: list[str]) -> None:
    settings = config(windows=["1m", "5m", "15m", "1h"], every="10s")
    at = AT + 15 * MINUTE
    since = at - dt.timedelta(seconds=seconds) if seconds else None
    assert [show_duration(w) for w in due_windows(settings, at, since)] == due


def test_an_outage_is_flagged_and_noise_is_not() -> None:
    with shop(traffic()) as calm, shop(traffic(DEAD)) as ill:
        assert sweep(calm, config(), AT).anomalies == 0
        found = sweep(ill, config(), AT)
    assert 0 < found.cutoff < 0.01
    flagged = found.flagged[0]
    assert set(flagged["metric"]) == {"sessions", "orders"}
    assert (flagged["observed"] == 0).all()


def test_a_masked_reference_hides_nothing_and_invents_nothing() -> None:
    """Yesterday's outage of p1 at this time makes today's look usual, unless its minutes are left out."""
    was = (pl.col("partner") == "p1") & (pl.col("today").not_() | (pl.col("ago") <= 5))
    dead = pl.when(was & pl.col("ago").is_between(-20, 20)).then(0.0).otherwise(8.0)
    known = Mask({"partner": "p1"}, AT - DAY - 25 * MINUTE, AT - DAY + 25 * MINUTE)
    with shop(traffic(dead)) as store:
        assert sweep(store, config(), AT).anomalies == 0
        assert sweep(store, config(), AT, masks=[known]).anomalies > 0


def test_each_width_is_a_family_of_its_own() -> None:
    """A minute of silence is an anomaly of the minute, and none of the half hour around it."""
    brief = pl.when((pl.col("partner") == "p1") & pl.col("today") & (pl.col("ago") <= 1)).then(0.0).otherwise(8.0)
    settings = config(windows=["1m", "30m"])
    with shop(traffic(brief)) as store:
        found = sweep(store, settings, AT)
    minute, half_hour = (found.families[width] for width in settings.windows)
    assert minute.cutoff > 0
    assert half_hour.cutoff == 0
    assert (found.cutoff, found.tests) == (minute.cutoff, minute.tests + half_hour.tests)
    assert found.windows == tuple(settings.windows)
    assert {s.width: f.height > 0 for s, f in zip(found.scored, found.flagged, strict=True)} == {
        MINUTE: True, 30 * MINUTE: False
    }  # fmt: skip


def test_sweeps_at_whole_minutes_are_alike_however_often_there_are_others() -> None:
    """Also with windows below a minute beside the others."""
    seen = []
    for every, windows in [("1m", ["1m", "5m"]), ("10s", ["1m", "5m"]), ("10s", ["10s", "30s", "1m", "5m"])]:
        settings = config(every=every, windows=windows)
        with shop(spread(traffic(DEAD)), settings) as store:
            found = [sweep(store, settings, AT - ago * MINUTE).scored for ago in (1, 0)]
        seen.append([one.scores for each in found for one in each if one.width >= MINUTE])
    assert [len(scores) for scores in seen] == [4, 4, 4]
    for often in seen[1:]:
        assert all(one.equals(other) for one, other in zip(seen[0], often, strict=True))


def test_windows_below_a_minute_are_judged_as_long_as_ten_seconds_are_kept() -> None:
    settings = config(every="10s", windows=["10s", "1m"])
    dead = pl.when((pl.col("partner") == "p1") & NEXT).then(0.0).otherwise(40.0)
    at, widths = AT - 40 * SECOND, {10 * SECOND, MINUTE}
    with shop(spread(traffic(dead, minutes=120)), settings) as store:
        for merged, judged in [(None, widths), (2 * HOUR, widths), (dt.timedelta(0), {MINUTE})]:
            if merged is not None:
                settle(store, settings, minutes=floor(AT - merged, HOUR))
            found = sweep(store, settings, at)
            assert set(found.windows) == judged
            for one, flagged in zip(found.scored, found.flagged, strict=True):
                assert flagged.filter(pl.col("metric") == "sessions").height > 0, one.width
                assert "conversion" in one.scores["metric"]


def test_a_quiet_source_is_nobodys_outage() -> None:
    silent = pl.when(pl.col("today") & (pl.col("ago") <= 5)).then(0.0).otherwise(8.0)
    with shop(traffic(silent)) as store:
        found = sweep(store, config(), AT)
    assert (found.tests, found.anomalies, found.scored) == (0, 0, ())


def test_an_empty_store_has_nothing_to_judge() -> None:
    with shop(traffic().clear()) as store:
        assert sweep(store, config(), AT).tests == 0


MINE = """
from kmon.detect import Compare

class Harsh(Compare):
    name = "harsh"
"""


def test_a_detector_on_trial_is_scored_but_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "harsh_detector.py").write_text(MINE)
    uses = [{"use": "compare", "params": {"min_volume": 1e6}}, {"use": "harsh_detector:Harsh", "shadow": True}]
    with shop(traffic(DEAD)) as store:
        found = sweep(store, config(tmp_path, detectors=uses), AT)
    assert [s.detector.name for s in found.scored] == ["compare", "harsh"]
    assert (found.tests, found.cutoff, found.anomalies) == (0, 0.0, 0)
    assert found.scored[1].scores.height > 0


def test_a_measure_of_money_does_not_bound_the_number_of_events() -> None:
    """A single order can be worth more than min_volume."""
    one = traffic(0.05, 1.0).with_columns(kind=pl.lit("o"))
    measures = {"sessions": "count(*)", "orders": "count(*)", "value": "sum(50) FILTER (kind = 'o')"}
    settings = config(measures=measures, metrics={"value": {"count": "value"}})
    with shop(one, settings) as store:
        assert sweep(store, settings, AT - dt.timedelta(minutes=10)).tests > 0


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"dimensions": ["partner", "country", "browser", "kind"], "watch": [["kind"]]}, "no dimension 'kind' yet"),
        (
            {"measures": {**config().measures, "all": "count(*)"}, "metrics": {"all": {"count": "all"}}},
            "no measure 'all' yet",
        ),
    ],
)
def test_a_configuration_that_the_store_has_not_taken_over_is_told(changes: dict, says: str) -> None:
    with shop(traffic()) as store, pytest.raises(UsageError, match=says):
        sweep(store, config(**changes), AT)
