"""Amounts in one currency, by a table of rates.

An event in a currency that the table does not have counts, its amount does not: a sum of crowns and euros is neither.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl
import structlog

from kmon.config import Money
from kmon.errors import ConfigError
from kmon.versions import Version, version_of

log = structlog.get_logger("kmon")


class Converter:
    """Converts the amounts of batches of events; the table is read again when its file changes."""

    def __init__(self, money: Money, folder: Path) -> None:
        """ConfigError where the table cannot be read."""
        self._money = money
        self._path = (folder / money.rates).expanduser() if isinstance(money.rates, str) else None
        self._version: Version | None = None
        self._told: set[str | None] = set()
        self._rates = dict(money.rates) if not isinstance(money.rates, str) else {}
        if self._path is not None:
            self._version, self._rates = version_of(self._path), read_rates(self._path)

    def __call__(self, events: pl.DataFrame) -> pl.DataFrame:
        money = self._money
        if money.amount not in events.columns or events[money.amount].null_count() == events.height:
            return events
        self._reload_if_changed()
        rates = {**self._rates, money.to: 1.0}
        amounts = events.filter(pl.col(money.amount).is_not_null())
        for currency in amounts[money.currency].unique().cast(pl.String).to_list():
            if currency not in rates and currency not in self._told:
                self._told.add(currency)
                log.warning("amounts do not count: the currency has no rate", currency=currency, rates=str(self._path))
        rate = pl.col(money.currency).cast(pl.String).replace_strict(rates, default=None, return_dtype=pl.Float64)
        return events.with_columns((pl.col(money.amount) * rate).alias(money.amount))

    def _reload_if_changed(self) -> None:
        """A table that cannot be read leaves the one before in use, which is told once for each change."""
        if self._path is None or (version := version_of(self._path)) == self._version:
            return
        self._version = version
        try:
            self._rates = read_rates(self._path)
        except ConfigError as error:
            log.error("the rates before stay in use", reason=str(error))
            return
        self._told.clear()


def read_rates(path: Path) -> dict[str, float]:
    """A csv with the columns currency and rate, the value of one unit in the common currency; ConfigError else."""
    try:
        table = pl.read_csv(path.read_bytes(), schema_overrides={"currency": pl.String, "rate": pl.Float64})
        rates = dict(table.select("currency", "rate").rows())
    except OSError as error:
        message = f"enrich.money.rates: {path} cannot be read: {error.strerror}"
        raise ConfigError(message) from error
    except pl.exceptions.PolarsError as error:
        message = f"enrich.money.rates: {path} is no csv with the columns currency and rate"
        raise ConfigError(message) from error
    wrong = [currency for currency, rate in rates.items() if currency is None or rate is None or not rate > 0]
    if wrong:
        message = f"enrich.money.rates: {path} has no positive rate for {wrong[0]}"
        raise ConfigError(message)
    return rates
