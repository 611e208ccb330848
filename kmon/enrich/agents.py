"""Browser and device from user-agent texts, by the ua-parser package."""

from __future__ import annotations

from functools import lru_cache

import polars as pl
from ua_parser import parse

from kmon.config import Config

_MOBILE = ("Android", "iOS", "Windows Phone", "BlackBerry OS", "KaiOS")


class Agents:
    """Fills missing `browser` and `device` from a user-agent text."""

    def __init__(self, config: Config) -> None:
        self._rule = config.enrich
        named = {*config.dimensions, *config.events.fields}
        self._targets = [t for t in (self._rule.browser, self._rule.device) if self._rule.user_agent and t in named]

    def __call__(self, events: pl.DataFrame) -> pl.DataFrame:
        source = self._rule.user_agent
        if source is None or source not in events.columns or not self._targets or events[source].is_null().all():
            return self._present(events)
        events = self._present(events)
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
    """The browser's family in lower case, and desktop, mobile, tablet or bot.

    >>> browser_and_device("Mozilla/5.0 (X11; Linux x86_64; rv:130.0) Gecko/20100101 Firefox/130.0")
    ('firefox', 'desktop')
    """
    found = parse(user_agent)
    family = found.user_agent.family if found.user_agent else "other"
    browser = family.lower().replace("mobile ", "").removesuffix(" mobile").removesuffix(" ui/wkwebview")
    system = found.os.family if found.os else ""
    device = found.device.family if found.device else ""
    if device == "Spider":
        kind = "bot"
    elif "iPad" in device or ("Android" in system and "Mobile" not in user_agent):
        kind = "tablet"
    else:
        kind = "mobile" if system in _MOBILE else "desktop"
    return browser.removesuffix(" internet").strip() or "other", kind
