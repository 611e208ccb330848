"""From the store through the fits to the sweep: what is fitted, recorded, used, and told."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from kmon.config import Config, Models, load_config
from kmon.deepscan import measures_of, scan
from kmon.detect import Sweep, expected_series, observe, sweep
from kmon.detect.past import Past, chosen
from kmon.fits import models, usable
from kmon.ledger import FITS_KEPT, Fit, Ledger
from kmon.reasons import Why, why
from kmon.status import status
from kmon.store import EmbeddedStore
from kmon.watch import Watch
from tests.detect.worlds import AT, DAY, MINUTE, add, config
from tests.test_ledger import INCIDENT, SWEEP

HOUR = dt.timedelta(hours=1)
NOW = dt.datetime(2026, 7, 1, tzinfo=dt.UTC)
MODELS = {"largest": 2, "monitors": [{"partner": "small"}], "history": "9d"}


def clock() -> dt.datetime:
    return NOW


def settings(**changes: Any) -> Config:
    """The shop of `tests.detect.worlds`, by partner only, with models."""
    return config(**{"watch": [[], ["partner"]], "models": MODELS, **changes})


def traffic(days: int = 4) -> pl.DataFrame:
    """Sessions and orders up to AT: of a partner with many, more in the afternoon, and of one with hardly any."""
    steps = days * 288
    starts = [AT - (steps - i) * 5 * MINUTE for i in range(steps)]
    hours = np.array([t.hour + t.minute / 60 for t in starts])
    random, parts = np.random.default_rng(5), []
    for partner, level in (("large", 24.0), ("small", 0.2)):
        sessions = random.poisson(level * (1 - 0.7 * np.cos(2 * np.pi * (hours - 3) / 24)))
        for kind, counts in (("s", sessions), ("o", random.binomial(sessions, 0.4))):
            parts.append(
                pl.DataFrame({
                    "event_time": pl.Series([t.replace(tzinfo=None) for t in starts], dtype=pl.Datetime("us")),
                    "n": counts, "kind": kind, "partner": partner, "country": "SE", "browser": "chrome",
                })
            )  # fmt: skip
    counted = pl.concat(parts).filter(pl.col("n") > 0).sort("event_time")
    return counted.select(pl.exclude("n").repeat_by("n")).explode(pl.all())


@pytest.fixture(scope="module")
def store() -> Iterator[EmbeddedStore]:
    with EmbeddedStore(":memory:", settings()) as opened:
        add(opened, traffic())
        yield opened


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    with Ledger.open("sqlite://") as opened:
        yield opened


@pytest.fixture(scope="module")
def fits(store: EmbeddedStore) -> list[Fit]:
    with Ledger.open("sqlite://") as ledger:
        scan(settings(), store, ledger, clock=clock)
        return ledger.fits()


def weights(found: Why) -> dict[str, float]:
    return found.windows[0].days or {}


def test_the_largest_and_the_named_monitors_are_chosen(store: EmbeddedStore) -> None:
    assert chosen(settings(), store, AT) == [{"partner": "small"}, {}, {"partner": "large"}]
    assert chosen(settings(watch=[["partner"]], models={"largest": 9}), store, AT) == [{"partner": "large"}]
    assert chosen(settings(models={"monitors": [{}]}), store, AT) == [{}]


def test_denominators_come_before_their_numerators() -> None:
    metrics = {
        "orders": {"count": "orders"},
        "conversion": {"rate": "orders / sessions"},
        "again": {"rate": "sessions / orders"},
        "size": {"mean": "sessions / orders"},
    }
    found = measures_of(settings(metrics=metrics))
    assert set(found) == {"orders", "sessions"}
    assert next(iter(found)) in found.values()
    assert measures_of(settings()) == {"sessions": None, "orders": "sessions"}


def test_each_series_is_recorded_with_its_date_and_range(fits: list[Fit]) -> None:
    good = {(f.measure, tuple(f.scope.values())): f for f in fits if f.method}
    assert set(good) == {(m, s) for m in ("sessions", "orders") for s in ((), ("large",))}
    fit = good["sessions", ("large",)]
    assert (fit.fitted_at, fit.data_from, fit.data_to) == (NOW, AT - 4 * DAY, AT - 2 * HOUR)
    assert len(fit.forecast) >= (38 * HOUR + 30 * MINUTE) / (5 * MINUTE)
    hour = 12 - 2 + 0.5  # the forecast begins two hours before AT
    assert np.mean(fit.forecast[:12]) == pytest.approx(24 * (1 - 0.7 * np.cos(2 * np.pi * (hour - 3) / 24)), rel=0.15)
    assert fit.score is not None
    assert fit.yesterday is not None
    assert fit.score < fit.yesterday
    assert {"glm", "mstl", "ets", "components"} <= set(fit.tried)
    assert "binomial" in good["orders", ("large",)].tried


def test_a_failure_is_recorded_with_its_sentence(fits: list[Fit]) -> None:
    failed = [f for f in fits if f.scope == {"partner": "small"}]
    assert [(f.method, f.forecast) for f in failed] == [(None, [])] * 2
    assert failed[0].error is not None
    assert failed[0].error.endswith("events a day, a model needs 288")


def test_a_run_tells_what_it_fitted(store: EmbeddedStore, ledger: Ledger) -> None:
    found = scan(settings(), store, ledger, clock=clock)
    assert str(found).startswith("2026-01-10 12:00 UTC: 4 series fitted, 2 not, ")
    assert found.table["where"].to_list() == ["partner=small"] * 2 + ["everything"] * 2 + ["partner=large"] * 2
    assert found.table["error"].null_count() == 4
    picture = found.charts(3)
    assert picture is not None
    assert picture._repr_png_().startswith(b"\x89PNG")
    assert repr(picture) == "Picture()"  # an executed notebook keeps it beside the picture


def test_nothing_to_fit_is_said(ledger: Ledger) -> None:
    with EmbeddedStore(":memory:", settings()) as empty:
        assert str(scan(settings(models={}), empty, ledger)).startswith("no models are configured")
        assert str(scan(settings(), empty, ledger)) == "the store has no events yet"
        add(empty, traffic(days=1).tail(100))
        assert str(scan(settings(), empty, ledger)).startswith("the history is too short: 0 hours before")
        assert scan(settings(models={}), empty, ledger).table.is_empty()


def test_a_short_history_is_no_failure(ledger: Ledger) -> None:
    with EmbeddedStore(":memory:", settings()) as young:
        add(young, traffic(days=2))
        found = scan(settings(), young, ledger)
    assert str(found) == "the history is too short: 46 hours before the last ones, a model needs 48"
    assert (found.charts(), ledger.fits()) == (None, [])


def test_a_fit_knows_nothing_from_after_its_time(store: EmbeddedStore, ledger: Ledger) -> None:
    found = scan(settings(), store, ledger, AT - DAY + 2 * MINUTE, clock=clock)
    assert {f.data_to for f in found.fits} == {AT - DAY - 2 * HOUR}
    assert ledger.fits(AT - DAY - 3 * HOUR) == []
    assert len(ledger.fits(AT - DAY)) == 6


def test_minutes_of_a_known_incident_are_missing(store: EmbeddedStore, ledger: Ledger) -> None:
    """For the monitors inside it; one that lasted so long that it is the new normal hides nothing."""
    times = {"started_at": AT - 20 * HOUR, "detected_at": AT - 19 * HOUR, "seen_at": AT - 10 * HOUR}
    outage = replace(INCIDENT, scope={"partner": "large"}, resolved_at=AT - 8 * HOUR, status="resolved", **times)
    long = replace(outage, id="inc_long", started_at=AT - 3 * DAY, seen_at=AT - 3 * HOUR, resolved_at=AT - 3 * HOUR)
    ledger.record(SWEEP, [outage, long])
    everything, large = scan(settings(models={"monitors": [{}, {"partner": "large"}]}), store, ledger).scanned[::2]
    assert not np.isnan(everything.seen).any()
    missing = np.flatnonzero(np.isnan(large.seen))
    assert (missing[0], missing[-1], len(missing)) == (6 * 12, 16 * 12 - 1, 10 * 12)  # the day ends two hours before AT
    assert large.fit.method is not None


# ---- in the sweep ----------------------------------------------------------------------------------------------------


def judged(store: EmbeddedStore, outlooks: list[Fit]) -> Sweep:
    return sweep(store, settings(), AT, outlooks=outlooks)


def test_the_sweep_has_the_forecast_as_one_more_day(store: EmbeddedStore, fits: list[Fit]) -> None:
    fleet = judged(store, usable(fits, settings(), AT)).scored[0].fleet
    windows = fleet.windows(settings().metrics["sessions"], 5 * MINUTE)
    large = next(f for f in fits if f.method and (f.measure, f.scope) == ("sessions", {"partner": "large"}))
    rows = windows["model_value"].to_numpy()
    assert np.isnan(rows).all(axis=1).sum() == 1  # the small partner's
    assert any(row[:24] == pytest.approx(large.forecast[:24]) for row in rows)
    assert set(np.unique(windows["model_exposure"].to_numpy()[np.isfinite(rows)])) == {1.0}
    rate = fleet.windows(settings().metrics["conversion"], 5 * MINUTE)
    told = rate["model_value"].to_numpy().sum(axis=1) / rate["model_exposure"].to_numpy().sum(axis=1)
    assert told[np.isfinite(told)] == pytest.approx(0.4, abs=0.03)


def test_without_fits_there_is_no_such_column(store: EmbeddedStore) -> None:
    fleet = judged(store, []).scored[0].fleet
    assert "model_value" not in fleet.windows(settings().metrics["sessions"], 5 * MINUTE).columns


def test_one_measure_of_a_rate_is_not_enough(store: EmbeddedStore, fits: list[Fit]) -> None:
    some = [f for f in usable(fits, settings(), AT) if f.measure == "sessions"]
    fleet = judged(store, some).scored[0].fleet
    assert "model_value" in fleet.windows(settings().metrics["sessions"], 5 * MINUTE).columns
    assert "model_value" not in fleet.windows(settings().metrics["conversion"], 5 * MINUTE).columns


def test_what_is_left_without_a_cause_has_no_model(store: EmbeddedStore, fits: list[Fit]) -> None:
    fleet = judged(store, usable(fits, settings(), AT)).scored[0].fleet
    rest = fleet.minus(observe(store, settings(), AT, scope={"partner": "large"}))
    assert rest.models == {}
    assert fleet.models["sessions"].rows.tolist() == sorted(fleet.models["sessions"].rows.tolist())
    assert set(fleet.minus(observe(store, settings(), AT, scope={"partner": "none"})).models) == {"sessions", "orders"}


def test_forecasts_of_unknown_monitors_and_other_times_are_left_out(store: EmbeddedStore, fits: list[Fit]) -> None:
    good = [f for f in fits if f.method and f.scope]
    stranger = [replace(f, scope={"partner": "nobody"}) for f in good]
    past = [replace(f, data_to=AT - 9 * DAY) for f in good]
    unwatched = [replace(f, scope={"country": "SE"}) for f in good]
    assert judged(store, [*stranger, *past, *unwatched]).scored[0].fleet.models == {}


@pytest.fixture
def answered(store: EmbeddedStore, ledger: Ledger, fits: list[Fit]) -> Any:
    """`why` of the large partner with these changes to its fits."""

    def ask(*changes: dict[str, Any], settings_: Config | None = None) -> Why:
        mine = [f for f in fits if f.scope == {"partner": "large"}]
        for change in changes:
            ledger.save_fits([replace(f, **change) for f in mine])
        return why(settings_ or settings(), store, ledger, "sessions", {"partner": "large"}, AT)

    return ask


def test_why_tells_the_model_its_weight_and_its_date(answered: Any) -> None:
    found = answered({})
    assert list(weights(found)) == ["day1", "day2", "model"]
    assert 0.2 < weights(found)["model"] < 1
    (model,) = found.models
    assert model.state == "fresh"
    assert model.sentence == (
        f"model of sessions: {model.method}, fitted 2026-07-01 00:00 UTC on data from 2026-01-06 12:00"
        " to 2026-01-10 10:00 UTC"
    )
    assert found.public()["models"][0]["fitted_at"] == "2026-07-01T00:00:00Z"


def test_a_bad_forecast_weighs_little(answered: Any, fits: list[Fit]) -> None:
    length = len(fits[-1].forecast)
    upside_down = list(20 + 18 * np.cos(np.arange(length) / 4))
    assert weights(answered({"forecast": upside_down})).get("model", 0.0) < 0.1


def test_a_stale_fit_is_not_used_and_it_is_said(answered: Any) -> None:
    found = answered({"data_to": AT - 39 * HOUR})
    assert set(weights(found)) == {"day1", "day2"}
    assert found.models[0].state == "stale"
    assert found.models[0].sentence.endswith("UTC; stale after 36h; the comparison alone judges")


def test_special_days_are_those_of_the_calendar(store: EmbeddedStore) -> None:
    sale = {"name": "sale", "dates": [(AT - DAY).date().isoformat()], "scope": {"partner": "large"}}
    past = Past(store, settings(calendar={"events": [sale]}), [], AT - 4 * DAY, AT - 2 * HOUR)
    assert past.special_days({"partner": "large"}, 288) == {(AT - DAY).date()}
    assert past.special_days({"partner": "small"}, 288) == set()


def test_what_came_before_a_new_normal_is_no_past(store: EmbeddedStore) -> None:
    at = AT - 3 * DAY
    shift = {"name": "new", "at": at.isoformat(), "scope": {"partner": "large"}}
    past = Past(store, settings(calendar={"shifts": [shift]}), [], AT - 4 * DAY, AT)
    known = {partner: np.isfinite(past.read({"partner": partner})["sessions"]) for partner in ("large", "small")}
    assert known["large"].sum() == 3 * 288
    assert known["small"].all()


def test_a_failed_fit_is_said(answered: Any) -> None:
    failure = {"method": None, "forecast": [], "error": "it rained"}
    found = answered(failure)
    assert set(weights(found)) == {"day1", "day2"}
    assert found.models[0].sentence == (
        "no model of sessions: the fit of 2026-07-01 00:00 UTC failed (it rained); the comparison alone judges"
    )


def test_a_fit_from_before_a_new_normal_is_not_used_and_it_is_said(answered: Any) -> None:
    shift = {"name": "new", "at": (AT - HOUR).isoformat()}
    found = answered({}, settings_=settings(calendar={"shifts": [shift]}))
    assert "model" not in weights(found)
    assert found.models[0].sentence.endswith("UTC; from before new; the comparison alone judges")


def test_after_a_failure_the_older_fit_is_used_while_it_is_fresh(answered: Any) -> None:
    found = answered({}, {"method": None, "forecast": [], "error": "it rained"})
    assert "model" in weights(found)
    assert found.models[0].failed == "it rained"
    assert found.models[0].sentence.endswith("failed (it rained), the older one is used")


def test_where_no_models_are_configured_none_are_used(answered: Any) -> None:
    found = answered({}, settings_=settings(models={}))
    assert (set(weights(found)), found.models) == ({"day1", "day2"}, ())


def test_a_look_uses_the_fits(store: EmbeddedStore, ledger: Ledger, fits: list[Fit]) -> None:
    def fleet_of(settings_: Config) -> Any:
        found, _ = Watch(settings_, store, ledger).sweep(AT)
        return found.scored[0].fleet

    assert fleet_of(settings()).models == {}
    ledger.save_fits([f for f in fits if f.scope])
    assert set(fleet_of(settings()).models) == {"sessions", "orders"}
    assert fleet_of(settings(models={})).models == {}
    assert fleet_of(settings(models={**MODELS, "stale": "1s"})).models != {}
    late = [replace(f, data_to=f.data_to - 10 * MINUTE) for f in fits if f.scope]
    ledger.save_fits(late)
    assert fleet_of(settings(models={**MODELS, "stale": "1s"})).models == {}


def test_a_yesterday_unlike_today_is_outvoted(ledger: Ledger) -> None:
    """An hour of yesterday morning had a quarter of its events, which nobody noticed: the model knows better."""
    one = settings(models={"monitors": [{"partner": "large"}]})
    events = traffic().with_row_index("number")
    hour = [(AT - DAY - n * HOUR).replace(tzinfo=None) for n in (2, 1)]
    few = pl.col("event_time").is_between(*hour) & (pl.col("number") % 4 > 0)
    with EmbeddedStore(":memory:", one) as store:
        add(store, events.filter(~few).drop("number"))
        alone = why(one, store, ledger, "sessions", {"partner": "large"}, AT)
        scan(one, store, ledger)
        found = why(one, store, ledger, "sessions", {"partner": "large"}, AT)
    assert found.outcome == "normal"
    assert weights(found)["model"] > 2 * weights(found)["day1"]
    assert weights(found)["day1"] < weights(alone)["day1"]


# ---- in the ledger ---------------------------------------------------------------------------------------------------

FIT = Fit(
    scope={"partner": "p1", "country": "SE"}, measure="sessions", fitted_at=NOW, data_from=AT - 9 * DAY, data_to=AT,
    method="glm", score=0.5, yesterday=0.7, tried={"glm": "0.5", "ets": "it rained"}, forecast=[1.5, 2.0], seconds=0.3,
)  # fmt: skip
FAILURE = replace(FIT, method=None, score=None, yesterday=None, forecast=[], error="it rained")


def test_fits_come_back_as_they_were_written(ledger: Ledger) -> None:
    ledger.save_fits([])
    assert ledger.fits() == []
    ledger.save_fits([FIT, FAILURE])
    assert ledger.fits() == [FIT, FAILURE]


def test_the_newest_of_each_series_counts(ledger: Ledger) -> None:
    turned = {"country": "SE", "partner": "p1"}
    newer = replace(FIT, scope=turned, data_to=AT + HOUR)
    other = replace(FIT, measure="orders")
    ledger.save_fits([FIT, FAILURE, other])
    ledger.save_fits([newer])
    assert ledger.fits() == [FAILURE, other, newer]
    assert ledger.fits(AT) == [FIT, FAILURE, other]


def test_old_fits_are_dropped(ledger: Ledger) -> None:
    ledger.save_fits([FIT, replace(FIT, measure="orders", data_to=AT + MINUTE)])
    ledger.save_fits([replace(FIT, measure="errors", data_to=AT + FITS_KEPT + MINUTE)])
    assert [f.measure for f in ledger.fits()] == ["orders", "errors"]


def test_states(ledger: Ledger) -> None:
    ledger.save_fits([FIT, replace(FAILURE, measure="orders"), replace(FIT, measure="late", data_to=AT - 2 * DAY)])
    found = {m.measure: m.state for m in models(ledger.fits(), settings(), AT + HOUR)}
    assert found == {"sessions": "fresh", "orders": "failed", "late": "stale"}
    assert usable([FIT], settings(), AT - MINUTE) == []


# ---- told ------------------------------------------------------------------------------------------------------------


def test_a_series_has_the_forecast_that_the_sweep_had(store: EmbeddedStore, fits: list[Fit]) -> None:
    """The last bucket is the sweep's window; buckets from before the forecast have none."""
    where = {"partner": "large"}
    known = usable(fits, settings(), AT)
    swept = judged(store, known).scored[0]
    row = swept.fleet.models["sessions"].rows.max()
    for metric in ("sessions", "conversion"):
        score = swept.scores.filter((pl.col("metric") == metric) & (pl.col("row") == row))
        with_, without = (
            expected_series(store, settings(), metric, where, AT - 5 * HOUR, AT, grain=5 * MINUTE, outlooks=outlooks)
            for outlooks in (known, [])
        )
        assert with_.height == 60
        changed = (with_["expected"] / without["expected"] - 1).abs()
        assert changed.head(24).max() < changed.tail(24).max()  # all buckets tell how far days agree
        if score.height:
            assert with_["expected"][-1] == pytest.approx(score["expected"][0], rel=0.03)


def test_status_counts_the_models(tmp_path: Path) -> None:
    text = SMALL.format(models="{largest: 1}")
    (tmp_path / "kmon.yaml").write_text(text, encoding="utf-8")
    loaded = load_config(tmp_path / "kmon.yaml")
    with EmbeddedStore(tmp_path / "kmon.duckdb", loaded) as store:
        add(store, traffic(days=1).tail(10).select("event_time", "partner"))
    with Ledger.beside(tmp_path / "kmon.duckdb") as ledger:
        late = replace(FIT, measure="late", data_to=AT - 3 * DAY)
        ledger.save_fits([replace(FIT, data_to=AT - HOUR), replace(FAILURE, measure="orders"), late])
    summary = status(loaded)["summary"]
    told = {key: value for key, value in summary.items() if key.startswith("models")}
    assert told == {
        "models": 1, "models_newest": "2026-01-10T11:00:00Z", "models_stale": 1, "models_failed": 1,
    }  # fmt: skip
    off = loaded.model_copy(update={"models": Models()})
    assert not any(key.startswith("models") for key in status(off)["summary"])


SMALL = """
source: {{kind: files, paths: ["*.ndjson"]}}
events: {{lateness: 0s, fields: {{ts: {{type: time}}, partner: {{}}}}}}
dimensions: [partner]
measures: {{events: count(*)}}
metrics: {{events: {{count: events}}}}
watch: [[]]
models: {models}
"""
