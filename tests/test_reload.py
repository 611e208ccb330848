"""What `kmon reload` says of an edited kmon.yaml; a running kmon takes it over in integration/test_reload."""

from __future__ import annotations

import pytest

from kmon.config import KafkaSource, load_config
from kmon.errors import ConfigError
from kmon.reload import check
from kmon.store.schema import Schema
from tests.conftest import TEMPLATE

HISTORY = "(history stays as it was counted)"


@pytest.fixture
def edited(tmp_path):
    """The shipped configuration with one line changed."""

    def edit(old, new):
        text = TEMPLATE.read_text(encoding="utf-8")
        assert text.count(old) == 1
        path = tmp_path / "kmon.yaml"
        path.write_text(text.replace(old, new), encoding="utf-8")
        return load_config(path)

    return edit


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("    country: {type: string}", "    country: {type: string}  # the same", []),
        (
            "    country: {type: string}",
            "    country: {type: string, path: geo.country}",
            [f"field country has the path geo.country instead of country {HISTORY}", "events changed"],
        ),
        (
            "    channel: {type: string}",
            "    channel: {type: integer}",
            [f"field channel has the type integer instead of string {HISTORY}", "events changed"],
        ),
        ("    channel: {type: string}", "    channel: {type: string, path: channel}", ["events changed"]),
        ("    channel: {type: string}", "    channel: {type: string}\n    more: {path: a.b}", ["events changed"]),
        ("every: 30s ", "every: 50s ", ["every changed"]),
    ],
)
def test_what_would_change_is_told(config, edited, old, new, told):
    assert check(edited(old, new), config, Schema.of(config)) == told


@pytest.mark.parametrize(
    ("old", "new"),
    [("# serve: quack:localhost:9494", "serve: quack:localhost:9495"), ("# queries:", "queries: {timeout: 3s}  #")],
)
def test_what_cannot_change_is_refused(config, edited, old, new):
    with pytest.raises(ConfigError, match=rf"line \d+: {new.split(':')[0]}: cannot change while kmon runs"):
        check(edited(old, new), config, Schema.of(config))


@pytest.mark.parametrize(
    ("old", "new", "wrong"),
    [
        ("    channel: {type: string}", "    channel: {type: string, path: country.city}", "goes through"),
        ("  # money:", "  money: {amount: amount, currency: country, rates: nowhere.csv}\n  #", "nowhere"),
    ],
)
def test_what_ingestion_cannot_be_made_from_is_refused(config, edited, old, new, wrong):
    with pytest.raises(ConfigError, match=wrong):
        check(edited(old, new), config, Schema.of(config))


def test_a_setting_that_kafka_does_not_know_is_refused(config):
    source = KafkaSource(kind="kafka", topics=["events"], brokers=["127.0.0.1:1"], settings={"no.such": "setting"})
    with pytest.raises(ConfigError, match=r"no\.such"):
        check(config.model_copy(update={"source": source}), config, Schema.of(config))
