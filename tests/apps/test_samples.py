"""The sample events of an incident's page."""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import replace

import polars as pl
import pytest

from kmon.apps.feed import Feed
from kmon.apps.partner import PartnerPage
from kmon.apps.samples import Samples, failing, read, section
from kmon.apps.selection import Selection, default
from kmon.config import Config, load_config
from kmon.ledger import Incident
from kmon.store import EmbeddedStore
from tests.apps import shop
from tests.apps.shop import END, EVIL
from tests.conftest import TEMPLATE

MINUTE = dt.timedelta(minutes=1)


def sampled(config: Config, incident: Incident) -> Samples:
    with EmbeddedStore(config.resolve(config.store), read_only=True) as store:
        return read(store, config, incident, END)


def test_the_newest_events_in_scope_and_window(filled: Config) -> None:
    found = sampled(filled, shop.incident())
    assert (found.events.height, set(found.events["shop"]), found.nothing) == (10, {EVIL}, "")
    assert found.events["event_time"][0] == (END - dt.timedelta(seconds=10)).replace(tzinfo=None)
    over = sampled(filled, shop.incident(resolved_at=END - 28 * MINUTE))
    assert over.events["event_time"][0] == (END - 28 * MINUTE - dt.timedelta(seconds=10)).replace(tzinfo=None)
    assert sampled(filled, shop.incident(scope={}, resolved_at=END - 29 * MINUTE)).events["shop"].n_unique() == 3


def test_a_page_shows_them_with_an_incident_only(filled: Config) -> None:
    opened = PartnerPage(Feed(filled), "?incident=inc_1")
    opened.start()
    opened.settle(20)
    text = opened.samples
    assert "The newest of this incident&#x27;s events, from 11:30 UTC, as they came." in text
    assert text.count("<tr>") == 11
    assert "<th>Time</th><th>Region</th><th>Rest of the event</th>" in text  # the shop is the same for all
    assert '<td class="time">11:59:50</td><td>US</td>' in text
    assert '<span class="dimension">basket.total</span>19.9' in text
    assert "<b>O" not in text  # a name with markup is text, also in the whole event
    opened.show(replace(default(filled), where={"shop": "north"}))
    opened.settle(20)
    opened.settle(20)
    assert opened.samples == ""
    opened.stop()


def test_a_view_without_an_incident_has_none(filled: Config) -> None:
    assert Feed(filled).view(default(filled)).samples is None
    known: Selection = replace(default(filled), incident="inc_1")
    assert Feed(filled).view(known).samples is not None
    assert Feed(filled).view(replace(default(filled), incident="inc_9")).samples is None


@pytest.mark.parametrize(
    ("changes", "raw", "why"),
    [
        ({"scope": {"shop": "nobody"}}, "2h", "No event came here in that time."),
        (
            {"started_at": END - 180 * MINUTE, "resolved_at": END - 120 * MINUTE},
            "1h",
            "The events of that time are no longer kept: whole events are for 1h.",
        ),
        ({"scope": {"shop": "nobody"}}, "0s", "Whole events are not kept: keep.raw in kmon.yaml says for how long"),
        ({"scope": {"coupon": "x"}}, "2h", "Events are no longer told apart by coupon."),
    ],
    ids=["none", "old", "never", "forgotten"],
)
def test_where_there_is_none_it_says_why(filled: Config, changes: dict[str, object], raw: str, why: str) -> None:
    text = filled.file.read_text(encoding="utf-8") + f"keep: {{raw: {raw}}}\n"
    path = filled.file.with_name(f"kmon-{raw}.yaml")
    path.write_text(text, encoding="utf-8")
    config = load_config(path)
    told = section(config, sampled(config, shop.incident(**changes)), END)
    assert why in told
    assert "<table>" not in told


def test_of_failures_only_the_failing_ones() -> None:
    config = load_config(TEMPLATE)
    up, down = ({"metric": "error_rate", "direction": direction} for direction in ("up", "down"))
    assert failing(config, shop.incident(**up)) == {"status": ("error",)}
    assert failing(config, shop.incident(**down)) == {}
    assert failing(config, shop.incident(metric="conversion")) == {}
    nested = config.events.fields["status"].model_copy(update={"path": "payment.status"})
    events = config.events.model_copy(update={"fields": {**config.events.fields, "status": nested}})
    assert failing(config.model_copy(update={"events": events}), shop.incident(**up)) == {"payment.status": ("error",)}


@pytest.mark.parametrize(
    ("document", "shown"),
    [
        ("a;b\n<i>", "a;b↵&lt;i&gt;</span>"),
        ("[1]", ">[1]</span>"),
        ('{"a": ' * 5000 + "1" + "}" * 5000, "{&quot;a&quot;: {&quot;a&quot;:"),
        ('{"a": {"b": [1, null]}, "c": null, "d": "x"}', ">a.b</span>[1, null]</span>"),
        (json.dumps({f"n{i}": i for i in range(20)}), '>n11</span>11</span><span class="dimension">and 8 more</span>'),
        (json.dumps({"text": "x" * 41}), f">text</span>{'x' * 39}…</span>"),
    ],
    ids=["text", "list", "deep", "nested", "many", "long"],
)
def test_an_odd_event_is_shown_as_far_as_it_goes(filled: Config, document: str, shown: str) -> None:
    found = sampled(filled, shop.incident())
    odd = found.events.head(1).with_columns(document=pl.lit(document))
    assert shown in section(filled, replace(found, events=odd), END)


def test_an_incident_of_another_day_says_so(filled: Config) -> None:
    found = sampled(filled, shop.incident(resolved_at=END - 28 * MINUTE))
    text = section(filled, found, END + dt.timedelta(days=2))
    assert "from 10 Jan 11:30 until 10 Jan 11:32 UTC" in text
    assert '<td class="time">10 Jan 11:31:50</td>' in text
