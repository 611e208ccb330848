"""Browser and device from user-agent texts, by the ua-parser package."""

from __future__ import annotations

import re
from functools import lru_cache

import polars as pl
from ua_parser import parse

from kmon.config import Config

_MOBILE = ("Android", "iOS", "Windows Phone", "BlackBerry OS", "KaiOS")
_TV = re.compile(
    r"\bTV\b|SmartTV|SMART-TV|AppleTV|GoogleTV|HbbTV|BRAVIA|\bAFT[A-Z0-9]+\b|CrKey|Web0S|NetCast|Roku|VIDAA"
)
_CONSOLE = re.compile("PlayStation|Xbox|Nintendo")
_ADDITIONS = {"mobile", "ios", "ui/wkwebview", "internet", "amazon"}
"""Words that ua-parser adds to a family: the same browser elsewhere, or its maker."""
_NAMES = {"wechat browser": "wechat"}
"""Where people know a browser by another name."""


class Agents:
    """Fills missing `browser` and `device` from a user-agent text."""

    def __init__(self, config: Config) -> None:
        self._rule = config.enrich
        named = {*config.dimensions, *config.events.fields}
        self._targets = [t for t in (self._rule.browser, self._rule.device) if self._rule.user_agent and t in named]

    def __call__(self, events: pl.DataFrame) -> pl.DataFrame:
        events, source = self._present(events), self._rule.user_agent
        if source is None or source not in events.columns or not self._targets or events[source].is_null().all():
            return events
        agents = events[source].cast(pl.String)
        distinct = agents.unique().drop_nulls().to_list()
        for index, target in enumerate((self._rule.browser, self._rule.device)):
            if target in self._targets:
                table = {agent: browser_and_device(agent)[index] for agent in distinct}
                derived = agents.replace_strict(table, default=None, return_dtype=pl.String)
                events = events.with_columns(pl.col(target).cast(pl.String).fill_null(derived))
        return events

    def _present(self, events: pl.DataFrame) -> pl.DataFrame:
        missing = [t for t in self._targets if t not in events.columns]
        return events.with_columns(pl.lit(None, pl.String).alias(t) for t in missing) if missing else events


@lru_cache(maxsize=50_000)
def browser_and_device(user_agent: str) -> tuple[str, str]:
    """The browser's family in lower case, and desktop, mobile, tablet, tv, console, bot or other.

    An app that shows pages inside itself is a browser of its own. A program without a screen is a bot, whoever runs it.
    A text that says nothing is other on other. An iPad that asks for desktop pages says that it is a Mac.

    >>> browser_and_device("Mozilla/5.0 (X11; Linux x86_64; rv:130.0) Gecko/20100101 Firefox/130.0")
    ('firefox', 'desktop')
    """
    found = parse(user_agent)
    family = found.user_agent.family.lower() if found.user_agent else "other"
    browser = " ".join(word for word in family.split() if word not in _ADDITIONS) or "other"
    system = found.os.family if found.os else ""
    device = found.device.family if found.device else ""
    return _NAMES.get(browser, browser), _kind(user_agent, browser, system, device)


def _kind(user_agent: str, browser: str, system: str, device: str) -> str:
    """What stands before the person, by what ua-parser found: the first that is true."""
    page = user_agent.startswith("Mozilla/")
    # a phone's browser on Android says that it is mobile; an app that is no browser says nothing
    tablet = "iPad" in device or (system == "Android" and page and "Mobile" not in user_agent)
    kinds = {
        "bot": device == "Spider" or browser.startswith("headless"),
        "tv": _TV.search(user_agent) is not None,
        "console": _CONSOLE.search(user_agent) is not None,
        "tablet": tablet,
        "mobile": system in _MOBILE or "phone" in device.lower() or browser == "okhttp",
        "desktop": bool(system) or page,
        "other": browser == "other",
    }
    return next((kind for kind, true in kinds.items() if true), "bot")
