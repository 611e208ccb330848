"""Detectors of single series in the sweep: whom they judge, what they find, and how what they began ends."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from kmon.config import Config, DetectorUse
from kmon.detect import SCORES, Sweep, load_detector, series_detector, sweep
from kmon.detect.adapted import WEEK, Adapted, usual
from kmon.detect.guests import scope_of
from kmon.detect.models import A_DAY
from kmon.doctor import examine
from kmon.errors import StoreError, UsageError
from kmon.ledger import Ledger
from kmon.reasons import why
from kmon.recheck import Recheck
from kmon.store import EmbeddedStore
from kmon.watch import Watch
from tests.detect.worlds import AT, MINUTE, Mask, add, shop
from tests.test_deepscan import settings as modelled
from tests.test_deepscan import traffic

USE = {"use": "kmon.detect:Surprise"}
LARGE = {"partner": "large"}
DAYS = 9

MINE = '''
import numpy as np
from kmon.detect import series_detector

@series_detector
def far(times, values, days=3, at=6.0):
    """Once in a million where a point lies far from the middle of the last days."""
    past = values[-days * 288 : -1]
    return np.where(abs(values - np.nanmedian(past)) > at * np.nanstd(past), 1e-6, 1.0)

@series_detector
def short(times, values):
    return [1.0]

@series_detector
def expecting(times, values):
    return np.full(len(values), 1e-6), np.full(len(values), 100.0)
'''


def settings(folder: Path | None = None, **changes: Any) -> Config:
    """Surprise, and nothing else, on one partner."""
    path = {} if folder is None else {"path": folder / "kmon.yaml"}
    return modelled(**{"detectors": [USE], "models": {"monitors": [LARGE]}, **path, **changes})


def ago(minutes: float) -> pl.Expr:
    """Whether an event came in the last minutes before AT."""
    return pl.col("event_time") >= (AT - minutes * MINUTE).replace(tzinfo=None)


def broken(minutes: float, until: float = 0.0, partner: str = "large") -> pl.DataFrame:
    """The traffic without the orders of a partner for some minutes up to `until` minutes before AT."""
    lost = (pl.col("kind") == "o") & (pl.col("partner") == partner) & ago(minutes) & ~ago(until)
    return traffic(DAYS).filter(~lost)


@pytest.fixture(scope="module")
def calm() -> Iterator[EmbeddedStore]:
    with shop(traffic(DAYS), settings()) as store:
        yield store


@pytest.fixture(scope="module")
def ill() -> Iterator[EmbeddedStore]:
    with shop(broken(10), settings()) as store:
        yield store


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    with Ledger.open("sqlite://") as opened:
        yield opened


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("sys.path", __import__("sys").path.copy())
    (tmp_path / f"{module(tmp_path)}.py").write_text(MINE)
    return tmp_path


def module(folder: Path) -> str:
    return f"series_{folder.name.replace('-', '_')}"


def flagged(store: EmbeddedStore, found: Sweep) -> list[tuple[str, dict[str, str], str]]:
    """(metric, scope, direction) of all anomalies."""
    pairs = zip(found.scored, found.flagged, strict=True)
    return [
        (row["metric"], scope_of(store, one.fleet, row["row"]), row["direction"])
        for one, rows in pairs
        for row in rows.iter_rows(named=True)
    ]


def test_a_chosen_series_that_breaks_is_found_and_nothing_else(calm: EmbeddedStore, ill: EmbeddedStore) -> None:
    assert flagged(calm, sweep(calm, settings(), AT)) == []
    found = sweep(ill, settings(), AT)
    assert flagged(ill, found) == [("orders", LARGE, "down")]
    (one,) = found.scored
    assert (one.detector.name, one.apart, one.width, found.own) == ("surprise", "surprise", 5 * MINUTE, ("surprise",))
    assert one.scores["metric"].to_list() == ["sessions", "orders", "conversion"]
    assert found.families["surprise"].rate == pytest.approx(1 / 2 / 288)  # half the budget, a look every five minutes


def test_it_becomes_an_incident_and_why_tells_of_it(ill: EmbeddedStore, ledger: Ledger) -> None:
    (incident,) = Watch(settings(), ill, ledger).look(AT).new
    assert (incident.metric, incident.scope, incident.detector) == ("orders", LARGE, "surprise")
    assert AT - 15 * MINUTE <= incident.started_at < AT
    assert incident.lower < incident.expected < incident.upper
    assert ledger.deliveries()
    told = why(settings(), ill, ledger, "orders", LARGE, AT)
    assert (told.outcome, [w.detector for w in told.windows]) == ("fired", ["surprise"])
    assert told.windows[0].value == 0
    others = {"partner": "small"}, {}
    for scope, said in zip(others, ("no configured detector", "no configured detector"), strict=True):
        assert said in why(settings(), ill, ledger, "orders", scope, AT).sentence


def test_who_is_not_among_the_largest_is_told_so(ill: EmbeddedStore, ledger: Ledger) -> None:
    told = why(settings(models={"largest": 1}), ill, ledger, "orders", {"partner": "small"}, AT)
    assert "it is none of the monitors that 'models' chooses" in told.sentence


def test_on_trial_it_is_recorded_and_alerts_nobody(ill: EmbeddedStore, ledger: Ledger) -> None:
    alone, beside = [{"use": "compare"}], [{"use": "compare"}, {**USE, "shadow": True}]
    rates = [sweep(ill, settings(detectors=one), AT).families[5 * MINUTE].rate for one in (alone, beside)]
    assert rates[0] == rates[1], "it has no share of the budget"
    trial = settings(detectors=[{**USE, "shadow": True}])
    assert Watch(trial, ill, ledger).look(AT).incidents == []
    assert ledger.deliveries() == []
    recorded = [(a.metric, a.scope, a.detector, a.window, a.shadow) for a in ledger.anomalies("")]
    assert recorded == [("orders", LARGE, "surprise", 5 * MINUTE, True)]
    told = why(trial, ill, ledger, "orders", LARGE, AT)
    assert told.windows[0].reason == "the detector is on trial: it scores, and alerts nobody"


def test_beside_the_comparison_it_makes_no_second_incident(ill: EmbeddedStore, ledger: Ledger) -> None:
    """The comparison finds the partner; the surprise of everything together is a part of that."""
    both = settings(detectors=[{"use": "compare"}, USE], models={"largest": 2})
    outcome = Watch(both, ill, ledger).look(AT)
    assert len(outcome.new) == 1
    assert outcome.new[0].detector == "compare"


def test_ones_own_function_is_named_in_the_configuration(ill: EmbeddedStore, folder: Path) -> None:
    use = {"use": f"{module(folder)}:far", "params": {"at": 1.4}}
    found = sweep(ill, settings(folder, detectors=[use]), AT)
    assert ("orders", LARGE, "down") in flagged(ill, found)
    assert found.own == ("far",)
    with pytest.raises(UsageError, match="did you mean 'days'"):
        load_detector(DetectorUse(use=use["use"], params={"dais": 1}), folder)  # type: ignore[arg-type]


def test_one_may_be_on_trial_beside_itself(calm: EmbeddedStore) -> None:
    trial = {**USE, "params": {"fit_days": 10}, "shadow": True}
    found = sweep(calm, settings(detectors=[USE, trial]), AT)
    assert found.own == ("surprise", "surprise 2")
    assert [one.use.shadow for one in found.scored] == [False, True]
    assert found.families["surprise"].rate == pytest.approx(1 / 2 / 288)


def test_what_it_expected_may_be_its_own(calm: EmbeddedStore, folder: Path) -> None:
    found = sweep(calm, settings(folder, detectors=[{"use": f"{module(folder)}:expecting"}]), AT)
    scores = found.scored[0].scores.filter(pl.col("metric") == "sessions")
    assert scores["expected"].to_list() == [100.0]
    assert scores["direction"].to_list() == ["down"]


def test_scores_of_another_length_are_refused(calm: EmbeddedStore, folder: Path) -> None:
    with pytest.raises(UsageError, match=f"'short' returned 1 numbers as p_value of {DAYS * A_DAY} points"):
        sweep(calm, settings(folder, detectors=[{"use": f"{module(folder)}:short"}]), AT)


def test_without_models_a_sentence_says_what_to_set(calm: EmbeddedStore, tmp_path: Path) -> None:
    nobody = settings(tmp_path, models={})
    said = "judges single series.*'models' chooses, and it chooses none: set models.largest or models.monitors"
    with pytest.raises(UsageError, match=said) as error:
        sweep(calm, nobody, AT)
    assert error.value.exit_code == 2
    (check,) = [check for check in examine(nobody) if check.name == "detectors"]
    assert (check.ok, check.detail) == (False, str(error.value))
    good = settings(tmp_path, detectors=[{**USE, "shadow": True}])
    (check,) = [check for check in examine(good) if check.name == "detectors"]
    assert (check.ok, check.detail) == (True, "surprise (shadow)")


@pytest.mark.parametrize(
    ("since", "due"), [(None, True), (AT - MINUTE, True), (AT - 5 * MINUTE, True), (AT, False)]
)  # fmt: skip
def test_a_look_is_due_when_a_step_is_complete(calm: EmbeddedStore, since: dt.datetime | None, due: bool) -> None:
    at = AT if since != AT else AT + 4 * MINUTE
    often = settings(every="1m")
    assert ("surprise" in sweep(calm, often, at, since=since).own) is due


class _Slow(EmbeddedStore):
    """A store that has no time for long questions about the past."""

    def measures(self, where: Any, start: dt.datetime, end: dt.datetime, grain: dt.timedelta = MINUTE) -> pl.DataFrame:
        if grain == 5 * MINUTE:
            message = "took longer than 10 s"
            raise StoreError(message)
        return super().measures(where, start, end, grain)


def test_where_the_store_takes_too_long_the_sweep_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    full = settings(detectors=[{"use": "compare"}, USE])
    with _Slow(":memory:", full) as store:
        add(store, broken(10))
        found = sweep(store, full, AT)
    assert (found.own, found.windows) == ((), (5 * MINUTE,))
    assert "surprise is not judged" in capsys.readouterr().out


def test_an_incident_goes_on_where_the_store_takes_too_long(
    ill: EmbeddedStore, ledger: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    (incident,) = Watch(settings(), ill, ledger).look(AT).new
    with _Slow(":memory:", settings()) as slow:
        add(slow, broken(10))
        seen = sweep(ill, settings(), AT)
        assert Recheck(ill, settings(), seen)(incident) == "abnormal"
        assert Recheck(slow, settings(), seen)(incident) == "unjudged"
    assert "surprise does not judge an incident again" in capsys.readouterr().out


@pytest.mark.parametrize("days", [0, 1])
def test_a_new_series_and_one_point_are_not_judged(days: int, ledger: Ledger) -> None:
    """A day is less than what Surprise learns from."""
    newest = traffic(DAYS).filter(ago(max(days * 1440, 5)))
    with shop(newest, settings()) as store:
        found = sweep(store, settings(), AT)
        told = why(settings(), store, ledger, "orders", LARGE, AT)
    assert [one.scores.height for one in found.scored] in ([], [0])
    assert told.outcome == "not judged"


def test_a_monitor_without_events_is_left_out(calm: EmbeddedStore) -> None:
    named = settings(models={"monitors": [LARGE, {"partner": "nobody"}]})
    (one,) = sweep(calm, named, AT).scored
    assert one.fleet.monitors.height == 1


def test_a_known_incident_is_a_gap_and_the_newest_step_is_judged() -> None:
    """What went on for three hours is still an anomaly, as its own past is masked."""
    with shop(broken(180), settings()) as store:
        known = [Mask(LARGE, AT - 180 * MINUTE)]
        masked, plain = (sweep(store, settings(), AT, masks=masks) for masks in (known, []))
        assert ("orders", LARGE, "down") in flagged(store, masked)
        assert flagged(store, plain) == []


def test_what_it_began_goes_on_and_ends(ledger: Ledger) -> None:
    """Orders fail for 40 minutes, up to 40 minutes before AT: still there at first, over three steps after the end."""
    often = settings(every="1m")
    with shop(broken(80, until=40), often) as store:
        watch = Watch(often, store, ledger)
        actions: dict[int, str] = {}
        for minutes in range(75, -1, -1):
            for decision in watch.look(AT - minutes * MINUTE).decisions:
                actions[minutes] = decision.action
    first = max(actions)
    assert actions[first] == "new"
    assert all(actions[m] in ("joined", "still", "unjudged", "quiet") for m in range(first - 1, 40, -1))
    assert {"joined", "still"} & {actions[m] for m in range(first - 1, 40, -1)}
    (incident,) = ledger.incidents()
    assert incident.resolved_at is not None
    assert AT - 40 * MINUTE < incident.resolved_at <= AT - 20 * MINUTE


# ---- what is usual ---------------------------------------------------------------------------------------------------


def daily(days: float, level: float = 100.0, noise: float = 1.0) -> np.ndarray[Any, Any]:
    t = np.arange(round(days * A_DAY))
    shape = level * (1 + 0.5 * np.sin(2 * np.pi * t / A_DAY))
    return shape + np.random.default_rng(1).normal(0, noise, len(t))


def test_the_usual_level_is_that_of_the_time_of_day_at_todays_level() -> None:
    series = daily(WEEK + 0.5)
    expected, sd = usual(series)
    assert expected == pytest.approx(100.0, abs=3)
    assert sd == pytest.approx(1.0, rel=0.35)
    series[-100:] *= 2
    assert usual(series)[0] == pytest.approx(200.0, abs=6)
    series[-1] = 0.0
    assert usual(series)[0] == pytest.approx(200.0, abs=6), "the newest step says nothing of itself"


def test_without_days_the_last_hour_tells_and_else_nothing() -> None:
    series = daily(1.0)
    expected, sd = usual(series)
    assert expected == pytest.approx(np.median(series[-13:-1]))
    assert sd < 10, "the course of the day is no noise"
    for nothing in (series[:0], series[:1], np.full(5000, np.nan)):
        assert np.isnan(usual(nothing)).all()


# ---- the contract, of every detector of series -----------------------------------------------------------------------


@series_detector
def never(times: Any, values: Any) -> Any:
    """Nothing is ever odd."""
    return np.ones(len(values))


@series_detector
def unknown(times: Any, values: Any) -> Any:
    """Nothing can ever be said."""
    return np.full(len(values), np.nan)


@pytest.mark.parametrize(("detector", "judged"), [(never(), 3), (unknown(), 0)])
def test_nan_is_not_judged(calm: EmbeddedStore, detector: Any, judged: int) -> None:
    looked = Adapted(detector).look(calm, settings(), AT)
    assert looked is not None
    assert (looked.scores.height, looked.tests) == (judged, judged)
    assert looked.scores.select(SCORES.names()).schema == SCORES
    assert not looked.scores["notable"].any() or looked.scores["judged"].all()
