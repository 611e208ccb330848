from __future__ import annotations

import polars as pl
import pytest

from kmon.enrich import Enricher, browser_and_device

IPHONE = (
    "Mozilla/5.0 (iPhone; CPU iPhone OS 17_4 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko)"
    " Version/17.4 Mobile/15E148 Safari/604.1"
)
EDGE = (
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/124.0.0.0 Safari/537.36"
    " Edg/124.0.0.0"
)
AGENTS = [
    (IPHONE, ("safari", "mobile")),
    (IPHONE.replace("iPhone;", "iPad;").replace("CPU iPhone OS", "CPU OS"), ("safari", "tablet")),
    (EDGE, ("edge", "desktop")),
    ("Mozilla/5.0 (Linux; Android 14; SM-X710) AppleWebKit/537.36 Chrome/124.0 Safari/537.36", ("chrome", "tablet")),
    (
        "Mozilla/5.0 (Linux; Android 14; Pixel 8) AppleWebKit/537.36 Chrome/124.0 Mobile Safari/537.36",
        ("chrome", "mobile"),
    ),
    ("Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)", ("googlebot", "bot")),
    ("curl/8.0", ("curl", "desktop")),
    ("'; DROP TABLE x; -- \x00🛒", ("other", "desktop")),
    ("", ("other", "desktop")),
]


@pytest.mark.parametrize(("agent", "expected"), AGENTS)
def test_browser_and_device(agent, expected):
    assert browser_and_device(agent) == expected


def events(**columns):
    return pl.DataFrame({name: pl.Series(values, dtype=pl.String) for name, values in columns.items()})


def test_only_what_is_missing_is_filled(config):
    agents = [IPHONE, EDGE, None, None]
    given = events(user_agent=agents, browser=[None, "mine", "mine", None], device=[None, None, None, None])
    filled = Enricher(config)(given)
    assert filled["browser"].to_list() == ["safari", "mine", "mine", None]
    assert filled["device"].to_list() == ["mobile", "desktop", None, None]


def test_derived_columns_are_there_without_a_user_agent(config):
    filled = Enricher(config)(events(partner=["p1"], user_agent=[None]))
    assert filled.select("browser", "device").row(0) == (None, None)


def test_without_a_rule_nothing_happens(config):
    plain = config.model_copy(update={"enrich": config.enrich.model_copy(update={"user_agent": None})})
    given = events(user_agent=[IPHONE])
    assert Enricher(plain)(given).equals(given)
