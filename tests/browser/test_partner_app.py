"""The page as a person meets it: a real server, a real store in another process, a real browser."""

from __future__ import annotations

import re
from urllib.parse import quote

from playwright.sync_api import Locator, Page, expect

from kmon import labels
from kmon.apps.chart import PERCENT
from kmon.config import load_config
from kmon.ledger import open_ledger
from tests.apps.shop import EVIL
from tests.browser.conftest import Site


def card(page: Page, metric: str) -> Locator:
    return page.locator(".metric").filter(has_text=metric)


def heading(page: Page) -> Locator:
    return page.get_by_role("heading", level=1)


def open_page(page: Page, site: Site, query: str = "") -> None:
    page.goto(f"{site.url}/partner{query}")
    page.evaluate("window.never_reloaded = true")


def same_page(page: Page) -> bool:
    return bool(page.evaluate("window.never_reloaded === true"))


def test_it_shows_a_shop_with_its_charts_and_no_incident(page: Page, site: Site) -> None:
    open_page(page, site, "?shop=north")
    expect(heading(page)).to_have_text("North & Sons")
    expect(card(page, "Visits").locator(".value")).to_contain_text("90")
    expect(page.locator(".bk-Figure")).to_have_count(2)
    expect(page.locator(".pill")).to_have_text("As expected")
    expect(page).to_have_title("kmon")


def test_a_filter_changes_data_and_url_without_a_new_page_and_back_undoes_it(page: Page, site: Site) -> None:
    open_page(page, site, "?shop=north")
    expect(card(page, "Visits").locator(".value")).to_contain_text("90")
    page.locator("select").first.select_option(label="EU")
    expect(card(page, "Visits").locator(".value")).to_contain_text("30")
    expect(page).to_have_url(re.compile(r"\?shop=north&region=EU$"))
    page.go_back()
    expect(card(page, "Visits").locator(".value")).to_contain_text("90")
    assert same_page(page)


def test_the_picker_finds_a_wild_name_and_shows_it_literally(page: Page, site: Site) -> None:
    open_page(page, site)
    expect(heading(page)).to_have_text("All shops")
    picker = page.locator("input[type=text]").first
    picker.click()
    picker.press_sequentially("o'nei")
    expect(page.locator(".bk-menu")).to_have_text(EVIL)
    picker.press("Enter")
    expect(heading(page)).to_have_text(EVIL)
    expect(page.locator("a.row .value")).to_have_text(EVIL)
    assert quote(EVIL, safe="").replace("%20", "+") in page.url


def test_clicking_an_incident_shows_its_scope_and_metric_first(page: Page, site: Site) -> None:
    open_page(page, site, "?shop=north")
    page.locator("a.row", has_text="Conversion").click()
    expect(heading(page)).to_have_text(EVIL)
    expect(page.locator(".pill")).to_have_text("1 open incident")
    expect(page.locator("a.row.selected")).to_have_count(1)
    expect(page).to_have_url(re.compile("metric=conversion&incident=inc_1"))
    expect(page.locator(".samples tr")).to_have_count(11)
    expect(page.locator(".samples")).to_contain_text("The newest of this incident's events, from 11:30 UTC")
    assert same_page(page)


def test_a_label_shows_with_who_said_it_on_an_open_page(page: Page, site: Site) -> None:
    open_page(page, site)
    expect(page.locator("a.row")).to_have_count(1)
    config = load_config(site.config)
    with open_ledger(config, str(config.resolve(config.store))) as ledger:
        label = labels.say(config, ledger, "inc_1", "true", by="<i>ann</i>")
        expect(page.locator("a.row .said")).to_contain_text("Labelled real by <i>ann</i>, ")
        labels.remove(ledger, label.id)
    expect(page.locator("a.row .said")).to_have_count(0)
    assert same_page(page)


def test_an_unknown_shop_is_explained_and_appears_when_its_data_arrives(page: Page, site: Site) -> None:
    open_page(page, site, "?shop=late")
    expect(page.get_by_role("heading", level=2).first).to_have_text("No shop called “late” has been seen")
    site.add_five_minutes()
    expect(card(page, "Visits").locator(".value")).to_contain_text("30")
    expect(page.locator(".bk-Figure").first).to_be_visible()
    expect(page.locator(".blank")).to_have_count(0)
    assert same_page(page)


def test_an_open_page_shows_a_metric_that_was_added_to_the_configuration(page: Page, site: Site) -> None:
    text = site.config.read_text(encoding="utf-8")
    open_page(page, site, "?shop=north")
    expect(page.locator(".bk-Figure")).to_have_count(2)
    try:
        added = text.replace("metrics:", "metrics:\n  bought: {count: purchases}")
        site.config.write_text(added, encoding="utf-8")
        expect(card(page, "Bought").locator(".value")).to_contain_text("2")
        expect(page.locator(".bk-Figure")).to_have_count(3)
        expect(page).to_have_url(re.compile(r"\?shop=north$"))
        assert not same_page(page)
    finally:
        site.config.write_text(text, encoding="utf-8")
    expect(page.locator(".bk-Figure")).to_have_count(2)


def test_the_ticks_of_a_small_rate_are_told_apart(page: Page) -> None:
    told = page.evaluate(
        f"() => {{ const label = (tick, ticks) => {{ {PERCENT} }};"
        " const all = (...ticks) => ticks.map(tick => label(tick, ticks)).join();"
        " return [all(0, 0.00002, 0.00004), all(0, 0.5, 1), all(0.3)] }"
    )
    assert told == ["0.000 %,0.002 %,0.004 %", "0 %,50 %,100 %", "30.00 %"]
