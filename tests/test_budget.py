"""The alerts of a week against the budget: what counts, what people said of it, and what `kmon status` shows."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kmon import labels
from kmon.budget import DAYS, achieved, last_week
from kmon.config import PIPELINE, load_config
from kmon.ledger import Incident, Ledger, Word, open_ledger
from kmon.status import status
from kmon.store import EmbeddedStore
from tests.command import kmon, kmon_json
from tests.conftest import ROOT, TEMPLATE
from tests.detect.worlds import DAY, config
from tests.test_ledger import INCIDENT, SWEEP

HOUR = dt.timedelta(hours=1)
AT = SWEEP.at


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    with Ledger.open("sqlite://") as opened:
        yield opened


def fired(ledger: Ledger, ago: float, label: Word | None = None, **changes: Any) -> Incident:
    """An alert so many days before the last sweep."""
    id = f"inc_{len(ledger.incidents())}"
    one = replace(INCIDENT, id=id, detected_at=AT - ago * DAY, started_at=AT - ago * DAY - HOUR, **changes)
    ledger.record(SWEEP, [one])
    if label is not None:
        labels.say(config(), ledger, id, label, by="ann")
    return one


def swept_since(ledger: Ledger, days: float) -> None:
    ledger.record(replace(SWEEP, at=AT - days * DAY), [])
    ledger.record(SWEEP, [])


def test_without_a_sweep_there_is_nothing_to_tell(ledger: Ledger) -> None:
    assert last_week(ledger) == []
    told = achieved([], 0.1)
    assert told["false_alerts_per_day_budget"] == 0.1
    assert told["alerts_per_day"] is None


def test_alerts_are_told_by_day_and_by_what_people_said(ledger: Ledger) -> None:
    swept_since(ledger, 30)
    fired(ledger, 0.0, "false")
    fired(ledger, 0.5)
    fired(ledger, 0.9, severity="warning")
    fired(ledger, 2.5, "true")
    fired(ledger, 2.6, "new-normal")
    fired(ledger, 7.5)  # before
    week = last_week(ledger)
    assert [day.until for day in week] == [AT - ago * DAY for ago in range(DAYS - 1, -1, -1)]
    assert [day.watched for day in week] == pytest.approx([1.0] * DAYS)
    today, before = week[-1], week[-3]
    assert (today.alerts, today.labelled_false, today.labelled_right, today.unlabelled) == (3, 1, 0, 2)
    assert (before.alerts, before.labelled_false, before.labelled_right, before.unlabelled) == (2, 0, 2, 0)
    assert sum(day.alerts for day in week) == 5
    assert achieved(week, 0.1) == {
        "false_alerts_per_day_budget": 0.1,
        "alerts_per_day": round(5 / 7, 3),
        "alerts_per_day_labelled_false": round(1 / 7, 3),
        "alerts_per_day_labelled_right": round(2 / 7, 3),
        "alerts_per_day_unlabelled": round(2 / 7, 3),
        "pipeline_incidents_last_week": 0,
    }


def test_what_informs_is_no_alert_and_the_pipeline_is_told_apart(ledger: Ledger) -> None:
    swept_since(ledger, 30)
    fired(ledger, 1.5, severity="info")
    fired(ledger, 1.5, metric=PIPELINE)
    fired(ledger, 1.5, metric=PIPELINE, severity="warning")
    day = last_week(ledger)[-2]
    assert (day.alerts, day.unlabelled, day.pipeline_incidents) == (0, 0, 2)
    told = achieved(last_week(ledger), 0.1)
    assert (told["alerts_per_day"], told["pipeline_incidents_last_week"]) == (0, 2)


def test_a_label_that_is_taken_back_counts_no_more(ledger: Ledger) -> None:
    swept_since(ledger, 30)
    fired(ledger, 0.5, "false")
    (label,) = ledger.labels()
    labels.remove(ledger, label.id)
    assert (last_week(ledger)[-1].labelled_false, last_week(ledger)[-1].unlabelled) == (0, 1)


@pytest.mark.parametrize(("since", "days", "rate"), [(2.5, 3, 2 / 2.5), (0.1, 1, 2.0), (0.0, 1, 2.0)])
def test_the_rate_is_over_the_time_that_was_watched(ledger: Ledger, since: float, days: int, rate: float) -> None:
    """Of less than a day it is that of a whole one: two alerts in the first hour are not 48 a day."""
    swept_since(ledger, since)
    fired(ledger, 0.0)
    fired(ledger, 0.0)
    week = last_week(ledger)
    assert len(week) == days
    assert sum(day.watched for day in week) == pytest.approx(since, abs=1e-6)
    assert achieved(week, 0.1)["alerts_per_day"] == pytest.approx(rate, abs=1e-3)


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    (tmp_path / "kmon.yaml").write_text(TEMPLATE.read_text(encoding="utf-8"), encoding="utf-8")
    settings = load_config(tmp_path / "kmon.yaml")
    with EmbeddedStore(settings.resolve(settings.store), settings), open_ledger(settings) as ledger:
        swept_since(ledger, 30)
        fired(ledger, 0.5, "false")
        fired(ledger, 1.5)
        fired(ledger, 1.5, metric=PIPELINE)
    return tmp_path


def test_status_shows_it_as_a_table_and_as_json(installed: Path) -> None:
    found = kmon_json("status", cwd=installed)
    summary = found["summary"]
    assert (summary["alerts_per_day"], summary["alerts_per_day_labelled_false"]) == (0.286, 0.143)
    assert (summary["false_alerts_per_day_budget"], summary["pipeline_incidents_last_week"]) == (0.2, 1)
    assert [day["alerts"] for day in found["alerts_by_day"]] == [0, 0, 0, 0, 0, 1, 1]
    assert found["alerts_by_day"][-1]["until"].endswith("Z")
    shown = kmon("status", cwd=installed).stdout
    assert "false alerts per day budget" in shown
    assert "alerts per day labelled false" in shown
    assert re.search(r"24 hours until \(UTC\) +alerts", shown)


def test_every_name_of_it_is_in_the_documentation(installed: Path) -> None:
    told = (ROOT / "docs" / "labels.md").read_text(encoding="utf-8")
    summary = status(load_config(installed / "kmon.yaml"))["summary"]
    named = [key for key in summary if "per_day" in key or "too_often" in key or key.endswith("last_week")]
    assert len(named) == 7
    assert [key for key in named if f"`{key}`" not in told] == []
