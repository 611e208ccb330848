"""What `kmon doctor` finds; the command itself is tested in test_cli."""

from __future__ import annotations

import socket
from dataclasses import replace

import pytest

from kmon.config import Telemetry
from kmon.doctor import Check, _room, examine
from kmon.errors import KmonError
from kmon.ledger import open_ledger
from kmon.store import serving, token_for
from tests.store.conftest import free_address
from tests.test_ledger import DELIVERY, INCIDENT, SWEEP


@pytest.fixture
def settings(tmp_path, config):
    return config.model_copy(update={"path": tmp_path / "kmon.yaml", "serve": free_address()})


def found(config, name) -> Check:
    return next(check for check in examine(config) if check.name == name)


def test_the_port_for_prometheus(settings, store):
    assert found(settings, "telemetry").detail == "not asked for: Prometheus is told nothing"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        wanted = settings.model_copy(update={"telemetry": Telemetry(port=port)})
        check = found(wanted, "telemetry")
        assert (check.ok, f"127.0.0.1:{port} (Address already in use)" in check.detail) == (False, True)
        assert check.detail.endswith("stop what runs there, or choose another telemetry.port in kmon.yaml")
        with serving(store, settings.serve, token_for(store.path)):
            assert found(wanted, "telemetry") == Check(
                "telemetry", True, f"port {port} is in use, as it is while kmon is running"
            )
    assert found(wanted, "telemetry") == Check("telemetry", True, f"port {port} is free")


def test_a_full_disk_is_told_in_figures_that_say_something(settings):
    with pytest.raises(KmonError, match="only 20 MiB are free beside"):
        _room(20 * 2**20, settings)
    assert _room(5 * 2**30, settings) == "5 GiB free"


def test_one_of_something_is_told_in_the_singular(settings, store):
    with open_ledger(settings) as ledger:
        for id, says in [("1", "1 open incident, 1 alert waiting"), ("2", "2 open incidents, 2 alerts waiting")]:
            ledger.record(SWEEP, [replace(INCIDENT, id=id)], [], [replace(DELIVERY, id=id)])
            assert found(settings, "ledger").detail == says
