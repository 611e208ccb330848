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


def webkit(system, rest, version="537.36"):
    """A user agent of a browser on WebKit or Blink."""
    return f"Mozilla/5.0 ({system}) AppleWebKit/{version} (KHTML, like Gecko) {rest}"


def iphone(rest):
    return webkit("iPhone; CPU iPhone OS 17_5 like Mac OS X", rest, "605.1.15")


def android(rest, system="Linux; Android 10; K"):
    return webkit(system, rest)


WINDOWS, MAC = "Windows NT 10.0; Win64; x64", "Macintosh; Intel Mac OS X 10_15_7"
PHONE = "Linux; Android 14; SM-S921B Build/UP1A.231005.007; wv"
CHROME, MOBILE = "Chrome/126.0.0.0 Safari/537.36", "Chrome/126.0.0.0 Mobile Safari/537.36"
WEBVIEW = "Version/4.0 Chrome/126.0.6478.50 Mobile Safari/537.36"
IPHONE, EDGE = iphone("Version/17.5 Mobile/15E148 Safari/604.1"), webkit(WINDOWS, f"{CHROME} Edg/126.0.0.0")
AGENTS = [
    (webkit(WINDOWS, CHROME), "chrome", "desktop"),  # Brave says the same
    (webkit(MAC, CHROME), "chrome", "desktop"),
    (webkit("X11; Linux x86_64", CHROME), "chrome", "desktop"),
    (webkit("X11; CrOS x86_64 14541.0.0", CHROME), "chrome", "desktop"),
    (android(MOBILE), "chrome", "mobile"),
    (android(CHROME), "chrome", "tablet"),
    (iphone("CriOS/126.0.6478.35 Mobile/15E148 Safari/604.1"), "chrome", "mobile"),
    (webkit(MAC, "Version/17.5 Safari/605.1.15", "605.1.15"), "safari", "desktop"),
    (IPHONE, "safari", "mobile"),
    (IPHONE.replace("iPhone;", "iPad;").replace("CPU iPhone OS", "CPU OS"), "safari", "tablet"),
    (f"Mozilla/5.0 ({WINDOWS}; rv:127.0) Gecko/20100101 Firefox/127.0", "firefox", "desktop"),
    ("Mozilla/5.0 (Android 14; Mobile; rv:127.0) Gecko/127.0 Firefox/127.0", "firefox", "mobile"),
    ("Mozilla/5.0 (Android 14; Tablet; rv:127.0) Gecko/127.0 Firefox/127.0", "firefox", "tablet"),
    (iphone("FxiOS/127.0 Mobile/15E148 Safari/605.1.15"), "firefox", "mobile"),
    (EDGE, "edge", "desktop"),
    (android(f"{MOBILE} EdgA/126.0.0.0"), "edge", "mobile"),
    (iphone("Version/17.0 EdgiOS/126.0.2592.56 Mobile/15E148 Safari/605.1.15"), "edge", "mobile"),
    (android("SamsungBrowser/25.0 Chrome/121.0.0.0 Mobile Safari/537.36"), "samsung", "mobile"),
    (webkit(WINDOWS, f"{CHROME} OPR/111.0.0.0"), "opera", "desktop"),
    (android(f"{MOBILE} OPR/82.0.0.0"), "opera", "mobile"),
    (
        "Opera/9.80 (J2ME/MIDP; Opera Mini/9.80 (S60; SymbOS; Opera Mobi/23.348; U; en) Presto/2.5.25 Version/10.54",
        "opera mini",
        "mobile",
    ),
    (iphone("Mobile/15E148 [FBAN/FBIOS;FBAV/468.0.0.36.108;FBDV/iPhone14,5;FBMD/iPhone]"), "facebook", "mobile"),
    (android(f"{WEBVIEW} [FB_IAB/FB4A;FBAV/468.0.0.54.84;]", PHONE), "facebook", "mobile"),
    (iphone("Mobile/15E148 Instagram 335.0.8.27.93 (iPhone14,5; iOS 17_5; sv_SE)"), "instagram", "mobile"),
    (android(f"{WEBVIEW} Instagram 336.0.0.35.90 Android (34/14; 480dpi)", PHONE), "instagram", "mobile"),
    (iphone("Mobile/15E148 MicroMessenger/8.0.49(0x18003137) NetType/WIFI"), "wechat", "mobile"),
    (iphone("Mobile/15E148 musical_ly_35.1.0 BytedanceWebview/d8a21c6"), "tiktok", "mobile"),
    (iphone("GSA/323.0.645994522 Mobile/15E148 Safari/604.1"), "google", "mobile"),
    (android(WEBVIEW, PHONE), "chrome webview", "mobile"),
    (iphone("Mobile/15E148"), "safari", "mobile"),  # a page inside some app
    (android("Chrome/126.0.0.0 Mobile DuckDuckGo/5 Safari/537.36"), "duckduckgo", "mobile"),
    (webkit(MAC, "Version/17.5 Safari/605.1.15 Ddg/17.5", "605.1.15"), "duckduckgo", "desktop"),
    (android("Version/4.0 Chrome/100.0.4896.58 UCBrowser/13.4.0.1306 Mobile Safari/537.36"), "uc browser", "mobile"),
    (android("Silk/124.3.1 like Chrome/124.0.0.0 Safari/537.36", "Linux; Android 11; KFTRWI"), "silk", "tablet"),
    (android(WEBVIEW, "Linux; Android 9; AFTKA Build/PS7633.3445N; wv"), "chrome webview", "tv"),
    (webkit("Linux; Tizen 6.5; SMART-TV", "SamsungBrowser/2.2 Chrome/85 TV Safari/537.36"), "samsung", "tv"),
    (webkit("Web0S; Linux/SmartTV", f"{CHROME} WebAppManager"), "chrome", "tv"),
    (android(CHROME, "Linux; Android 12; BRAVIA 4K VH2 Build/STT2.230203.001"), "chrome", "tv"),
    (webkit("PlayStation; PlayStation 5/8.00", "Version/15.4 Safari/605.1.15", "605.1.15"), "safari", "console"),
    (webkit(f"{WINDOWS}; Xbox; Xbox One", f"{CHROME} Edge/44.18363.8131"), "edge", "console"),
    ("Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)", "googlebot", "bot"),
    (android(f"{MOBILE} (compatible; Googlebot/2.1; +http://www.google.com/bot.html)"), "googlebot", "bot"),
    ("Mozilla/5.0 (compatible; bingbot/2.0; +http://www.bing.com/bingbot.htm)", "bingbot", "bot"),
    (webkit(MAC, f"Headless{CHROME}"), "headlesschrome", "bot"),
    ("curl/8.7.1", "curl", "bot"),
    ("python-requests/2.32.3", "python requests", "bot"),
    ("okhttp/4.12.0", "okhttp", "mobile"),  # an app on Android
    ("Dalvik/2.1.0 (Linux; U; Android 14; SM-S921B Build/UP1A.231005.007)", "android", "mobile"),
    ("Klarna/24.20 (iPhone; iOS 17.5) CFNetwork/1496.0.7 Darwin/23.5.0", "cfnetwork", "mobile"),
    ("'; DROP TABLE x; -- \x00🛒", "other", "other"),
    ("", "other", "other"),
]


@pytest.mark.parametrize(("agent", "browser", "device"), AGENTS)
def test_browser_and_device(agent, browser, device):
    assert browser_and_device(agent) == (browser, device)


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
