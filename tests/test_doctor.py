"""What `kmon doctor` finds; the command itself is tested in test_cli."""

from __future__ import annotations

import socket

import pytest

from kmon.config import Telemetry
from kmon.doctor import Check, examine
from kmon.store import serving, token_for
from tests.store.conftest import free_address


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
