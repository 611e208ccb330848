"""What happens to history when kmon.yaml names other dimensions and measures."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest
import yaml

from kmon.config import Config, Metric, load_config
from kmon.errors import ConfigError, StoreError, UsageError
from kmon.sources import Move
from kmon.store import Commit, EmbeddedStore, RemoteStore, Span, serving
from kmon.store.schema import RAW, TIERS
from tests.conftest import TEMPLATE, T, frame
from tests.store.conftest import HOUR, MINUTE, TOKEN, free_address

MEASURES = load_config(TEMPLATE).measures
END = T + HOUR


def changed(config: Config, **updates: object) -> Config:
    return config.model_copy(update=updates)


def columns(store: EmbeddedStore, table: str) -> set[str]:
    return set(store.sql(f"SELECT * FROM {table} LIMIT 0").columns)


REFUSED = [
    ({"dimensions": ("country",)}, "dimensions: 'partner' is gone, .*: put it back, or write 'forget: .partner.' to"),
    ({"measures": {"sessions": "count(*)"}}, "measures: 'events' is gone, and the store has history of it: put it"),
    (
        {"measures": {**MEASURES, "sessions": "count(*)"}, "forget": ("errors",)},
        (
            "measures.sessions: 'sessions' is redefined, and older rows were counted as \"count.*: give it another"
            " name, or write 'forget: .errors, sessions.' to drop that history"
        ),
    ),
]


@pytest.mark.parametrize(("updates", "says"), REFUSED)
def test_history_is_not_thrown_away(store, tmp_path, config, updates, says):
    before = store.schema
    with pytest.raises(ConfigError, match=rf"kmon.yaml, line \d+: {says}") as caught:
        store.reconfigure(changed(config, **updates))
    assert (store.schema, "\n" in str(caught.value)) == (before, False)
    store.close()
    with pytest.raises(ConfigError, match=says):
        EmbeddedStore(tmp_path / "kmon.duckdb", changed(config, **updates))


def test_what_is_added_begins_now(store, config, commit):
    commit({"country": "SE"})
    measures = {**config.measures, "declined": "count(*) FILTER (status = 'declined')"}
    wanted = changed(config, dimensions=(*config.dimensions, "operation"), measures=measures)
    assert store.reconfigure(wanted) == ["dimension operation added", "measure declined added"]
    commit({"status": "declined", "event_time": T + MINUTE})
    rows = store.sql("SELECT operation, declined, sessions FROM rollup ORDER BY bucket").rows()
    assert rows == [(None, None, 1), ("session", 1, 1)]
    assert store.schema.known_from("declined") == store.schema.known_from("operation", "partner") == T
    assert store.schema.known_from("sessions", "partner") is None
    assert store.totals({"operation": "session"}, T, END)["declined"] == 1


def test_forgetting_drops_a_dimension_everywhere(store, tmp_path, config, commit):
    commit({"country": "SE"})
    store.sql("SELECT country FROM rollup")
    assert store.number("country", "SE") == 1
    left = tuple(d for d in config.dimensions if d != "country")
    wanted = changed(config, dimensions=left, forget=("country",))
    assert store.reconfigure(wanted) == ["dimension country removed"]
    assert store.reconfigure(wanted) == []  # and again: nothing is left to forget
    for table in (*TIERS, RAW, "cells", "rollup"):
        assert "country" not in columns(store, table)
    assert not store.sql("SELECT 1 FROM duckdb_tables() WHERE table_name = 'dim_country'").height
    commit({"country": "DE", "event_time": T + MINUTE})
    assert store.totals({}, T, END)["sessions"] == 2
    # what still asks for it, such as an incident of before, finds nothing rather than failing
    assert store.number("country", "SE") is None
    assert store.totals({"country": "SE"}, T, END)["sessions"] == 0
    assert store.reconfigure(changed(config, forget=("country",))) == ["dimension country added"]
    commit({"country": "DE", "event_time": T + 2 * MINUTE})
    assert (store.number("country", "DE"), store.names("country", [1])) == (1, {1: "DE"})
    assert store.totals({"country": "DE"}, T, END)["sessions"] == 1
    store.close()
    with EmbeddedStore(tmp_path / "kmon.duckdb", config) as again:
        assert again.totals({}, T, END)["sessions"] == 3


def test_forgetting_a_redefined_measure_begins_it_anew(store, config, commit):
    commit({}, {"status": "error"})
    wanted = changed(config, measures={**config.measures, "sessions": "count(*)"}, forget=("sessions",))
    assert store.reconfigure(wanted) == ["measure sessions redefined"]
    commit({"operation": "order", "event_time": T + MINUTE})
    assert store.sql("SELECT sum(sessions)::INT, sum(events)::INT FROM rollup").row(0) == (1, 3)
    assert store.sql("SELECT sessions FROM rollup ORDER BY bucket").to_series().to_list() == [None, 1]
    assert store.schema.known_from("sessions") == T
    with pytest.raises(ConfigError, match="'sessions' is redefined"):
        store.reconfigure(config)


def test_a_name_may_turn_from_a_dimension_into_a_measure(store, config, commit):
    commit({"channel": "ads"})
    wanted = changed(
        config,
        dimensions=tuple(d for d in config.dimensions if d != "channel"),
        measures={**config.measures, "channel": "count(*)"},
        forget=("channel",),
    )
    assert store.reconfigure(wanted) == ["dimension channel removed", "measure channel added"]
    commit({"event_time": T + MINUTE})
    assert store.totals({}, T, END)["channel"] == 1


def test_metrics_come_and_go_freely(store, config):
    metrics = {name: metric for name, metric in config.metrics.items() if name != "approval"}
    assert store.reconfigure(changed(config, metrics=metrics)) == ["metric approval removed"]
    assert "approval" not in store.schema.metrics
    assert store.reconfigure(config) == ["metric approval added"]


def with_sizes(to: float = 1000, **updates: object) -> Config:
    """A configuration with a histogram of amounts."""
    text = yaml.safe_load(TEMPLATE.read_text(encoding="utf-8"))
    sizes = {"sizes": {"of": "amount", "from": 1, "to": to}}
    metrics = {**text["metrics"], "half": {"quantile": "sizes", "q": 0.5}}
    return Config.model_validate(
        {**text, "histograms": sizes, "metrics": metrics, "path": Path("/nowhere/kmon.yaml"), **updates}
    )


def test_a_histogram_comes_changes_and_goes_as_one(store, config, commit):
    commit({"amount": 5.0})
    few, more = with_sizes(10), with_sizes(1000)
    assert store.reconfigure(few) == ["histogram sizes added", "metric half added"]
    assert store.schema.known_from("sizes_03_") == T
    commit({"amount": 5.0, "event_time": T + MINUTE})
    assert store.totals({}, T, END)["sizes_00_"] == 1
    with pytest.raises(
        ConfigError, match=r"histograms.sizes: 'sizes' is redefined, .*: give it another name, or write"
    ):
        store.reconfigure(more)
    changes = ["histogram sizes redefined", "metric half redefined"]
    assert store.reconfigure(with_sizes(1000, forget=["sizes"])) == changes
    assert store.totals({}, T, END)["sizes_00_"] == 0
    with pytest.raises(ConfigError, match=r"'sizes' is gone, .*: put it back, or write 'forget: .sizes.' to"):
        store.reconfigure(config)
    assert store.reconfigure(changed(config, forget=("sizes",))) == ["histogram sizes removed", "metric half removed"]
    assert not [name for name in columns(store, "cells") if name.startswith("sizes")]


def test_a_store_with_a_quantile_is_opened_again_as_it_was(tmp_path):
    path, wanted = tmp_path / "k.duckdb", with_sizes()
    with EmbeddedStore(path, wanted) as store:
        schema = store.schema
    with EmbeddedStore(path, read_only=True) as store:
        assert store.schema == schema
    with EmbeddedStore(path, wanted) as store:
        assert store.reconfigure(wanted) == []


def test_a_change_that_fails_changes_nothing(store, config, commit):
    """What DuckDB refuses in the middle of it: a table in the way."""
    commit({})
    store.connection.execute("CREATE TABLE dim_operation(x INTEGER)")
    before, version = store.schema, store.sql("SELECT value FROM meta")
    measures = {**config.measures, "more": "count(*)"}
    with pytest.raises(Exception, match=r"cannot be written: .*dim_operation"):
        store.reconfigure(changed(config, dimensions=(*config.dimensions, "operation"), measures=measures))
    assert store.schema is before
    assert store.sql("SELECT value FROM meta").equals(version)
    assert "more" not in columns(store, "rollup_10s")
    commit({"event_time": T + MINUTE})
    assert store.totals({}, T, END)["sessions"] == 2


def test_changes_survive_a_restart(tmp_path, config):
    path = tmp_path / "k.duckdb"
    wanted = changed(config, measures={**config.measures, "more": "count(*)"})
    with EmbeddedStore(path, config) as store:
        store.commit(Commit([Move("f", 0, 0, 1)], frame({}), {"0": T}))
        store.reconfigure(wanted)
    with EmbeddedStore(path, wanted) as store:
        assert store.schema.known_from("more") == T
    with EmbeddedStore(path, read_only=True) as store:
        assert store.schema.known_from("more") == T
    with EmbeddedStore(path, changed(wanted, metrics={})) as store:  # another change keeps it
        assert store.schema.known_from("more") == T
        assert store.schema.known_from("more") <= dt.datetime.now(dt.UTC)


@pytest.fixture
def distant(store):
    """A reader over the wire, connected before anything changes, that looks for another schema with each question."""
    address = free_address()
    with serving(store, address, TOKEN), RemoteStore(address, TOKEN, fresh=0) as connected:
        yield connected


def test_a_reader_that_is_connected_learns_what_was_added(store, distant, config, commit):
    with pytest.raises(UsageError, match="'operation' is not a dimension"):
        distant.values("operation", {}, T, END, 9)
    measures = {**config.measures, "declined": "count(*) FILTER (status = 'declined')"}
    metrics = {**config.metrics, "declined": Metric(count="declined")}
    store.reconfigure(changed(config, dimensions=(*config.dimensions, "operation"), measures=measures, metrics=metrics))
    commit({"status": "declined"})
    asked = [
        lambda: distant.values("operation", {}, T, END, 9)["value"].to_list() == ["session"],
        lambda: distant.series("declined", {"operation": "session"}, T, END)["value"].to_list() == [1],
        lambda: distant.measures({"operation": "session"}, T, END)["declined"].to_list() == [1],
        lambda: distant.totals({"operation": "session"}, T, END)["declined"] == 1,
        lambda: distant.breakdown("declined", "operation", {}, END, END - T)["now"].to_list() == [1],
        lambda: "declined" in distant.windows([Span("now", T, 1, END - T)], [["operation"]]).columns,
    ]
    assert all(ask() for ask in asked)
    assert distant.schema == store.schema
    assert distant.schema.known_from("declined") == store.schema.known_from("declined")


def test_a_reader_that_is_connected_learns_what_is_gone_and_numbered_anew(store, distant, config, commit):
    commit({"country": "SE"}, {"country": "DE"})
    assert distant.numbers("country", ["SE", "DE"]) == {"SE": 1, "DE": 2}
    store.reconfigure(changed(config, dimensions=[d for d in config.dimensions if d != "country"], forget=("country",)))
    assert distant.totals({}, T, END)["sessions"] == 2
    with pytest.raises(UsageError, match="'country' is not a dimension"):
        distant.series("sessions", {"country": "SE"}, T, END)
    store.reconfigure(config)
    commit({"country": "DE", "event_time": T + MINUTE})
    assert distant.series("sessions", {"country": "DE"}, T, END)["value"].to_list() == [1]
    assert distant.names("country", [1]) == {1: "DE"}


def test_a_question_that_fails_has_the_next_one_look_at_the_schema(store, config):
    address = free_address()
    with serving(store, address, TOKEN), RemoteStore(address, TOKEN, fresh=3600) as distant:
        store.reconfigure(changed(config, measures={"events": "count(*)"}, forget=tuple(config.measures), metrics={}))
        with pytest.raises(StoreError, match="sessions"):
            distant.totals({}, T, END)
        assert distant.totals({}, T, END) == {"events_": 0, "events": 0}
