from __future__ import annotations

import re
from pathlib import Path

import pytest

from kmon import environment

KMON = Path(environment.__file__).parent


@pytest.mark.parametrize(
    ("read", "name"),
    [
        (environment.slack_bot_token, "SLACK_BOT_TOKEN"),
        (environment.store_token, "KMON_STORE_TOKEN"),
        (environment.ledger_url, "KMON_LEDGER_URL"),
        (environment.config_path, "KMON_CONFIG"),
        (environment.store_address, "KMON_STORE"),
        (environment.kafka_cache, "KMON_KAFKA_CACHE"),
    ],
)
def test_a_variable_that_is_empty_or_not_set_is_none(monkeypatch, read, name):
    monkeypatch.delenv(name, raising=False)
    assert read() is None
    monkeypatch.setenv(name, "")
    assert read() is None
    monkeypatch.setenv(name, "x")
    assert read() == "x"


@pytest.mark.parametrize("given", ["http://127.0.0.1:1/api", "http://127.0.0.1:1/api/"])
def test_the_address_of_slack_ends_in_a_slash(monkeypatch, given):
    monkeypatch.setenv("SLACK_API_URL", given)
    assert environment.slack_api_url() == "http://127.0.0.1:1/api/"
    monkeypatch.delenv("SLACK_API_URL")
    assert environment.slack_api_url() == "https://slack.com/api/"


def test_expand(monkeypatch):
    monkeypatch.setenv("KMON_A", "a${KMON_B}")
    assert environment.expand("x${KMON_A}y$KMON_A ${} ${1}") == "xa${KMON_B}y$KMON_A ${} ${1}"
    monkeypatch.delenv("KMON_B", raising=False)
    with pytest.raises(KeyError, match="KMON_B"):
        environment.expand("${KMON_B}")


def test_a_child_learns_where_things_are(monkeypatch):
    monkeypatch.setenv("KMON_STORE_TOKEN", "mine")
    child = environment.for_child(config="c", store="s")
    assert (child["KMON_CONFIG"], child["KMON_STORE"], child["KMON_STORE_TOKEN"]) == ("c", "s", "mine")
    assert environment.for_child(config="c", store="s", token="t")["KMON_STORE_TOKEN"] == "t"


def test_no_other_module_reads_the_environment():
    reads = re.compile(r"os\.environ|getenv\(|environb")
    modules = [path for path in KMON.rglob("*.py") if reads.search(path.read_text(encoding="utf-8"))]
    assert modules == [KMON / "environment.py"]
