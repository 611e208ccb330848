"""What the pipeline derives from an event's fields, once per distinct value: `agents`, `countries`, `money`."""

from __future__ import annotations

import polars as pl

from kmon.config import Config
from kmon.enrich.agents import Agents, browser_and_device
from kmon.enrich.countries import alpha2, with_countries
from kmon.enrich.money import Converter

__all__ = ["Enricher", "alpha2", "browser_and_device"]


class Enricher:
    """Applies the rules of the section `enrich` to batches of events."""

    def __init__(self, config: Config) -> None:
        self._agents = Agents(config)
        self._country = config.enrich.country
        money = config.enrich.money
        self._converter = Converter(money, config.path.parent) if money is not None else None

    def __call__(self, events: pl.DataFrame) -> pl.DataFrame:
        events = self._agents(events)
        if self._country is not None and self._country in events.columns:
            events = with_countries(events, self._country)
        return events if self._converter is None else self._converter(events)
