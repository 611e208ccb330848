"""The same small store, embedded and over the wire: what reads it must not see a difference."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator

import pytest

from kmon.store import EmbeddedStore, Store, connect, serving
from kmon.testing import free_port
from tests.conftest import EVIL, Commits, T

SECOND, MINUTE, HOUR = (dt.timedelta(**{unit: 1}) for unit in ("seconds", "minutes", "hours"))
TOKEN = "a-token-of-the-tests"


def free_address() -> str:
    """A ``quack:`` address where nobody answers."""
    return f"quack:localhost:{free_port()}"


@pytest.fixture(params=["embedded", "remote"])
def reader(request: pytest.FixtureRequest, store: EmbeddedStore) -> Iterator[Store]:
    """`store`, as each kind of reader sees it."""
    if request.param == "embedded":
        yield store
        return
    address = free_address()
    with serving(store, address, TOKEN), connect(address, TOKEN) as remote:
        yield remote


@pytest.fixture
def filled(commit: Commits) -> None:
    """Three partners in two countries over two and a half hours, the oldest hour in the one-minute tier."""
    commit(
        {"partner": "p1", "country": "SE", "event_time": T - 2 * HOUR},
        {"partner": "p1", "country": "SE", "event_time": T - 2 * HOUR + 5 * SECOND},
        {"partner": "p2", "country": "DE", "event_time": T - 2 * HOUR + 70 * SECOND},
    )
    commit(
        {"partner": "p1", "country": "SE", "event_time": T},
        {"partner": "p1", "country": "DE", "event_time": T + 9 * SECOND, "status": "error"},
        {"partner": "p1", "country": "SE", "event_time": T + 30 * SECOND, "operation": "order", "amount": 12.5},
        {"partner": "p2", "country": None, "event_time": T + 61 * SECOND},
    )


@pytest.fixture
def evil(commit: Commits) -> None:
    """One session of each name that a partner could give itself."""
    commit(*({"partner": name} for name in EVIL))
