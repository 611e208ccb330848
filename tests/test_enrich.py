from __future__ import annotations

import polars as pl
import pytest
from structlog.testing import capture_logs

from kmon.coding import shared
from kmon.config import Money
from kmon.enrich import Enricher, alpha2, browser_and_device
from kmon.errors import ConfigError
from kmon.events import Decoder
from kmon.sources import RawBatch

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


# ---- countries -------------------------------------------------------------------------------------------------------

COUNTRIES = [
    *[(text, "SE") for text in ("SE", "se", " SE ", "SWE", "752", "Sweden", "sweden", "Kingdom of Sweden")],
    ("UK", "GB"),
    ("United Kingdom", "GB"),
    ("el", "GR"),
    ("XX", "XX"),
    ("", ""),
    ("Atlantis 🛒", "Atlantis 🛒"),
]


@pytest.mark.parametrize(("text", "code"), COUNTRIES)
def test_a_country_has_one_name(text, code):
    assert alpha2(text) == code


def test_countries_of_events_keep_their_type(config):
    given = events(country=["se", "SWE", None, "??"]).with_columns(pl.col("country").cast(shared("test_country")))
    done = Enricher(config)(given)["country"]
    assert (done.cast(pl.String).to_list(), done.dtype) == (["SE", "SE", None, "??"], given["country"].dtype)


# ---- money -----------------------------------------------------------------------------------------------------------


def converting(config, rates):
    money = Money(to="EUR", rates=rates)
    return config.model_copy(update={"enrich": config.enrich.model_copy(update={"money": money})})


def sold(*pairs):
    frame = pl.DataFrame(pairs, schema={"amount": pl.Float64, "currency": pl.String}, orient="row")
    return frame.with_columns(pl.col("currency").cast(pl.Categorical(pl.Categories.random())))


def test_amounts_are_converted_and_unknown_currencies_do_not_count(config):
    enrich = Enricher(converting(config, {"USD": 0.5, "SEK": 0.1}))
    with capture_logs() as logs:
        for _ in range(2):
            done = enrich(sold((10.0, "USD"), (10.0, "EUR"), (5.0, "SEK"), (7.0, "XTS"), (7.0, None), (None, "ZZZ")))
            assert done["amount"].to_list() == [5.0, 10.0, 0.5, None, None, None]
    assert sorted(str(entry["currency"]) for entry in logs) == ["None", "XTS"]  # once each


def test_the_table_is_read_again_when_it_changes_and_a_bad_one_is_not_taken(config, tmp_path):
    path = tmp_path / "rates.csv"
    path.write_text("currency,rate\nUSD,0.5\n")
    enrich = Enricher(converting(config, str(path)))
    assert enrich(sold((10.0, "USD")))["amount"].item() == 5.0
    path.write_text("currency,rate\nUSD,0.25\nSEK,0.1\n")
    assert enrich(sold((10.0, "USD"), (10.0, "SEK")))["amount"].to_list() == [2.5, 1.0]
    path.write_text("currency,rate\nUSD,nonsense-that-is-no-number\n")
    with capture_logs() as logs:
        assert enrich(sold((10.0, "USD")))["amount"].item() == 2.5
        assert enrich(sold((10.0, "USD")))["amount"].item() == 2.5
    assert [entry["event"] for entry in logs] == ["the rates before stay in use"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "cannot be read: No such file or directory"),
        ("a,b\n1,2\n", "is no csv with the columns currency and rate"),
        ("currency,rate\nUSD,0\n", "has no positive rate for USD"),
        ("currency,rate\nUSD,\n", "has no positive rate for USD"),
    ],
)
def test_a_bad_table_is_one_sentence(config, tmp_path, text, sentence):
    path = tmp_path / "rates.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=f"enrich.money.rates: {path} {sentence}"):
        Enricher(converting(config, str(path)))


def test_a_currency_is_decoded_for_its_amount(config):
    line = b'{"ts": "2026-11-02T10:00:00Z", "operation": "order", "status": "ok", "amount": 4, "currency": "USD"}\n'
    config = converting(config, {"USD": 0.5})
    decoded = Decoder(config).decode(RawBatch.consecutive("f", 0, 0, line, 1))
    assert Enricher(config)(decoded.events)["amount"].item() == 2.0
