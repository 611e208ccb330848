from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest

from kmon.alerts.message import change, compose, moment, number, quantity, show, words
from kmon.config import Config, Metric
from kmon.hit import Hit, Hits
from kmon.ledger import Incident
from kmon.partners import Partners
from tests.alerts.conftest import EVIL, INCIDENT, MINUTE, RESOLVED, T

ORDERS = replace(
    INCIDENT, metric="orders", scope={"browser": "safari"}, observed=42, expected=120, lower=100, upper=141
)


def test_firing_in_words(make_config: Callable[..., Config], partners: Partners) -> None:
    message = compose(INCIDENT, "firing", make_config(), partners, T)
    assert message.summary == (
        "Conversion of Nordic Shoes (p17) in SE is down 65 %: 11.0 % instead of 31.2 % (27.1 to 35.4 %)"
        " since 14:05 UTC. About 420 fewer orders and amount lower by 31,500 so far."
    )
    assert message.text.splitlines() == [
        "Conversion of Nordic Shoes (p17) in SE is down 65 %",
        "Observed: 11.0 % in 5 min",
        "Expected: 31.2 % (27.1 to 35.4 %)",
        "Since: 14:05 UTC (15:05 in Europe/Stockholm)",
        "Loss so far: about 420 fewer orders and amount lower by 31,500 (630,000 an hour)",
        "Account team: Nordics",
        "critical · detected 14:08 UTC · inc_1",
        INCIDENT.url,
    ]


@pytest.mark.parametrize(
    ("count", "worst", "says"),
    [
        (
            44,
            [("p17", -120.4), ("p3", -81.0), ("p5", -1234.0), ("p6", -3.0)],
            "Nordic Shoes (orders -120), p3 (orders -81), p5 (orders -1,230), 41 more",
        ),
        (1, [("<!here>\n", 2.04)], r"<!here>\n (orders +2)"),
        (0, [], None),
    ],
)
def test_whom_it_hit_most(
    make_config: Callable[..., Config], partners: Partners, count: int, worst: list[tuple[str, float]], says: str | None
) -> None:
    named = tuple(Hit(value, 1.0, 2.0, {"orders": delta}) for value, delta in worst)
    hits = Hits("partner", "orders", {}, T, T, "orders", count, named)
    message = compose(ORDERS, "firing", make_config(), partners, T, hits=hits)
    assert dict(message.rows).get("Most hit") == says


def test_a_long_message_has_sections_that_slack_takes(make_config: Callable[..., Config], partners: Partners) -> None:
    hits = Hits("partner", "orders", {}, T, T, "orders", 1, (Hit("p1", 1.0, 2.0, {"orders": -9.0}),))
    message = compose(INCIDENT, "changed", make_config(), partners, T, change="wider", hits=hits)
    assert [label for label, _ in message.rows][::6] == ["Change", "Account team"]
    assert [len(block.get("fields", ())) for block in message.blocks()] == [0, 10, 4, 0]


def test_a_change_in_words(make_config: Callable[..., Config], partners: Partners) -> None:
    message = compose(INCIDENT, "changed", make_config(), partners, T, change="widened from x to y")
    assert message.summary.startswith(
        "Widened from x to y. Conversion of Nordic Shoes (p17) in SE is down 65 %: 11.0 %"
    )
    assert message.rows[0] == ("Change", "Widened from x to y")
    assert message.icon == compose(INCIDENT, "firing", make_config(), partners, T).icon


@pytest.mark.parametrize(
    ("incident", "kind", "says"),
    [
        (ORDERS, "firing", "Orders on safari are down 65 %: 42 instead of 120 (100 to 141) in 5 min since 14:05 UTC."),
        (
            RESOLVED,
            "resolved",
            "Conversion of Nordic Shoes (p17) in SE is back to normal after 25 minutes. It was 11.0 %",
        ),
        (RESOLVED, "resolved", "from 14:05 to 14:30 UTC. About 420 fewer orders and amount lower by 31,500 in all."),
        (replace(RESOLVED, resolved_at=T + 1440 * MINUTE), "resolved", "is down 65 % for 1 day and counts as normal"),
        (
            replace(RESOLVED, reason="labelled the new normal by ann"),
            "resolved",
            "in SE is down 65 %, labelled the new normal by ann. It was 11.0 %",
        ),
        (replace(INCIDENT, scope={}, impact={}), "firing", "Overall conversion is down 65 %: 11.0 %"),
        (replace(INCIDENT, started_at=T.replace(year=2011)), "firing", "since 23 Nov 2011 14:05 UTC"),
        (
            replace(INCIDENT, scope={"city": "Bonn", "payment_method": "card"}),
            "firing",
            "where city is Bonn for card payments",
        ),
        (replace(INCIDENT, metric="gone"), "firing", "Gone of Nordic Shoes (p17)"),
    ],
)
def test_words(
    make_config: Callable[..., Config], partners: Partners, incident: Incident, kind: str, says: str
) -> None:
    assert says in compose(incident, kind, make_config(), partners, T).summary  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("direction", "observed", "expected", "says"),
    [
        ("down", 35, 100, "down 65 %"),
        ("down", 0, 100, "down to zero"),
        ("down", 0.1, 100, "down more than 99 %"),
        ("up", 165, 100, "up 65 %"),
        ("up", 340, 100, "up 3.4-fold"),
        ("up", 30, 1, "up 30-fold"),
        ("up", 5, 0, "up from zero"),
    ],
)
def test_change(direction: str, observed: float, expected: float, says: str) -> None:
    assert change(replace(INCIDENT, direction=direction, observed=observed, expected=expected)) == says  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("metric", "value", "says"),
    [
        (Metric(rate="a / b"), 0.312, "31.2 %"),
        (Metric(rate="a / b"), 0.0034, "0.34 %"),
        (Metric(rate="a / b"), 1.0, "100 %"),
        (Metric(mean="a / b", unit="EUR"), 12.345, "12.3 EUR"),
        (Metric(quantile="a", q=0.95, unit="ms"), 743.21, "743 ms"),
        (Metric(count="a", unit="EUR"), 31478.4, "31,478 EUR"),
        (Metric(count="a"), float("inf"), "any number"),
    ],
)
def test_quantities_are_rounded_for_people(metric: Metric, value: float, says: str) -> None:
    assert quantity(metric, value) == says


def test_numbers_times_and_spans() -> None:
    assert [number(n) for n in (0, 3.0, 3.44, 31.5, 12_345_678, 2.9e9)] == [
        "0",
        "3",
        "3.4",
        "32",
        "12.3 million",
        "2.90 billion",
    ]
    assert [words(n * MINUTE) for n in (0.5, 0.995, 25, 200, 2880)] == [
        "30 seconds",
        "1 minute",
        "25 minutes",
        "3 hours 20 minutes",
        "2 days",
    ]
    assert moment(T, T.replace(day=24)) == "23 Nov 14:05 UTC"


def test_names_show_literally_in_one_line() -> None:
    assert show(EVIL) == EVIL.replace("\n", "\\n").replace("\u202e", "\\u202e")
    assert show("a\x00\x1b[31mb\u2028") == r"a\x00\x1b[31mb\u2028"
    assert len(show("x" * 10_000_000)) == 80


@pytest.mark.parametrize("name", [EVIL, "<" * 500, "\N{SHOPPING TROLLEY}" * 500, "&amp;" * 100])
def test_slack_gets_no_markup_and_stays_below_its_limits(
    make_config: Callable[..., Config], partners: Partners, name: str
) -> None:
    incident = replace(
        INCIDENT, scope={"partner": "evil", "country": name, "browser": name, "city": name}, url="http://x/?a=1&b=<|>"
    )
    message = compose(incident, "firing", make_config(), partners, T)
    header, section, context = message.blocks()
    texts = [header["text"], *section["fields"], *context["elements"]]
    for text in texts:
        assert (
            text["type"] == "plain_text"
            or text["text"] in labels(message.rows)
            or text["text"].startswith("<http://x/")
        )
        assert len(text["text"].encode("utf-16-le")) // 2 <= (150 if text is header["text"] else 2000)
    assert header["text"]["text"].endswith("is down 65 %")
    assert "<!channel>" not in json.dumps(message.blocks()) + message.notification
    assert context["elements"][0]["text"] == "<http://x/?a=1&amp;b=%3C%7C%3E|Look closer>"


def labels(rows: tuple[tuple[str, str], ...]) -> list[str]:
    return [f"*{label}*" for label, _ in rows]
