"""The long-running parts take over an edited kmon.yaml, and what its files say, without being started again."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from pathlib import Path

import pytest

from kmon import parts
from kmon.alerts.outbox import outbox_for
from kmon.config import load_config
from kmon.ledger import open_ledger
from kmon.partners import Partners
from kmon.store import EmbeddedStore
from tests.alerts.conftest import INCIDENT, T, record
from tests.conftest import TEMPLATE

TWO = "  folder: {kind: folder, path: alerts}\n  second: {kind: folder, path: second}\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    found = tmp_path / "kmon.yaml"
    text = TEMPLATE.read_text(encoding="utf-8").replace("  folder: {kind: folder, path: alerts}\n", TWO)
    found.write_text(text.replace("# partners:", "partners: partners.csv #"), encoding="utf-8")
    (tmp_path / "partners.csv").write_text("partner,name\np17,Nordic Shoes\n", encoding="utf-8")
    config = load_config(found)
    EmbeddedStore(config.resolve(config.store), config).close()
    return found


@contextlib.contextmanager
def notifying(config):
    """A notifier that runs; what is yielded has it take over kmon.yaml."""
    stop, pause = threading.Event(), threading.Event()
    thread = threading.Thread(target=parts.run_notifier, args=(config, stop), kwargs={"pause": pause})
    thread.start()
    try:
        yield pause.set
    finally:
        stop.set()
        pause.set()
        thread.join(30)


def delivered(ledger, folder, id):
    """The text of an alert about incident `id`, which is put into the outbox and delivered."""
    incident = dataclasses.replace(INCIDENT, id=id)
    config = load_config(folder / "kmon.yaml")
    record(ledger, incident, outbox_for(config, incident, "firing", Partners.load(folder / "partners.csv"), T))
    assert parts.wait_for(lambda: not ledger.deliveries(status=["pending", "sending"]), threading.Event(), 30)
    assert {d.status for d in ledger.deliveries(incident=id)} == {"sent"}
    return {path.parts[-3]: path.read_text(encoding="utf-8") for path in folder.glob(f"*/*{id}*/message.txt")}


def test_the_notifier_goes_by_the_edited_file_and_the_changed_reference(file, tmp_path):
    config = load_config(file)
    with open_ledger(config) as ledger, notifying(config) as reload:
        assert ["Nordic Shoes" in text for text in delivered(ledger, tmp_path, "inc_1").values()] == [True]
        (tmp_path / "partners.csv").write_text("partner,name\np17,Nordic Boots\n", encoding="utf-8")
        assert ["Nordic Boots" in text for text in delivered(ledger, tmp_path, "inc_2").values()] == [True]
        text = file.read_text(encoding="utf-8")
        file.write_text(text.replace("sinks: [console, folder]", "sinks: [console, folder, second]"), encoding="utf-8")
        reload()
        assert set(delivered(ledger, tmp_path, "inc_3")) == {"alerts", "second"}
