from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from kmon.alerts.routing import Routing, channel_of, route
from kmon.config import Config
from kmon.partners import Partners
from tests.alerts.conftest import INCIDENT

ROUTES = [
    {"match": {"severity": ["info"]}, "sinks": []},
    {"match": {"metric": ["approval"], "scope": {"country": ["DE", "AT"]}}, "sinks": ["console"], "channel": "#dach"},
    {"match": {"severity": ["critical"]}, "sinks": ["console", "folder", "console"]},
]


@pytest.mark.parametrize(
    ("changes", "sinks", "channel", "reason"),
    [
        ({}, ("console", "folder"), "#p17", "route 3 matches; the partner has a channel"),
        ({"scope": {"partner": "p99"}}, ("console", "folder"), "#kmon", "route 3 matches; the default channel"),
        ({"scope": {}}, ("console", "folder"), "#kmon", "default"),
        ({"metric": "approval", "scope": {"country": "AT", "partner": "p17"}}, ("console",), "#dach", "route 2"),
        ({"metric": "approval", "scope": {"country": "SE"}}, ("console", "folder"), "#kmon", "route 3"),
        ({"severity": "info"}, (), "#p17", "route 1 matches and has no sinks"),
        ({"severity": "warning"}, (), "#p17", "no route matches warning incidents of conversion"),
    ],
)
def test_the_first_route_that_matches_decides(
    make_config: Callable[..., Config],
    partners: Partners,
    changes: dict[str, object],
    sinks: object,
    channel: str,
    reason: str,
) -> None:
    config, incident = make_config(routes=ROUTES), replace(INCIDENT, **changes)  # type: ignore[arg-type]
    found = route(config, incident, partners)
    assert (found.sinks, found.channel) == (sinks, channel)
    assert reason in found.reason
    assert channel_of(config, incident.metric, incident.severity, incident.scope, partners) == channel


def test_without_routes_nobody_is_told(make_config: Callable[..., Config], partners: Partners) -> None:
    assert route(make_config(routes=[]), INCIDENT, partners) == Routing((), "#p17", "no routes are configured")
