"""From an incident to people: routing, words, a chart, and the sinks that deliver them."""

from kmon.alerts.message import Message, compose
from kmon.alerts.notifier import Notifier
from kmon.alerts.outbox import outbox_for
from kmon.alerts.routing import Routing, channel_of, route

__all__ = ["Message", "Notifier", "Routing", "channel_of", "compose", "outbox_for", "route"]
