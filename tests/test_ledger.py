from __future__ import annotations

import datetime as dt
import json
import sqlite3
import threading
from dataclasses import replace

import pytest

from kmon.errors import LedgerError
from kmon.ledger import Anomaly, Delivery, Incident, Ledger, Run, SweepRecord, new_id, show_time
from tests.conftest import EVIL, T

MINUTE = dt.timedelta(minutes=1)
SWEEP = SweepRecord(T, T, 0.1, 10, 20, 1, 1e-6)
INCIDENT = Incident(
    id="inc_1", status="firing", severity="critical", metric="conversion", direction="down", scope={"partner": "p1"},
    started_at=T, detected_at=T + MINUTE, resolved_at=None, observed=0.1, expected=0.3, lower=0.2, upper=0.4,
    p_value=1e-9, impact={"orders": -4.0}, anomalies=2, channel="#p1", url="", window=5 * MINUTE, evidence=20.0,
    seen_at=T + MINUTE, quiet=0, detector="compare", reason="first seen",
)  # fmt: skip
ANOMALY = Anomaly(T, "inc_1", "conversion", {"partner": "p1"}, MINUTE, "down", 0.1, 0.3, 1e-9, "compare")
DELIVERY = Delivery("d1", "inc_1", "firing", "console", "#p1", T)


@pytest.fixture
def ledger(tmp_path):
    with Ledger.beside(tmp_path / "kmon.duckdb") as opened:
        yield opened


def test_a_sweep_comes_back_as_it_was_written(ledger, tmp_path):
    ledger.record(SWEEP, [INCIDENT], [ANOMALY], [DELIVERY])
    with Ledger.beside(tmp_path / "kmon.duckdb") as again:
        assert again.incidents() == [INCIDENT]
        assert again.anomalies("inc_1") == [ANOMALY]
        assert again.deliveries() == [DELIVERY]
        assert again.last_sweep() == SWEEP
    assert (tmp_path / "kmon.ledger.sqlite").exists()


def test_the_outbox_of_an_earlier_kmon_is_taken_over(ledger, tmp_path):
    ledger.record(SWEEP, [INCIDENT], [], [DELIVERY])
    with sqlite3.connect(tmp_path / "kmon.ledger.sqlite") as raw:
        for column in ("scope", "severity", "change"):
            raw.execute(f"ALTER TABLE outbox DROP COLUMN {column}")
    raw.close()
    with Ledger.beside(tmp_path / "kmon.duckdb") as again:
        assert again.deliveries() == [DELIVERY]
        told = replace(DELIVERY, id="d2", scope={}, severity="warning", change="widened")
        again.record(SWEEP, [], [], [told])
        assert again.deliveries(status=["pending"])[1] == told


def test_an_empty_ledger(ledger):
    assert (ledger.incidents(), ledger.last_sweep(), ledger.incident("x"), ledger.claim(T)) == ([], None, None, None)


def test_a_sweep_is_one_transaction(ledger):
    ledger.record(SWEEP, [INCIDENT], [ANOMALY], [DELIVERY])
    with pytest.raises(LedgerError, match="the ledger cannot be written"):  # the outbox has a row of that name
        ledger.record(replace(SWEEP, at=T + MINUTE), [replace(INCIDENT, status="resolved")], [ANOMALY], [DELIVERY])
    assert ledger.last_sweep() == SWEEP
    assert ledger.incidents() == [INCIDENT]
    assert ledger.anomalies("inc_1") == [ANOMALY]


def test_incidents_are_updated_by_their_name(ledger):
    ledger.record(SWEEP, [INCIDENT, replace(INCIDENT, id="inc_2", detected_at=T)])
    ledger.record(SWEEP, [replace(INCIDENT, status="resolved", resolved_at=T + MINUTE)])
    assert [(i.id, i.status) for i in ledger.incidents()] == [("inc_2", "firing"), ("inc_1", "resolved")]
    assert [i.id for i in ledger.open_incidents()] == ["inc_2"]


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({}, ["a", "b", "c"]),
        ({"since": T + MINUTE}, ["b", "c"]),
        ({"until": T + MINUTE}, ["a"]),
        ({"status": ["resolved"]}, ["c"]),
        ({"status": ["acked", "resolved"], "since": T, "until": T + 9 * MINUTE}, ["b", "c"]),
    ],
)
def test_incidents_by_time_and_status(ledger, options, found):
    states = [("a", "firing"), ("b", "acked"), ("c", "resolved")]
    rows = [replace(INCIDENT, id=n, status=s, detected_at=T + i * MINUTE) for i, (n, s) in enumerate(states)]
    ledger.record(SWEEP, rows)
    assert [i.id for i in ledger.incidents(**options)] == found


@pytest.mark.parametrize(
    ("start", "end", "found"), [(-9, 0, []), (-9, 1, ["a"]), (4, 9, ["a"]), (5, 9, []), (1, 2, ["a"])]
)
def test_incidents_that_touch_a_span(ledger, start, end, found):
    ledger.record(SWEEP, [replace(INCIDENT, id="a", resolved_at=T + 5 * MINUTE)])
    assert [i.id for i in ledger.overlapping(T + start * MINUTE, T + end * MINUTE)] == found
    ledger.record(SWEEP, [replace(INCIDENT, id="a")])
    assert [i.id for i in ledger.overlapping(T + MINUTE, T + 99 * MINUTE)] == ["a"]


@pytest.mark.parametrize("name", EVIL)
def test_any_name_is_kept(ledger, name):
    odd = replace(INCIDENT, scope={"partner": name}, channel=name)
    ledger.record(SWEEP, [odd], [replace(ANOMALY, scope={"partner": name})])
    assert ledger.incident("inc_1") == odd
    assert ledger.anomalies("inc_1")[0].scope == {"partner": name}
    assert json.loads(json.dumps(odd.public()))["scope"] == {"partner": name}


def test_the_public_form(ledger):
    shown = replace(INCIDENT, started_at=T.astimezone(dt.timezone(2 * dt.timedelta(hours=1)))).public()
    assert list(shown)[:7] == ["id", "status", "severity", "metric", "direction", "scope", "started_at"]
    assert (shown["started_at"], shown["resolved_at"]) == ("2026-03-02T12:00:00Z", None)
    assert show_time(None) is None


# ---- the outbox ------------------------------------------------------------------------------------------------------


def test_deliveries_are_claimed_oldest_first_when_they_are_due(ledger):
    later = replace(DELIVERY, id="d0", due_at=T + MINUTE)
    ledger.record(SWEEP, [INCIDENT], outbox=[DELIVERY, later, replace(DELIVERY, id="d2", created_at=T - MINUTE)])
    assert [d.id for d in (ledger.claim(T), ledger.claim(T))] == ["d2", "d1"]
    assert ledger.claim(T) is None
    assert ledger.claim(T + MINUTE) == replace(later, status="sending", attempts=1)
    assert len(ledger.stranded()) == 3


def test_what_became_of_a_delivery(ledger):
    ledger.record(SWEEP, [INCIDENT], outbox=[DELIVERY])
    sent = replace(DELIVERY, status="sent", receipt={"ts": "1.2", "🛒": [1]}, sent_at=T)
    ledger.update(sent)
    assert ledger.deliveries(incident="inc_1", status=["sent"]) == [sent]
    assert ledger.deliveries(incident="other") == []


def test_a_delivery_is_claimed_by_one_of_many(ledger, tmp_path):
    ledger.record(SWEEP, [INCIDENT], outbox=[replace(DELIVERY, id=f"d{i}") for i in range(20)])
    claimed: list[str] = []

    def work() -> None:
        with Ledger.beside(tmp_path / "kmon.duckdb") as mine:
            while (delivery := mine.claim(T)) is not None:
                claimed.append(delivery.id)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(claimed) == sorted(f"d{i}" for i in range(20))


# ---- runs, names, files ----------------------------------------------------------------------------------------------


def test_runs_newest_first(ledger):
    runs = [Run(f"r{i}", f"job{i % 2}", T + i * MINUTE, None, "running", None, None) for i in range(4)]
    for run in runs:
        ledger.save_run(run)
    ended = replace(runs[3], status="failed", ended_at=T + 9 * MINUTE, error="it's broken", notebook="/x.ipynb")
    ledger.save_run(ended)
    assert ledger.runs(limit=2) == [ended, runs[2]]
    assert ledger.runs(job="job0") == [runs[2], runs[0]]


def test_ids_are_unique():
    ids = [new_id("inc") for _ in range(1000)]
    assert len(set(ids)) == 1000
    assert all(one.startswith("inc_") for one in ids)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        (
            "sqlite:////nowhere/at/all/x.sqlite",
            r"the ledger sqlite:////nowhere/at/all/x.sqlite cannot be opened \(unable",
        ),
        ("nonsense", r"the ledger nonsense cannot be opened \(Could not parse"),
        ("oddbase://user:secret@host/x", r"the ledger oddbase://... cannot be opened"),
    ],
)
def test_what_is_no_ledger_is_one_sentence_without_secrets(url, says):
    with pytest.raises(LedgerError, match=says) as caught:
        Ledger.open(url)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_file_that_is_no_ledger(tmp_path):
    (tmp_path / "x.ledger.sqlite").write_text("hello " * 100)
    with pytest.raises(LedgerError, match="file is not a database"):
        Ledger.beside(tmp_path / "x.duckdb")


def test_sqlite_is_in_wal_mode(ledger, tmp_path):
    connection = sqlite3.connect(tmp_path / "kmon.ledger.sqlite")
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()
