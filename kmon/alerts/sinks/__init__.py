"""Where alerts go. A sink hands one alert over, once, and says whether a failure is worth another try.

A sink never retries by itself: that is done once, in the notifier. Its errors hold no secret.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from kmon.alerts.message import Message
from kmon.config import Config, ConsoleSink, FolderSink
from kmon.ledger import Incident, Told

Receipt = dict[str, Any]
"""What the far end answered so far, as JSON."""
Save = Callable[[Receipt], None]


@dataclass(frozen=True)
class Alert:
    """One notification, ready to be handed over."""

    delivery: str
    """Id of the outbox row: the same in every attempt."""
    kind: Told
    incident: Incident
    message: Message
    channel: str
    chart: bytes | None = None
    """PNG; None where it could not be drawn or the sink shows none."""
    firing: Mapping[str, Any] = field(default_factory=dict)
    """Of a later alert: the receipt of the firing one, empty where it never got through."""


class Sink(Protocol):
    """One way to tell people."""

    charts: bool
    """Whether it shows charts; drawing one that nobody sees costs a query."""

    def deliver(self, alert: Alert, receipt: Receipt, save: Save) -> None:
        """Hand `alert` over; SinkError where that fails.

        `receipt` is what earlier attempts got from the far end. A sink that works in steps calls `save` with the whole
        receipt after each, so that a later attempt goes on from there.
        """
        ...


def make_sinks(config: Config) -> dict[str, Sink]:
    """The configured sinks by name; none of them connects to anything yet."""
    from kmon.alerts.sinks.console import Console
    from kmon.alerts.sinks.folder import Folder
    from kmon.alerts.sinks.slack import Slack

    def make(chosen: object) -> Sink:
        if isinstance(chosen, ConsoleSink):
            return Console()
        return Folder(config.resolve(chosen.path)) if isinstance(chosen, FolderSink) else Slack()

    return {name: make(chosen) for name, chosen in config.sinks.items()}


__all__ = ["Alert", "Receipt", "Save", "Sink", "make_sinks"]
