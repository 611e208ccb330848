"""Half a day of simulated traffic, judged as if live: what was broken is found and named, what is harmless is not."""

from __future__ import annotations

import datetime as dt
import json

import pytest

from tests.command import kmon, kmon_json

pytestmark = [pytest.mark.xdist_group("simulated_day"), pytest.mark.timeout(900)]
BEGIN = "2026-03-03T00:00:00Z"


@pytest.fixture(scope="session")  # of the one worker that has this group
def day(tmp_path_factory):
    """What was wrong in truth, and the incidents."""
    folder = tmp_path_factory.mktemp("day")
    assert kmon("init", cwd=folder).returncode == 0
    made = ["--partners", 300, "--rate", 10, "--days", 1.5, "--incidents", 4, "--seed", 3]
    summary = kmon_json("simulate", "--out", "recorded", *made, cwd=folder)
    files = sorted((folder / "recorded").glob("events-*"))
    replayed = kmon_json("replay", *files, "--detect-from", BEGIN, "--every", "2m", cwd=folder)
    assert (replayed["events"], replayed["dead_letters"]) == (summary["events"], 0)
    truth = json.loads((folder / "recorded" / "truth.json").read_text())["incidents"]
    return truth, kmon_json("incidents", cwd=folder)


def test_each_thing_that_broke_is_one_incident_with_its_exact_scope(day):
    truth, incidents = day
    broken = [t for t in truth if not t["harmless"]]
    assert len(broken) == 4
    for true in broken:
        start, end = (dt.datetime.fromisoformat(true[key]) for key in ("started_at", "ended_at"))
        found = [i for i in incidents if start < dt.datetime.fromisoformat(i["detected_at"]) < end]
        assert [(i["scope"], i["direction"]) for i in found] == [(true["scope"], true["direction"])], true["kind"]
        late = dt.datetime.fromisoformat(found[0]["detected_at"]) - start
        assert late < dt.timedelta(minutes=10), true["kind"]
        assert abs(dt.datetime.fromisoformat(found[0]["started_at"]) - start) < dt.timedelta(minutes=5), true["kind"]
        assert found[0]["status"] == "resolved"


def test_nothing_harmless_alarms(day):
    truth, incidents = day
    assert {t["kind"] for t in truth if t["harmless"]} == {"campaign", "holiday", "lagging_partition"}
    scopes = [t["scope"] for t in truth if not t["harmless"]]
    assert [i for i in incidents if i["severity"] != "info" and i["scope"] not in scopes] == []
