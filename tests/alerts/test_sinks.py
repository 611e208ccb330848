from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kmon.alerts.message import compose
from kmon.alerts.sinks import Alert, make_sinks
from kmon.alerts.sinks.console import Console
from kmon.alerts.sinks.folder import Folder
from kmon.alerts.sinks.slack import Slack
from kmon.config import Config
from kmon.errors import SinkError
from kmon.ledger import Incident
from kmon.partners import Partners
from tests.alerts.conftest import INCIDENT, RESOLVED, T

MakeAlert = Callable[..., Alert]


@pytest.fixture
def make_alert(make_config: Callable[..., Config], partners: Partners) -> MakeAlert:
    def make(incident: Incident = INCIDENT, kind: Any = "firing", **changes: Any) -> Alert:
        message = compose(incident, kind, make_config(), partners, T)
        return replace(Alert("dlv_1", kind, incident, message, "#p17", b"\x89PNG"), **changes)

    return make


def test_console_is_one_line(make_alert: MakeAlert, capsys: pytest.CaptureFixture[str]) -> None:
    receipts: list[dict[str, Any]] = []
    Console().deliver(make_alert(replace(INCIDENT, scope={"partner": "evil"})), {}, receipts.append)
    Console().deliver(make_alert(RESOLVED, "resolved"), {}, receipts.append)
    Console().deliver(make_alert(), receipts[0], receipts.append)  # printed before the crash
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("incident inc_1 critical: Conversion of A$^2$ *B*")
    assert r"'; DROP TABLE x; --\u202e (evil)" in first
    assert first.endswith(f".  {INCIDENT.url}")
    assert second.startswith(
        "resolved inc_1 critical: Conversion of Nordic Shoes (p17) in SE is back to normal after 25 minutes."
    )


def test_folder_has_message_and_chart(make_alert: MakeAlert, tmp_path: Path) -> None:
    Folder(tmp_path / "a" / "b").deliver(make_alert(), {}, lambda _: None)
    (made,) = (tmp_path / "a" / "b").iterdir()
    assert made.name == "20261123T140800Z_inc_1_firing"
    assert (made / "chart.png").read_bytes() == b"\x89PNG"
    assert (
        (made / "message.txt")
        .read_text(encoding="utf-8")
        .startswith("Conversion of Nordic Shoes (p17) in SE is down 65 %\n")
    )
    document = json.loads((made / "message.json").read_text(encoding="utf-8"))
    assert document["incident"] == INCIDENT.public()
    assert document["blocks"][0]["type"] == "header"


def test_each_change_is_a_line_and_a_folder_of_its_own(
    make_alert: MakeAlert, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in (1, 2):
        alert = make_alert(kind="changed", delivery=f"dlv_{number}")
        Folder(tmp_path).deliver(alert, {}, lambda _: None)
    Console().deliver(alert, {}, lambda _: None)
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"20261123T140800Z_inc_1_changed_dlv_{n}" for n in (1, 2)]
    assert capsys.readouterr().out.startswith("changed inc_1 critical: Conversion of Nordic Shoes (p17) in SE is down")


def test_folder_is_whole_or_not_there(make_alert: MakeAlert, tmp_path: Path) -> None:
    left = tmp_path / ".20261123T140800Z_inc_1_firing_dlv_1"
    left.mkdir()
    (left / "half").touch()
    for _ in range(2):  # the second attempt finds it done
        Folder(tmp_path).deliver(make_alert(chart=None), {}, lambda _: None)
    assert sorted(p.name for p in tmp_path.glob("**/*") if p.is_file()) == ["message.json", "message.txt"]


def test_folder_that_cannot_be_written_is_tried_again(make_alert: MakeAlert, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SinkError, match=r"cannot be written to .*Not a directory") as caught:
        Folder(tmp_path / "file").deliver(make_alert(), {}, lambda _: None)
    assert caught.value.retryable


def test_sinks_of_a_configuration(make_config: Callable[..., Config], tmp_path: Path) -> None:
    config = make_config(
        sinks={"a": {"kind": "console"}, "b": {"kind": "folder", "path": "out"}, "c": {"kind": "slack"}}, routes=[]
    )
    sinks = make_sinks(config)
    assert [type(sink) for sink in sinks.values()] == [Console, Folder, Slack]
    assert isinstance(sinks["b"], Folder)
    assert sinks["b"].path == tmp_path / "out"
