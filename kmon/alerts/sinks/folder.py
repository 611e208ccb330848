"""The message and the chart as files: for trying things out, and for whatever picks files up."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from kmon.alerts.sinks import Alert, Receipt, Save
from kmon.errors import SinkError


class Folder:
    """Makes ``<time>_<incident>_<kind>/`` with message.txt, message.json and chart.png for each alert.

    There may be several of the kind ``changed``, whose name ends in the delivery's.
    It is filled under a hidden name and then renamed, so that a reader never sees half of it.
    """

    charts = True

    def __init__(self, path: Path) -> None:
        self.path = path

    def deliver(self, alert: Alert, receipt: Receipt, save: Save) -> None:
        incident = alert.incident
        at = (alert.kind == "resolved" and incident.resolved_at) or incident.detected_at
        number = f"_{alert.delivery}" if alert.kind == "changed" else ""
        target = self.path / f"{at:%Y%m%dT%H%M%SZ}_{incident.id}_{alert.kind}{number}"
        draft = self.path / f".{target.name}_{alert.delivery}"
        try:
            if not target.exists():
                shutil.rmtree(draft, ignore_errors=True)  # what a crash left behind
                draft.mkdir(parents=True)
                _fill(draft, alert)
                draft.rename(target)
        except OSError as error:
            message = f"the alert cannot be written to {target} ({error.strerror}): check the disk and its permissions"
            raise SinkError(message, retryable=True) from error
        save({"folder": str(target)})


def _fill(folder: Path, alert: Alert) -> None:
    message, incident = alert.message, alert.incident
    document = {
        "kind": alert.kind,
        "channel": alert.channel,
        "title": message.title,
        "text": message.text,
        "blocks": message.blocks(),
        "incident": incident.public(),
    }
    text = json.dumps(document, ensure_ascii=False, indent=2) + "\n"
    (folder / "message.json").write_text(text, encoding="utf-8")
    (folder / "message.txt").write_text(message.text + "\n", encoding="utf-8")
    if alert.chart is not None:
        (folder / "chart.png").write_bytes(alert.chart)
