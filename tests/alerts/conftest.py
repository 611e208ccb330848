"""Small real things: an incident, a configuration, a ledger, a clock moved by hand, and a Slack on this machine."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from kmon.config import Config, load_config
from kmon.ledger import Incident, Ledger, SweepRecord
from kmon.partners import Partners
from kmon.sources import Move
from kmon.store import Commit, EmbeddedStore
from tests.conftest import TEMPLATE
from tests.slack_server import TOKEN, SlackServer

T = dt.datetime(2026, 11, 23, 14, 5, tzinfo=dt.UTC)
MINUTE = dt.timedelta(minutes=1)
EVIL = 'A$^2$ *B* _x_ `y` \N{SHOPPING TROLLEY} <!channel> & "q"\n\'; DROP TABLE x; --\u202e'
INCIDENT = Incident(
    id="inc_1",
    status="firing",
    severity="critical",
    metric="conversion",
    direction="down",
    scope={"partner": "p17", "country": "SE"},
    started_at=T,
    detected_at=T + 3 * MINUTE,
    resolved_at=None,
    observed=0.11,
    expected=0.312,
    lower=0.271,
    upper=0.354,
    p_value=1e-9,
    impact={"orders": -423.0, "amount": -31478.0},
    anomalies=7,
    channel="#p17",
    url="http://localhost:5006/partner?partner=p17&metric=conversion",
    window=5 * MINUTE,
    evidence=40.0,
    seen_at=T + 3 * MINUTE,
    quiet=0,
    detector="compare",
    reason="first seen",
)
RESOLVED = replace(INCIDENT, status="resolved", resolved_at=T + 25 * MINUTE, reason="back to normal for 3 sweeps")


@dataclass
class HandClock:
    """Stands still until it is moved."""

    now: dt.datetime = T + 4 * MINUTE

    def __call__(self) -> dt.datetime:
        return self.now

    def forward(self, seconds: float) -> None:
        self.now += dt.timedelta(seconds=seconds)


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def make_config(tmp_path: Path) -> Callable[..., Config]:
    """The template's configuration with other keys, as if it stood in `tmp_path`."""
    template = load_config(TEMPLATE)

    def make(**changes: Any) -> Config:
        data = template.model_dump(exclude={"path"}) | changes
        return Config.model_validate({**data, "path": tmp_path / "kmon.yaml"})

    return make


@pytest.fixture
def partners() -> Partners:
    columns = ("partner", "name", "account_team", "slack_channel", "tier", "timezone")
    rows = [
        ("evil", EVIL, "x", "#evil", "", "no/zone"),
        ("p17", "Nordic Shoes", "Nordics", "#p17", "1", "Europe/Stockholm"),
    ]
    return Partners(pl.DataFrame(rows, schema=dict.fromkeys(columns, pl.String), orient="row"))


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.open(f"sqlite:///{tmp_path / 'x.ledger.sqlite'}") as opened:
        yield opened


@pytest.fixture
def slack(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlackServer]:
    for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    with SlackServer().running() as server:
        monkeypatch.setenv("SLACK_API_URL", server.url)
        monkeypatch.setenv("SLACK_BOT_TOKEN", TOKEN)
        yield server


@pytest.fixture
def store(tmp_path: Path, make_config: Callable[..., Config]) -> Iterator[EmbeddedStore]:
    """Three hours of p17 in SE before T, and the same of the day before: ten sessions and three orders a minute."""
    config = make_config()
    start = T.replace(tzinfo=None) - 180 * MINUTE
    minutes = pl.Series(
        [start + i * MINUTE - days for days in (dt.timedelta(days=1), dt.timedelta(0)) for i in range(185)]
    )
    events = pl.concat(
        pl.DataFrame({"event_time": minutes, "operation": operation, "status": "ok", "partner": "p17", "country": "SE"})
        for operation in ["session"] * 10 + ["order"] * 3
    )
    texts = [
        name for name, field in config.events.fields.items() if field.type == "string" and name not in events.columns
    ]
    events = events.with_columns(pl.lit(None, pl.String).alias(n) for n in texts).with_columns(amount=pl.lit(9.5))
    opened = EmbeddedStore(tmp_path / "x.duckdb", config)
    with opened:
        opened.commit(Commit([Move("test", 0, 0, events.height)], events, {"0": T + 5 * MINUTE}))
        yield opened


def record(ledger: Ledger, incident: Incident, outbox: list[Any]) -> None:
    """Write what one sweep would."""
    at = incident.resolved_at or incident.detected_at
    ledger.record(SweepRecord(at, at, 0.1, 1, 1, 1, 1e-6), [incident], [], outbox)
