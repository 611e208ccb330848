"""Whom an incident hit, on its page."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kmon.apps.feed import Feed
from kmon.apps.hits import section
from kmon.apps.partner import PartnerPage
from kmon.apps.selection import default
from kmon.config import Config
from kmon.hit import Hit, Hits
from kmon.ledger import Ledger, SweepRecord
from tests.apps import shop
from tests.apps.shop import END, EVIL

SAFE = "&lt;b&gt;O&#x27;Neil &quot;😀&quot;&lt;/b&gt;"


@pytest.mark.parametrize(("scope", "shown"), [({"region": "EU"}, True), ({"shop": EVIL}, False)])
def test_the_page_of_an_incident_lists_whom_it_hit(empty: Config, scope: dict[str, str], shown: bool) -> None:
    with Ledger.beside(shop.fill(empty)) as ledger:
        ledger.record(SweepRecord(END, END, 0.1, 10, 10, 1, 1e-6), [shop.incident(id="inc_2", scope=scope)])
    page = PartnerPage(Feed(empty), "?incident=inc_2")
    page.start()
    page.settle(20)
    page.stop()
    assert ("Shops hit, by loss" in page.hits) is shown
    if shown:
        told = page.hits.replace("\N{NO-BREAK SPACE}", " ")
        assert f">{SAFE}</a></td><td>0 %</td><td>25.0 %</td><td>\N{MINUS SIGN}15</td>" in told
        assert "1 shop lost more than by chance from 11:30 to 12:00 UTC." in page.hits
        assert ">North" not in page.hits


def test_names_lead_to_their_own_page_and_what_is_not_listed_is_counted(filled: Config) -> None:
    one = Hit("north", 0.2, None, {"purchases": -1234.4, "amount": 0.2})
    hits = Hits("shop", "conversion", {"region": "EU"}, END, END, "purchases", 42, (one,))
    told = section(filled, hits, replace(default(filled), incident="inc_2"), END, Feed(filled).partner)
    assert '<a href="?shop=north&amp;region=EU">North &amp; Sons (north)</a>' in told
    assert "<td>\N{MINUS SIGN}1,230</td><td>\N{EN DASH}</td>" in told
    assert "42 shops lost more than by chance" in told
    assert "these are the 1 that lost most" in told
    nobody = section(filled, replace(hits, count=0, worst=()), default(filled), END, Feed(filled).partner)
    assert "No shop lost more than by chance." in nobody
