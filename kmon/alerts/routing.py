"""Who is told about an incident, and where: a decision as a value, with its reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kmon.config import PIPELINE, Config, Match, Route
from kmon.ledger import Incident
from kmon.partners import Partners


@dataclass(frozen=True)
class Routing:
    """Where one incident goes."""

    sinks: tuple[str, ...]
    """Names from kmon.yaml; empty: nobody is told."""
    channel: str
    reason: str
    """Why, in words: for the log and for ``kmon why``."""


def route(config: Config, incident: Incident, partners: Partners) -> Routing:
    """The first route that matches decides; where none does, nobody is told."""
    number, chosen = _first(config, incident.metric, incident.severity, incident.scope)
    channel, why = _channel(config, chosen, incident.scope, partners)
    if incident.metric == PIPELINE and config.pipeline.channel:
        channel, why = config.pipeline.channel, "the pipeline has a channel of its own"
    if chosen is None:
        kinds = f"{incident.severity} incidents of {incident.metric}"
        return Routing(
            (), channel, f"no route matches {kinds} with this scope" if config.routes else "no routes are configured"
        )
    if not chosen.sinks:
        return Routing((), channel, f"route {number} matches and has no sinks")
    return Routing(tuple(dict.fromkeys(chosen.sinks)), channel, f"route {number} matches; {why}")


def channel_of(config: Config, metric: str, severity: str, scope: Mapping[str, str], partners: Partners) -> str:
    """The channel of an incident that is still being made; the same as `route` gives it."""
    return _channel(config, _first(config, metric, severity, scope)[1], scope, partners)[0]


def _first(config: Config, metric: str, severity: str, scope: Mapping[str, str]) -> tuple[int, Route | None]:
    """The first route that takes it and its number, from 1; (0, None) where none does."""
    for number, candidate in enumerate(config.routes, start=1):
        if _matches(candidate.match, metric, severity, scope):
            return number, candidate
    return 0, None


def _matches(match: Match, metric: str, severity: str, scope: Mapping[str, str]) -> bool:
    return (
        (match.metric is None or metric in match.metric)
        and (match.severity is None or severity in match.severity)
        and all(scope.get(dimension) in values for dimension, values in match.scope.items())
    )


def _channel(config: Config, chosen: Route | None, scope: Mapping[str, str], partners: Partners) -> tuple[str, str]:
    """The channel, and why it is that one."""
    if chosen is not None and chosen.channel:
        return chosen.channel, "the route names the channel"
    partner = partners.get(scope["partner"]) if "partner" in scope else None
    if partner is not None and partner.slack_channel:
        return partner.slack_channel, "the partner has a channel of its own"
    return config.default_channel, "the default channel, as no partner with a channel of its own is concerned"
