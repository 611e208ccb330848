"""Who takes over a store goes by kmon.yaml as it is then, unless that cannot be."""

from __future__ import annotations

import threading

import pytest
from structlog.testing import capture_logs

from kmon.config import copy_config, load_config
from kmon.errors import ConfigError
from kmon.standby import own, take
from kmon.store import EmbeddedStore
from tests.conftest import TEMPLATE

BEFORE, ADDED = "device, channel]", "device, channel, operation]"


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "kmon.duckdb")


@pytest.fixture
def file(tmp_path):
    found = tmp_path / "kmon.yaml"
    found.write_text(TEMPLATE.read_text(encoding="utf-8"), encoding="utf-8")
    return found


def edit(file, old, new):
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new, 1), encoding="utf-8")


def test_it_goes_by_the_file_as_it_is_now(path, file):
    config = load_config(file)
    edit(file, BEFORE, ADDED)
    store, new = take(path, config)
    with store:
        assert (new, store.schema.dimensions[-1]) == (load_config(file), "operation")


def test_what_an_owner_sets_up_once_may_change_before_it_takes_over(path, file):
    config = load_config(file)
    edit(file, "\nkeep:", "\nqueries: {timeout: 3s}\ntelemetry: {port: 9465}\nkeep:")
    store, new = take(path, config)
    with store:
        assert (new.queries.timeout.total_seconds(), new.telemetry.port) == (3, 9465)


def test_a_copy_is_made_anew(path, file, tmp_path):
    config = copy_config(file, tmp_path / "copy.yaml")
    edit(file, BEFORE, ADDED)
    store, new = take(path, config)
    with store:
        assert (new, new.file) == (load_config(tmp_path / "copy.yaml"), config.file)
        assert "operation" in new.dimensions
    assert not list(tmp_path.glob("*.new"))


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("watch:", "wotch:", "unknown key 'wotch'"),
        ("  events: count(*)", "  events: sum(1)", "'events' is redefined"),
        ("\nkeep:", "\nserve: quack:localhost:9999\nkeep:", "serve: cannot change"),
    ],
    ids=["broken", "redefines", "moves"],
)
def test_a_file_that_cannot_be_used_changes_nothing(path, file, tmp_path, old, new, why):
    config = copy_config(file, tmp_path / "copy.yaml")
    EmbeddedStore(path, config).close()
    edit(file, old, new)
    with capture_logs() as logs:
        store, kept = take(path, config)
    with store:
        assert (kept, load_config(config.file)) == (config, config)
    [warning] = [log for log in logs if log["log_level"] == "warning"]
    assert "as it is now cannot be used" in warning["event"]
    assert why in warning["reason"]


def test_a_store_that_takes_neither_says_why(path, file):
    config = load_config(file)
    edit(file, BEFORE, ADDED)
    EmbeddedStore(path, load_config(file)).close()  # as the owner had it
    edit(file, "watch:", "wotch:")
    with pytest.raises(ConfigError, match="'operation' is gone"):
        take(path, config)


def test_a_free_store_is_opened_at_once(path, file):
    config = load_config(file)
    edit(file, BEFORE, ADDED)  # not reloaded, and nobody was waited for
    store, same = own(path, config, threading.Event(), standby=True)
    with store:
        assert same is config
