"""Recorded events through the same pipeline, with a look at each step."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polars as pl
import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st

from kmon import labels
from kmon.config import Config
from kmon.detect import Shelf
from kmon.errors import LedgerError
from kmon.ledger import Incident, Ledger, SweepRecord, Word
from kmon.replay import Summary, replay
from kmon.store import EmbeddedStore
from tests.detect.worlds import AT, MINUTE, config, spread, traffic
from tests.test_deepscan import traffic as of_days

FIVE = 5 * MINUTE


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three hours in three files, in order of arrival: p1 is gone for half an hour, and some events come late."""
    gone = (pl.col("partner") == "p1") & pl.col("ago").is_between(60, 90)
    events = traffic(pl.when(gone).then(0.0).otherwise(2.0), days=[0], minutes=180)
    return recorded(tmp_path_factory.mktemp("events"), events)


def recorded(folder: Path, events: pl.DataFrame) -> list[Path]:
    """Three files in order of arrival; a few events come up to a quarter of an hour late."""
    rng = np.random.default_rng(1)
    delay = np.where(rng.random(events.height) < 0.002, rng.integers(60, 900, events.height), 0)
    order = (events["event_time"].dt.epoch("s").to_numpy() + delay).argsort(kind="stable")
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


def looking(**changes: Any) -> Config:
    """The shop's configuration, which waits a minute for what is late."""
    changed = config(**changes)
    return changed.model_copy(update={"events": changed.events.model_copy(update={"lateness": MINUTE})})


@pytest.fixture
def settings() -> Config:
    return looking(every="5m")


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


def test_one_go(files: list[Path], settings: Config, ledger: Ledger) -> None:
    summary = done(settings, files, ledger)
    lines = sum(len(path.read_text().splitlines()) for path in files)
    assert (summary.events, summary.dead_letters, summary.sweeps, summary.incidents) == (lines, 0, 35, 1)
    (incident,) = ledger.incidents()
    assert incident.scope == {"partner": "p1"}
    assert incident.started_at == AT - 90 * MINUTE
    assert incident.status == "resolved"


# ---- stopped and resumed ---------------------------------------------------------------------------------------------


Told = tuple[list[dict[str, Any]], list[tuple[Any, ...]]]


@dataclass(frozen=True)
class World:
    """What is replayed, and what somebody says of the only open incident after two of the three files."""

    settings: Config
    files: list[Path]
    every: dt.timedelta = FIVE
    since: dt.datetime | None = None
    word: Word | None = None

    def told(self, stop: int | None = None) -> Told:
        """The incidents and sweeps of a ledger whose disk is full after `stop` sweeps, until kmon is started again.

        What came late meanwhile is left for the next base, as it is in one go.
        """
        with (
            TemporaryDirectory() as folder,
            Ledger.open("sqlite://") as ledger,
            EmbeddedStore(":memory:", self.settings) as store,
        ):

            def go(files: list[Path]) -> None:
                shelf = Shelf.of(Path(folder), store, self.settings)
                replay(self.settings, store, ledger, files, every=self.every, detect_from=self.since, shelf=shelf)

            if stop is not None:
                fill(ledger, stop)
            stops = 0
            for files in [self.files[:2], self.files] if self.word else [self.files]:
                try:
                    go(files)
                except LedgerError:
                    stops += 1
                    make_room(ledger)
                    go(files)
                if self.word is not None and not ledger.labels():
                    (incident,) = ledger.open_incidents()
                    labels.say(self.settings, ledger, incident.id, self.word, by="ann")
            assert stops == (stop is not None)
            return outcome(ledger), sweeps(ledger)


def fill(ledger: Ledger, sweeps: int) -> None:
    """Let the disk of a ledger be full once it has so many sweeps."""
    when = f"BEFORE INSERT ON sweeps WHEN (SELECT count(*) FROM sweeps) >= {sweeps}"
    with ledger._engine.begin() as connection:
        connection.execute(sa.text(f"CREATE TRIGGER full {when} BEGIN SELECT RAISE(ABORT, 'full'); END"))


def make_room(ledger: Ledger) -> None:
    with ledger._engine.begin() as connection:
        connection.execute(sa.text("DROP TRIGGER full"))


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Forty hours of partners with twenty sessions an hour, of whom p1 has none in the last six."""
    rng = np.random.default_rng(4)
    minutes = 40 * 60
    rates = pl.DataFrame({
        "partner": np.repeat([f"p{n}" for n in range(10)], minutes), "ago": np.tile(np.arange(minutes, 0, -1), 10),
    }).with_columns(n=pl.Series(rng.poisson(1 / 3, 10 * minutes)))  # fmt: skip
    there = ~((pl.col("partner") == "p1") & (pl.col("ago") <= 6 * 60))
    ts = pl.lit(AT.replace(tzinfo=None)) - pl.duration(minutes="ago")
    sessions = rates.filter(there & (pl.col("n") > 0)).select(pl.col("partner").repeat_by("n"), ts.alias("event_time"))
    of_shop = {"country": pl.lit("SE"), "browser": pl.lit("edge"), "kind": pl.lit("s")}
    events = sessions.explode("partner").with_columns(**of_shop).sort("event_time")
    return recorded(tmp_path_factory.mktemp("quiet"), events)


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Four days, in whose last hour a partner has no orders for half an hour."""
    ago = (pl.lit(AT.replace(tzinfo=None)) - pl.col("event_time")).dt.total_minutes()
    lost = (pl.col("partner") == "large") & (pl.col("kind") == "o") & ago.is_between(25, 55)
    return recorded(tmp_path_factory.mktemp("series"), of_days(4).filter(~lost))


WORDS: list[Word | None] = [None, "true", "false", "new-normal"]


@pytest.fixture(scope="module", params=[*WORDS, "silence", "surprise"])
def one_go(
    request: pytest.FixtureRequest, files: list[Path], quiet: list[Path], series: list[Path]
) -> tuple[World, Told]:
    """A world, and what a replay of it in one go tells."""
    if request.param in WORDS:
        world = World(looking(every="5m"), files, word=request.param)
        return world, world.told()
    if request.param == "surprise":
        own = {"detectors": [{"use": "kmon.detect:Surprise"}], "models": {"monitors": [{"partner": "large"}]}}
        world = World(looking(every="5m", watch=[["partner"]], **own), series, since=AT - 60 * MINUTE)
        found = world.told()
        assert [incident["detector"] for incident in found[0]] == ["surprise"]
        return world, found
    half = 30 * MINUTE
    silence = {"use": "silence", "params": {"days": 1, "every": "30m"}}
    settings = looking(every="30m", windows=["1h"], watch=[["partner"]], detectors=[{"use": "compare"}, silence])
    world = World(settings, quiet, half, AT - 9 * 60 * MINUTE)
    found = world.told()
    assert "silence" in [incident["detector"] for incident in found[0]]
    return world, found


@settings_of_hypothesis(max_examples=7)
@given(st.data())
def test_stopped_in_any_sweep_and_resumed(one_go: tuple[World, Told], data: st.DataObject) -> None:
    world, whole = one_go
    stop = data.draw(st.integers(0, len(whole[1]) - 1), "stop")
    assert world.told(stop) == whole


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
