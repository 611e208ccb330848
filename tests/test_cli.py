"""The command line, run as people run it: a process with arguments, an exit code and two streams."""

import datetime as dt
import importlib.metadata
import json
import subprocess
import sys

import pytest

from kmon.config import load_config
from kmon.ledger import Ledger
from kmon.resources import TEMPLATE
from tests.alerts.conftest import INCIDENT, record
from tests.command import kmon, kmon_json


def event(second, **changes):
    base = {"ts": f"2026-03-02T10:00:{second:02d}Z", "operation": "order", "status": "ok", "partner": "p1", "amount": 5}
    return json.dumps({**base, **changes})


@pytest.fixture(scope="module")
def replayed(tmp_path_factory):
    """A folder with kmon.yaml, a few replayed events, some of them broken, and the replay's answer."""
    folder = tmp_path_factory.mktemp("replayed")
    assert kmon("init", cwd=folder).returncode == 0
    odd = "O'Neil \"& <b>\n\U0001f600; DROP TABLE rollup; --"
    lines = [event(i) for i in range(30)] + [event(31, partner=odd), "garbage", event(32, amount="abc"), event(59)]
    (folder / "events.ndjson").write_text("\n".join(lines) + "\n", encoding="utf-8")
    done = kmon("replay", "events.ndjson", "--store", "s.duckdb", "--format", "json", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout), odd


def test_replay_prints_its_summary_as_json(replayed):
    _, summary, _ = replayed
    assert set(summary) == {"events", "dead_letters", "sweeps", "incidents", "seconds"}
    assert (summary["events"], summary["dead_letters"]) == (32, 2)


def test_replaying_the_same_file_again_changes_nothing(replayed):
    folder, _, _ = replayed
    again = kmon("replay", "events.ndjson", "-s", "s.duckdb", "-f", "json", cwd=folder)
    assert json.loads(again.stdout)["events"] == 0


def test_incidents_are_a_json_array(replayed):
    folder, summary, _ = replayed
    found = kmon("incidents", "--store", "s.duckdb", "--format", "json", cwd=folder)
    assert found.returncode == 0
    assert len(json.loads(found.stdout)) == summary["incidents"]


def test_incidents_show_rates_as_alerts_do_and_tell_programs_the_numbers(replayed):
    folder, _, _ = replayed
    with Ledger.beside(folder / "rates.duckdb") as ledger:
        record(ledger, INCIDENT, [])
    table = kmon("incidents", "-s", "rates.duckdb", cwd=folder).stdout
    assert "11.0 %" in table
    assert "31.2 %" in table
    assert kmon_json("incidents", "-s", "rates.duckdb", cwd=folder)[0]["observed"] == 0.11


def test_the_version_is_that_of_the_package(tmp_path):
    assert kmon("--version", cwd=tmp_path).stdout == f"kmon {importlib.metadata.version('kmon')}\n"


def test_query_counts_what_was_ingested(replayed):
    folder, _, _ = replayed
    sql = "SELECT partner, sum(orders) AS orders FROM rollup GROUP BY 1 ORDER BY 2 DESC"
    rows = json.loads(kmon("query", sql, "-s", "s.duckdb", "-f", "json", cwd=folder).stdout)
    assert rows[0] == {"partner": "p1", "orders": 31}


def test_a_name_with_quotes_newlines_emoji_and_sql_filters_and_shows(replayed):
    folder, _, odd = replayed
    arguments = ["--from", "2026-03-02T10:00:00Z", "--to", "2026-03-02T10:01:00Z", "-s", "s.duckdb", "-f", "json"]
    series = json.loads(kmon("series", "orders", "-w", f"partner={odd}", *arguments, cwd=folder).stdout)
    assert [row["observed"] for row in series] == [1.0]
    table = kmon("query", "SELECT DISTINCT partner FROM rollup", "-s", "s.duckdb", cwd=folder).stdout
    assert "O'Neil \"& <b>\\n\U0001f600" in table


def test_series_begins_at_whole_minutes_and_ends_with_a_complete_bucket(replayed):
    folder, _, _ = replayed
    asked = ("series", "orders", "--from", "2026-03-02T09:58:10Z", "-s", "s.duckdb", "-f", "json")
    by_minute, by_two = (kmon(*asked, "--grain", grain, cwd=folder) for grain in ("1m", "2m"))
    assert "buckets of 1m begin at whole minutes: this is from 2026-03-02 09:58:00 UTC" in by_minute.stderr
    assert [row["bucket"] for row in json.loads(by_minute.stdout)] == ["2026-03-02T09:58:00Z", "2026-03-02T09:59:00Z"]
    assert len(json.loads(by_two.stdout)) == 1
    assert kmon(*asked, "--grain", "10s", cwd=folder).stderr == ""


def test_status_tells_offsets_rows_and_dead_letters(replayed):
    folder, _, _ = replayed
    found = json.loads(kmon("status", "-s", "s.duckdb", "-f", "json", cwd=folder).stdout)
    assert found["offsets"][0]["position"] == 34
    assert found["dead_letters"] == {"not JSON": 1, "wrong type: amount is text, not number": 1}
    assert found["summary"]["events"] == 32


def test_detect_says_when_there_is_nothing_new(replayed):
    folder, _, _ = replayed
    first = kmon("detect", "-s", "s.duckdb", cwd=folder)
    assert first.returncode == 0, first.stderr
    assert "nothing new" in kmon("detect", "-s", "s.duckdb", cwd=folder).stdout


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["bogus"], 2, "No such command 'bogus'"),
        (["incidents", "--config", "nowhere.yaml"], 2, "nowhere.yaml does not exist: create one with 'kmon init'"),
        (["incidents", "--store", "none.duckdb"], 1, "none.ledger.sqlite does not exist"),
        (["incidents", "--status", "broken"], 2, "there is no status 'broken'"),
        (["series", "conversio", "-s", "s.duckdb"], 2, "no metric 'conversio': did you mean 'conversion'?"),
        (
            ["series", "orders", "-w", "partnr=p1", "-s", "s.duckdb"],
            2,
            "no dimension 'partnr': did you mean 'partner'?",
        ),
        (["series", "orders", "-w", "p1", "-s", "s.duckdb"], 2, "'p1' is not of the form K=V"),
        (["why", "orders", "-w", "partner=p1", "-w", "partner=p2", "-s", "s.duckdb"], 2, "'partner' is given twice"),
        (["label", "incident", "-w", "partner=p1", "-w", "partner=p1"], 2, "'partner' is given twice, as 'p1' and"),
        (["series", "orders", "--grain", "7s", "-s", "s.duckdb"], 2, "7s is not a multiple of 10s"),
        (["detect", "--at", "noon"], 2, "'noon' is not a time"),
        (["query", "DROP TABLE meta", "-s", "s.duckdb"], 1, "read-only"),
        (["query", "SELEC 1", "-s", "s.duckdb"], 1, "syntax error"),
        (["query", "SELECT [INTERVAL 1 DAY] AS a", "-s", "s.duckdb"], 1, "cannot be shown: write a::VARCHAR"),
        (["query", "SELECT 1", "-s", "none.duckdb"], 1, "none.duckdb does not exist"),
        (["query", "SELECT 1", "-s", "events.ndjson"], 1, "events.ndjson cannot be opened as a store"),
        (["query", "SELECT 1", "-s", "quack:localhost:1"], 1, "nobody answers at quack:localhost:1"),
        (["replay", "missing.ndjson", "-s", "s.duckdb"], 1, "missing.ndjson does not exist"),
        (["ingest", "kmon.yaml", "-s", "s.duckdb"], 1, "is of no known kind"),
        (["replay", "events.ndjson", "-s", "/proc/none/s.duckdb"], 1, "/proc/none/s.duckdb cannot be opened"),
        (["label", "inc_9", "true", "-s", "s.duckdb"], 2, "there is no incident 'inc_9': 'kmon incidents' lists them"),
        (["label", "inc_9", "normal", "-s", "s.duckdb"], 2, "there is no label 'normal': did you mean 'new-normal'?"),
        (["label", "inc_9", "-s", "s.duckdb"], 2, "say what inc_9 was: 'kmon label inc_9 true|false|new-normal'"),
        (["label", "--metric", "orders", "-s", "s.duckdb"], 2, "write 'kmon label incident ...'"),
        (["label", "incident", "--metric", "orders", "-s", "s.duckdb"], 2, "needs --metric, --from and --to"),
        (["label", "--remove", "lbl_9", "-s", "s.duckdb"], 2, "there is no label 'lbl_9': 'kmon label' lists them"),
        (["label", "-s", "none.duckdb"], 1, "none.ledger.sqlite does not exist"),
        (["series", "orders", "-s", "/nowhere/s.duckdb"], 1, "/nowhere/s.duckdb does not exist"),
        (
            [
                "label",
                "incident",
                "--metric",
                "orders",
                "--from",
                "2026-03-02",
                "--to",
                "2026-03-03",
                "-s",
                "/nowhere/s",
            ],
            1,
            "the folder /nowhere does not exist",
        ),
        (["up", "-s", "/proc/s.duckdb"], 1, "the folder /proc cannot be written"),
        (["jobs", "run", "nope"], 2, "there is no job 'nope': it is one of deep_scan, detect, prepare"),
        (["simulate", "--out", "x", "--partners", "0"], 2, "'--partners'"),
        (["init", "--example", "nope"], 2, "there is no example 'nope': there is online_retail"),
    ],
)
def test_an_error_is_one_sentence_and_an_exit_code(replayed, arguments, code, says):
    done = kmon(*arguments, cwd=replayed[0])
    assert (done.returncode, done.stdout) == (code, "")
    assert says in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.strip() and "━" not in line]
    assert len(errors) == 1
    assert errors[0].startswith("kmon: ")


def test_debug_shows_the_traceback(replayed):
    assert "Traceback" in kmon("query", "SELEC 1", "-s", "s.duckdb", "--debug", cwd=replayed[0]).stderr


def test_a_store_that_another_process_owns_is_told(replayed, tmp_path):
    store, config = str(tmp_path / "k.duckdb"), str(TEMPLATE)
    script = f"import kmon; s = kmon.open({store!r}, kmon.load_config({config!r})); print(1, flush=True); input()"
    owner = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert owner.stdout.readline()
    done = kmon("ingest", "events.ndjson", "-s", tmp_path / "k.duckdb", cwd=replayed[0])
    owner.communicate(b"\n")
    assert done.returncode == 1
    assert "is owned by another process" in done.stderr


def test_init_keeps_what_is_there_and_its_configuration_is_valid(tmp_path):
    kmon("init", "new", cwd=tmp_path)
    (tmp_path / "new" / "kmon.yaml").write_text("mine", encoding="utf-8")
    assert "everything is there already" in kmon("init", "new", cwd=tmp_path).stdout
    assert (tmp_path / "new" / "kmon.yaml").read_text(encoding="utf-8") == "mine"
    assert (tmp_path / "new" / "notebooks" / "apps" / "partner.ipynb").exists()
    assert load_config(TEMPLATE).every == dt.timedelta(seconds=30)


def test_simulate_writes_the_same_files_twice(tmp_path):
    arguments = ["--partners", 50, "--rate", 2, "--days", 0.1, "--incidents", 1, "--seed", 7]
    for name in ("a", "b"):
        done = kmon("simulate", "--out", name, *arguments, "--format", "json", cwd=tmp_path)
        assert json.loads(done.stdout)["incidents"] == 1
    for file in sorted((tmp_path / "a").iterdir()):
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_doctor_checks_everything_and_fails_on_what_is_missing(replayed, tmp_path):
    kmon("init", cwd=tmp_path)
    fine = kmon("doctor", "--format", "json", cwd=tmp_path)
    checks = {check["name"]: check for check in json.loads(fine.stdout)}
    assert {"installation", "store", "ledger", "source", "sink console", "telemetry", "disk"} <= set(checks)
    assert checks["installation"]["ok"]
    text = (tmp_path / "kmon.yaml").read_text(encoding="utf-8").replace("use: compare", "use: nowhere:Detector")
    (tmp_path / "kmon.yaml").write_text(
        text.replace("{min_volume: 20, min_effect: 0.3, min_rise: 1.0}", "{}"), encoding="utf-8"
    )
    broken = kmon("doctor", cwd=tmp_path)
    assert broken.returncode == 1
    assert "the detector 'nowhere:Detector' cannot be loaded" in broken.stdout


def test_a_replay_finds_an_outage_and_delivers_before_it_ends(tmp_path):
    kmon("init", cwd=tmp_path)
    start = dt.datetime(2026, 3, 2, 10, tzinfo=dt.UTC)
    with (tmp_path / "day.ndjson").open("w", encoding="utf-8") as file:
        for half in range(2 * 60 * 90):
            for partner in ("p1", "p2"):
                if partner == "p1" and half >= 2 * 60 * 60:  # silent from 11:00 on
                    continue
                at = (start + dt.timedelta(seconds=half / 2)).isoformat()
                file.write(event(0, ts=at, partner=partner, operation=("session", "order")[half % 2]) + "\n")
    done = kmon("replay", "day.ndjson", "--deliver", "--format", "json", cwd=tmp_path)
    assert json.loads(done.stdout)["incidents"] >= 1, done.stderr
    found = json.loads(kmon("incidents", "--format", "json", cwd=tmp_path).stdout)
    [outage] = [i for i in found if i["scope"] == {"partner": "p1"} and i["direction"] == "down"]
    assert "2026-03-02T10:58:00Z" <= outage["started_at"] <= "2026-03-02T11:01:00Z"
    assert "2026-03-02T11:00:20Z" <= outage["detected_at"] <= "2026-03-02T11:01:00Z"
    assert set(outage) == {
        *("id", "status", "severity", "metric", "direction", "scope", "started_at", "detected_at", "resolved_at"),
        *("observed", "expected", "lower", "upper", "p_value", "impact", "anomalies", "channel", "url"),
    }
    assert outage["impact"]["orders"] < 0
    assert list((tmp_path / "alerts").glob(f"*_{outage['id']}_firing/chart.png"))
    assert f"incident {outage['id']}" in done.stderr
    normal = kmon_json("label", outage["id"], "new-normal", "--by", "ann", cwd=tmp_path)
    assert (normal["word"], normal["incident"], normal["said_by"]) == ("new-normal", outage["id"], "ann")
    assert kmon_json("label", outage["id"], "new-normal", cwd=tmp_path) == normal
    assert kmon_json("label", cwd=tmp_path) == [normal]
    (ended,) = [i for i in kmon_json("incidents", cwd=tmp_path) if i["id"] == outage["id"]]
    assert (ended["status"], ended["resolved_at"]) == ("resolved", "2026-03-02T11:29:00Z")
    assert "new-normal" in kmon("incidents", cwd=tmp_path).stdout


def test_a_stretch_is_labelled_listed_and_taken_back(replayed):
    folder, _, odd = replayed
    stretch = ["--metric", "orders", "--from", "2026-03-02T10:00", "--to", "2026-03-02T10:01"]
    arguments = ["-s", "s.duckdb"]
    label = kmon_json("label", "incident", "--where", f"partner={odd}", *stretch, *arguments, cwd=folder)
    assert (label["scope"], label["resolved_at"], label["incident"]) == ({"partner": odd}, "2026-03-02T10:01:00Z", None)
    assert label["id"] in kmon("label", *arguments, cwd=folder).stdout
    why = kmon_json(
        "why", "orders", "--where", f"partner={odd}", "--at", "2026-03-02T10:00:20Z", *arguments, cwd=folder
    )
    assert why["masked"] == []  # nobody had said so by then
    assert kmon_json("label", "--remove", label["id"], *arguments, cwd=folder) == {"removed": label["id"]}
    assert kmon("label", *arguments, cwd=folder).stdout == "no labels\n"
