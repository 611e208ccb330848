"""A line on the terminal for each alert."""

from __future__ import annotations

import sys

from kmon.alerts.sinks import Alert, Receipt, Save


class Console:
    """Prints ``incident <id> <severity>: <what happened>  <url>``, or the same with ``changed`` or ``resolved``."""

    charts = False

    def deliver(self, alert: Alert, receipt: Receipt, save: Save) -> None:
        if not receipt:
            word = "incident" if alert.kind == "firing" else alert.kind
            incident = alert.incident
            line = f"{word} {incident.id} {incident.severity}: {alert.message.summary}  {alert.message.url}".rstrip()
            encoding = sys.stdout.encoding or "utf-8"
            print(line.encode(encoding, "backslashreplace").decode(encoding), flush=True)
            save({"printed": True})
