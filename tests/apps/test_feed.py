from __future__ import annotations

import datetime as dt
import subprocess
import sys
from dataclasses import replace

import pytest

from kmon.apps.feed import Feed
from kmon.apps.selection import Selection, default, ranges
from kmon.config import Config, load_config
from kmon.store import EmbeddedStore
from tests.apps import shop
from tests.apps.shop import END, EVIL

MINUTE = dt.timedelta(minutes=1)


def select(config: Config, **where: str) -> Selection:
    return replace(default(config), where=where)


def test_a_view_has_what_was_observed_and_expected_up_to_the_watermark(filled: Config) -> None:
    view = Feed(filled).view(select(filled))
    assert (view.problem, view.watermark, view.end) == (None, END, END)
    assert view.series["visits"]["observed"].to_list() == [90.0] * 36  # 18 a minute, in five minutes
    assert view.latest["visits"].select("observed", "expected").row(0) == (90.0, pytest.approx(90, rel=0.01))
    assert view.offers["shop"] == tuple(sorted(shop.SHOPS))
    assert set(view.offers["region"]) == {"EU", "US"}


def test_a_filter_narrows_the_data_also_for_a_wild_name(filled: Config) -> None:
    view = Feed(filled).view(select(filled, shop=EVIL))
    assert view.latest["conversion"]["observed"][0] == 0.0
    assert view.latest["conversion"]["expected"][0] > 0.2
    assert [i.id for i in view.firing] == ["inc_1"]


def test_few_events_get_wider_buckets(filled: Config) -> None:
    assert Feed(filled).view(select(filled)).grain == 5 * MINUTE  # 18 a minute
    assert Feed(filled).view(replace(select(filled), range=ranges(filled)[0])).grain == 5 * MINUTE
    assert Feed(filled).view(select(filled, shop="north", region="EU")).grain == 15 * MINUTE


def test_an_open_incident_elsewhere_is_listed_but_does_not_fire_here(filled: Config) -> None:
    view = Feed(filled).view(select(filled, shop="north"))
    assert [i.id for i in view.incidents] == ["inc_1"]
    assert view.firing == []


def test_a_value_that_was_never_seen_is_named(filled: Config) -> None:
    view = Feed(filled).view(select(filled, shop="nowhere", region="EU"))
    assert (view.unknown, view.series, view.problem) == (("shop",), {}, None)


def test_the_past_is_shown_up_to_a_quarter_of_the_range_after_the_instant(filled: Config) -> None:
    view = Feed(filled).view(replace(select(filled), at=END - dt.timedelta(hours=4)))
    assert view.end == END - dt.timedelta(hours=4) + dt.timedelta(minutes=45)


def test_a_store_that_is_away_is_told_in_words_and_comes_back(empty: Config) -> None:
    feed = Feed(empty)
    away = feed.view(select(empty))
    assert "does not exist" in str(away.problem)
    assert away.read is False
    shop.fill(empty)
    view = feed.view(select(empty), away)
    assert (view.problem, view.end) == (None, END)


def test_new_data_moves_the_newest_window_every_ten_seconds_and_the_lines_with_the_grid(empty: Config) -> None:
    path, feed = shop.fill(empty), Feed(empty)
    before = feed.view(select(empty))
    soon = END + dt.timedelta(seconds=20)
    with EmbeddedStore(path) as store:
        shop.add(store, shop.visits(END, soon), soon)
    after = feed.view(select(empty), before)
    assert (after.end, after.series["visits"]) == (soon, before.series["visits"])
    assert after.series["visits"] is before.series["visits"]
    assert after.latest["visits"]["bucket"][0] == (soon - 5 * MINUTE).replace(tzinfo=None)


def test_nothing_is_read_again_while_the_watermark_stands(filled: Config) -> None:
    feed = Feed(filled)
    first = feed.view(select(filled))
    assert feed.view(select(filled), first).latest is first.latest


def test_a_file_is_let_go_between_two_views(empty: Config) -> None:
    path, feed = shop.fill(empty), Feed(empty)
    assert feed.view(select(empty)).read
    owner = "import sys, duckdb; print(duckdb.connect(sys.argv[1]).sql('SELECT max(newest) FROM clocks').fetchone()[0])"
    told = subprocess.run([sys.executable, "-c", owner, path], capture_output=True, text=True, check=False)
    assert (told.stdout, told.stderr) == (f"{END:%Y-%m-%d %H:%M:%S}\n", "")  # else the file is locked


def test_an_empty_store_has_no_watermark(empty: Config) -> None:
    EmbeddedStore(empty.resolve(empty.store), empty).close()
    view = Feed(empty).view(select(empty))
    assert (view.read, view.watermark, view.problem) == (True, None, None)


def test_the_reference_knows_names(filled: Config) -> None:
    feed = Feed(filled)
    assert getattr(feed.partner("north"), "name", None) == "North & Sons"
    assert feed.partner(EVIL) is None


def test_a_view_knows_that_the_configuration_is_another_one_now(empty: Config) -> None:
    path, feed = empty.file, Feed(empty)
    text = path.read_text()
    assert not feed.view(select(empty)).outdated
    path.write_text(text.replace("metrics:", "metric:"))
    assert not feed.view(select(empty)).outdated  # broken: it is still being edited
    path.write_text(
        text.replace("  visits: {count: visits}", "  visits: {count: visits}\n  bought: {count: purchases}")
    )
    assert feed.view(select(empty)).outdated
    shop.fill(empty)
    assert feed.view(select(empty)).outdated
    assert not Feed(load_config(path)).view(select(empty)).outdated


def test_a_reference_that_changes_is_read_again(empty: Config) -> None:
    feed = Feed(empty)
    assert feed.partner("north").name == "North & Sons"
    empty.resolve("shops.csv").write_text("partner,name\nnorth,North & Daughters\nsouth,South\n", encoding="utf-8")
    assert (feed.partner("north").name, feed.partner("south").name) == ("North & Daughters", "South")
