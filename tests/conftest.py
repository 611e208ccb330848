"""Small real things that many tests share: the shipped configuration, an empty store, a way to fill it."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import polars as pl
import pytest

from kmon.config import Config, load_config
from kmon.sources import Move
from kmon.store import Commit, EmbeddedStore
from kmon.store.upkeep import Upkeep
from kmon.testing import Broker, BrokerUnavailableError

# how long an example takes says nothing of the code under test on a machine that does other things too
hypothesis.settings.register_profile(
    "kmon",
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("kmon")

ROOT = Path(__file__).parents[1]
TEMPLATE = ROOT / "kmon" / "templates" / "kmon.yaml"
DATA = Path(os.environ.get("KMON_DATA", ROOT.parent / "shared" / "data"))
"""Where public data sets lie, which do not come with kmon."""
T = dt.datetime(2026, 3, 2, 12, tzinfo=dt.UTC)
"""The time of an event that says nothing else."""
DAY = dt.timedelta(days=1)
TEXTS = ("operation", "status", "partner", "country", "payment_method", "browser", "device", "channel")
EVIL = [
    'O\'Neil "&" Söhne',
    "two\nlines\tand a tab",
    "🛒 <!channel> *bold* $x^2$",
    "'; DROP TABLE rollup_1m; --",
    "nul\x00byte",
    "\u2028separator\x85",
    "<script>alert(1)</script>",
    "",
]
"""Names that partners could give themselves."""

Commits = Callable[..., None]


@pytest.fixture(scope="session")
def config() -> Config:
    """The configuration that ships with kmon."""
    return load_config(TEMPLATE)


@pytest.fixture
def store(tmp_path: Path, config: Config) -> Iterator[EmbeddedStore]:
    """An empty store."""
    with EmbeddedStore(tmp_path / "kmon.duckdb", config) as opened:
        yield opened


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A real Kafka for all tests of the xdist group "kafka"; a test that stops it starts it again."""
    try:
        users = {"kmon": "right", "stranger": "right"}  # a stranger may read nothing
        rights = {
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": "User:ANONYMOUS;User:kmon",
        }
        with Broker.start(tmp_path_factory.mktemp("kafka"), users=users, settings=rights) as running:
            yield running
    except BrokerUnavailableError as error:
        pytest.skip(str(error))


def frame(*rows: dict[str, Any]) -> pl.DataFrame:
    """Events as the decoder makes them; a row is a session of p1 at T unless it says otherwise."""
    full = [{"operation": "session", "status": "ok", "partner": "p1", "event_time": T, **row} for row in rows]
    columns = {name: pl.Series(name, [row.get(name) for row in full], dtype=pl.String) for name in TEXTS}
    times = pl.Series("event_time", [row["event_time"].replace(tzinfo=None) for row in full], dtype=pl.Datetime("us"))
    amounts = pl.Series("amount", [row.get("amount") for row in full], dtype=pl.Float64)
    return pl.DataFrame([times, amounts, *columns.values()])


def settle(store: EmbeddedStore, config: Config, **before: dt.datetime) -> int:
    """Move what is older than ``minutes=`` into the minute tier, than ``hours=`` into the hour tier; transactions."""
    mark = max(before.values())
    keep = {"ten_seconds": mark - before.get("minutes", mark), "minutes": mark - before.get("hours", T - 365 * DAY)}
    config = config.model_copy(update={"keep": config.keep.model_copy(update=keep)})
    return Upkeep(store, config).run(mark, mark)


@pytest.fixture
def commit(store: EmbeddedStore) -> Commits:
    """``commit({"partner": "p2"}, ...)`` puts events into `store` as its next batch."""

    def put(*rows: dict[str, Any]) -> None:
        events = frame(*rows)
        first = store.positions().get(("test", 0), 0)
        newest = {"0": events["event_time"].max().replace(tzinfo=dt.UTC)} if rows else {}
        store.commit(Commit([Move("test", 0, first, first + len(rows))], events, newest))

    return put
