from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from dataclasses import replace

import pytest

from kmon import labels
from kmon.apps import incidents
from kmon.apps.feed import Feed
from kmon.apps.partner import PartnerPage, page
from kmon.apps.selection import default
from kmon.config import Config
from kmon.ledger import Ledger, SweepRecord, Word
from kmon.store import EmbeddedStore
from tests.apps import shop
from tests.apps.shop import END, EVIL

LITERAL = "&lt;b&gt;O&#x27;Neil &quot;😀&quot;&lt;/b&gt;"


@pytest.fixture
def opened(filled: Config) -> Iterator[PartnerPage]:
    made = PartnerPage(Feed(filled), "")
    made.start()
    made.settle(20)
    yield made
    made.stop()


def test_it_opens_with_everything(opened: PartnerPage) -> None:
    assert "<h1>All shops</h1>" in opened.head
    assert "complete up to 10 Jan 2026 12:00:00 UTC" in opened.head
    assert opened.blank == ""
    assert ">90<" in opened.card("visits")
    assert "11:55 to 12:00" in opened.card("visits")


def test_choosing_a_shop_shows_its_name_and_data(opened: PartnerPage) -> None:
    opened.filters.picker.value = "North & Sons (north)"
    opened.settle(20)
    opened.settle(20)
    assert opened.selection.where == {"shop": "north"}
    assert "<h1>North &amp; Sons</h1>" in opened.head
    assert "Account team <b>Retail</b>" in opened.head
    assert "11:45 to 12:00" in opened.card("visits")  # fewer events, wider windows


def test_a_name_with_markup_is_text(opened: PartnerPage) -> None:
    opened.filters.picker.value = EVIL
    opened.settle(20)
    opened.settle(20)
    assert f"<h1>{LITERAL}</h1>" in opened.head
    assert "1 open incident" in opened.head
    assert 'class="change bad">▼' in opened.card("conversion")


def test_an_incident_selects_its_scope_and_metric(opened: PartnerPage) -> None:
    opened.pick("inc_1")
    assert opened.selection.where == {"shop": EVIL}
    assert (opened.selection.metric, opened.selection.incident) == ("conversion", "inc_1")
    assert opened.filters.picker.value == EVIL


def test_the_figures_stay_when_the_data_changes(opened: PartnerPage) -> None:
    figures = [chart.figure for chart in opened.charts.values()]
    opened.filters.lists["region"].value = "EU"
    opened.settle(20)
    opened.settle(20)
    assert opened.view.selection.where == {"region": "EU"}
    assert [chart.figure for chart in opened.charts.values()] == figures


@pytest.mark.parametrize(
    ("query", "heading"),
    [
        ("?shop=nowhere%3Ci%3E", "No shop called “nowhere&lt;i&gt;” has been seen"),
        ("?at=2026-01-01T00:00:00Z", "No events in this"),
    ],
)
def test_an_empty_page_says_why(filled: Config, query: str, heading: str) -> None:
    made = PartnerPage(Feed(filled), query)
    made.start()
    made.settle(20)
    assert heading in made.blank
    made.stop()


def test_a_store_that_is_away_does_not_stop_the_page(empty: Config) -> None:
    made = PartnerPage(Feed(empty), "")
    made.start()
    made.settle(20)
    assert "There is no data to show" in made.blank
    shop.fill(empty)
    made.read()
    made.settle(20)
    assert made.blank == ""
    made.stop()


def test_new_data_arrives_without_a_new_page(empty: Config) -> None:
    path = shop.fill(empty)
    made = PartnerPage(Feed(empty), "?shop=south")
    made.start()
    made.settle(20)
    later = END + dt.timedelta(minutes=5)
    with EmbeddedStore(path) as store:
        shop.add(store, shop.visits(END, later, ("south", "south", "north")), later)
    made.read()
    made.settle(20)
    assert ">120<" in made.card("visits")
    made.stop()


def test_a_link_to_an_incident_shows_when_it_was(filled: Config) -> None:
    made = PartnerPage(Feed(filled), "?incident=inc_1")
    made.start()
    made.settle(20)
    assert made.selection.where == {"shop": EVIL}
    assert made.selection.metric == "conversion"
    made.stop()


def test_the_list_of_incidents_is_words(filled: Config, opened: PartnerPage) -> None:
    (row,) = incidents.groups(filled, opened.view, None, Feed(filled).partner)[0]["rows"]
    assert row["where"] == [["Shop", EVIL]]  # text: the browser gets it with textContent
    assert (row["what"], row["loss"], row["status"]) == ("▼ Conversion", "45 fewer purchases", "firing")


@pytest.mark.parametrize(
    ("word", "said", "says"),
    [
        ("true", END, "Labelled real by ann <b>\\x00, 12:00 UTC"),
        ("false", END + dt.timedelta(days=1), "Labelled a false alarm by ann <b>\\x00, 11 Jan 12:00 UTC"),
        ("new-normal", END, "Labelled the new normal by ann <b>\\x00, 12:00 UTC"),
    ],
)
def test_what_people_said_of_an_incident_is_told(empty: Config, word: Word, said: dt.datetime, says: str) -> None:
    with Ledger.beside(shop.fill(empty)) as ledger:
        ledger.record(SweepRecord(END, END, 0.1, 10, 10, 1, 1e-6), [shop.incident(id="inc_2", scope={"shop": "south"})])
        labels.say(empty, ledger, "inc_1", word, by="ann <b>\x00", clock=lambda: said)
    view = Feed(empty).view(default(empty))
    rows = incidents.groups(empty, view, None, Feed(empty).partner)[0]["rows"]
    assert {row["id"]: row["said"] for row in rows} == {"inc_1": says, "inc_2": ""}


def test_a_partner_has_its_name_in_the_list(filled: Config, opened: PartnerPage) -> None:
    (incident,) = opened.view.incidents
    north = replace(incident, scope={"shop": "north", "region": "EU"})
    row = incidents.row(filled, north, END, Feed(filled).partner)
    assert row["where"] == [["Shop", "North & Sons (north)"], ["Region", "EU"]]


def test_a_loss_is_told_as_in_alerts_and_a_gain_is_none(filled: Config, opened: PartnerPage) -> None:
    (incident,) = opened.view.incidents
    lost = replace(incident, impact={"purchases": -15.2, "amount": -1201.7, "visits": 3.0, "refunds": -0.4})
    row = incidents.row(filled, lost, None, lambda _: None)
    assert row["loss"] == "15 fewer purchases, amount lower by 1,200"


def test_a_broken_configuration_is_a_sentence_on_the_page(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("broken") / "kmon.yaml"
    path.write_text("dimension: [x]\n", encoding="utf-8")
    assert "kmon cannot show this page" in page(path).object  # type: ignore[attr-defined]
