"""Recorded events through the same pipeline, with a look at each step."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import sqlalchemy as sa

from kmon.config import Config
from kmon.detect import Shelf
from kmon.errors import LedgerError
from kmon.ledger import Incident, Ledger, SweepRecord
from kmon.replay import Summary, replay
from kmon.store import EmbeddedStore
from tests.detect.worlds import AT, MINUTE, config, spread, traffic

FIVE = 5 * MINUTE


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three hours in three files, in order of arrival: p1 is gone for half an hour, and some events come late."""
    gone = (pl.col("partner") == "p1") & pl.col("ago").is_between(60, 90)
    events = traffic(pl.when(gone).then(0.0).otherwise(2.0), days=[0], minutes=180)
    rng = np.random.default_rng(1)
    delay = np.where(rng.random(events.height) < 0.002, rng.integers(60, 900, events.height), 0)
    order = (events["event_time"].dt.epoch("s").to_numpy() + delay).argsort(kind="stable")
    folder = tmp_path_factory.mktemp("events")
    arrived = events[order.tolist()].rename({"event_time": "ts"}).with_columns(pl.col("ts").dt.to_string("%FT%TZ"))
    paths = []
    for number, part in enumerate(arrived.iter_slices(arrived.height // 3 + 1)):
        paths.append(folder / f"{number}.ndjson")
        part.write_ndjson(paths[-1])
    return paths


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    with Ledger.open("sqlite://") as opened:
        yield opened


@pytest.fixture
def settings() -> Config:
    changed = config(every="5m")
    return changed.model_copy(update={"events": changed.events.model_copy(update={"lateness": MINUTE})})


def test_a_large_partner_is_missed_the_sooner_the_more_often_is_looked(tmp_path: Path) -> None:
    """One with 60 sessions in ten seconds, gone at 11:53:22; the others are a tenth of it."""
    level = pl.when(pl.col("partner") == "p1").then(40.0).otherwise(4.0)
    broke = AT - 7 * MINUTE + dt.timedelta(seconds=22)
    gone = (pl.col("partner") == "p1") & (pl.col("event_time") >= broke.replace(tzinfo=None))
    path = tmp_path / "events.ndjson"
    ts = pl.col("event_time").dt.to_string("%FT%T%.3fZ")
    spread(traffic(level)).filter(~gone).select(pl.exclude("event_time"), ts=ts).write_ndjson(path)
    late = []
    for every, windows in [("1m", ["1m", "5m"]), ("10s", ["1m", "5m"]), ("10s", ["10s", "30s", "1m", "5m"])]:
        settings = config(every=every, windows=windows)
        with EmbeddedStore(":memory:", settings) as store, Ledger.open("sqlite://") as ledger:
            replay(settings, store, ledger, [path], every=settings.every, detect_from=AT - 10 * MINUTE)
            (incident,) = ledger.incidents()
        assert (incident.scope, incident.status) == ({"partner": "p1"}, "firing")
        assert abs(incident.started_at - broke) <= MINUTE
        late.append((incident.detected_at - broke).total_seconds())
    assert late == sorted(late, reverse=True)
    assert late[0] > late[1] > late[2], late
    assert late[2] <= 30


def done(settings: Config, files: list[Path], ledger: Ledger, **options: Any) -> Summary:
    with EmbeddedStore(":memory:", settings) as store:
        return replay(settings, store, ledger, files, every=FIVE, **options)


def outcome(ledger: Ledger) -> list[dict[str, Any]]:
    """All that a ledger says of its incidents, apart from their ids."""
    return [{k: v for k, v in vars(i).items() if k not in ("id", "url")} for i in ledger.incidents()]


def sweeps(ledger: Ledger) -> list[tuple[Any, ...]]:
    with ledger._engine.connect() as connection:
        return [
            tuple(row)
            for row in connection.execute(
                sa.text("SELECT at, monitors, tests, anomalies, cutoff FROM sweeps ORDER BY at")
            )
        ]


@pytest.fixture(scope="module")
def one_go(files: list[Path]) -> Iterator[tuple[Summary, list[dict[str, Any]], list[tuple[Any, ...]]]]:
    changed = config(every="5m")
    changed = changed.model_copy(update={"events": changed.events.model_copy(update={"lateness": MINUTE})})
    with Ledger.open("sqlite://") as ledger:
        yield done(changed, files, ledger), outcome(ledger), sweeps(ledger)


def test_one_go(one_go: tuple[Summary, list[dict[str, Any]], list[Any]], files: list[Path]) -> None:
    summary, incidents, _ = one_go
    lines = sum(len(path.read_text().splitlines()) for path in files)
    assert (summary.events, summary.dead_letters, summary.sweeps, summary.incidents) == (lines, 0, 35, 1)
    assert incidents[0]["scope"] == {"partner": "p1"}
    assert incidents[0]["started_at"] == AT - 90 * MINUTE
    assert incidents[0]["status"] == "resolved"


@pytest.mark.parametrize("stop", [0, 1, 11, 18, 19, 23, 34])
def test_stopped_in_any_sweep_and_resumed(
    stop: int, one_go: tuple[Any, ...], files: list[Path], settings: Config, ledger: Ledger, tmp_path: Path
) -> None:
    """The ledger's disk is full after `stop` sweeps, and has room again when the replay is started once more.

    What came late meanwhile is left for the next base, as it is in one go.
    """
    when = f"BEFORE INSERT ON sweeps WHEN (SELECT count(*) FROM sweeps) >= {stop}"
    full = f"CREATE TRIGGER full {when} BEGIN SELECT RAISE(ABORT, 'full'); END"
    with EmbeddedStore(":memory:", settings) as store:
        with ledger._engine.begin() as connection:
            connection.execute(sa.text(full))
        with pytest.raises(LedgerError):
            replay(settings, store, ledger, files, every=FIVE, shelf=Shelf.of(tmp_path, store, settings))
        with ledger._engine.begin() as connection:
            connection.execute(sa.text("DROP TRIGGER full"))
        summary = replay(settings, store, ledger, files, every=FIVE, shelf=Shelf.of(tmp_path, store, settings))
    assert summary.sweeps == 35 - stop
    assert (outcome(ledger), sweeps(ledger)) == one_go[1:]


def test_again_is_nothing_new(files: list[Path], settings: Config, ledger: Ledger) -> None:
    with EmbeddedStore(":memory:", settings) as store:
        replay(settings, store, ledger, files, every=FIVE)
        again = replay(settings, store, ledger, files, every=FIVE)
    assert (again.events, again.sweeps, again.incidents) == (0, 0, 0)


def test_detection_begins_where_it_is_told_to(files: list[Path], settings: Config, ledger: Ledger) -> None:
    since = AT - 100 * MINUTE
    summary = done(settings, files, ledger, detect_from=since)
    assert summary.sweeps == 20
    assert sweeps(ledger)[0][0].startswith("2026-01-10 10:20:00")
    assert summary.incidents == 1


@pytest.mark.parametrize(("deliver", "kinds"), [(False, []), (True, ["firing", "resolved"])])
def test_alerts_only_where_they_are_asked_for(
    deliver: bool, kinds: list[str], files: list[Path], settings: Config, ledger: Ledger
) -> None:
    done(settings, files, ledger, deliver=deliver)
    assert [d.kind for d in ledger.deliveries()] == kinds


def test_progress_is_told(files: list[Path], settings: Config, ledger: Ledger) -> None:
    told: list[tuple[int, dt.datetime | None]] = []
    done(settings, files, ledger, on_progress=lambda progress, at: told.append((progress.events, at)))
    assert [events for events, _ in told] == sorted(events for events, _ in told)
    assert told[-1][1] == AT - FIVE


def test_a_sweep_that_was_made_already_is_not_made_again(files: list[Path], settings: Config, ledger: Ledger) -> None:
    ledger.record(SweepRecord(AT - 10 * MINUTE, AT, 0.1, 1, 1, 0, 0.0), list[Incident]())
    assert done(settings, files, ledger).sweeps == 1
