"""The simulator's world in normal times: partners, countries, mixes, the shape of day and week, the reference."""

from __future__ import annotations

import datetime as dt
import functools
import math
from dataclasses import dataclass, field
from zoneinfo import ZoneInfo

import numpy as np
import polars as pl
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

COUNTRIES = ("DE", "SE", "GB", "US", "NO", "FI", "NL", "AT", "PL", "ES")
COUNTRY_WEIGHTS = np.array([0.24, 0.17, 0.14, 0.13, 0.08, 0.06, 0.06, 0.05, 0.04, 0.03])
ZONES = ("Europe/Berlin", "Europe/Stockholm", "Europe/London", "America/New_York", "Europe/Oslo", "Europe/Helsinki",
         "Europe/Amsterdam", "Europe/Vienna", "Europe/Warsaw", "Europe/Madrid")  # fmt: skip
METHODS = ("invoice", "card", "installments", "direct_debit", "wallet")
APPROVAL = np.array([0.92, 0.93, 0.90, 0.94, 0.95])
"""Share of authorizations with status ok (an error counts as a failure), by payment method."""
METHOD_MIX = np.array([
    [0.45, 0.10, 0.15, 0.20, 0.10], [0.50, 0.25, 0.15, 0.03, 0.07], [0.10, 0.40, 0.35, 0.05, 0.10],
    [0.05, 0.50, 0.35, 0.02, 0.08], [0.45, 0.30, 0.15, 0.02, 0.08], [0.45, 0.25, 0.15, 0.10, 0.05],
    [0.35, 0.10, 0.10, 0.05, 0.40], [0.50, 0.12, 0.13, 0.17, 0.08], [0.20, 0.25, 0.15, 0.05, 0.35],
    [0.10, 0.50, 0.25, 0.05, 0.10],
])  # fmt: skip
"""Share of each payment method (columns) by country (rows)."""
AGENTS = (("chrome", "mobile"), ("chrome", "desktop"), ("chrome", "tablet"), ("safari", "mobile"),
          ("safari", "desktop"), ("safari", "tablet"), ("firefox", "desktop"), ("firefox", "mobile"),
          ("edge", "desktop"), ("samsung", "mobile"))  # fmt: skip
"""Browser and device."""
AGENT_MIX = np.array([0.27, 0.22, 0.01, 0.26, 0.05, 0.03, 0.04, 0.01, 0.06, 0.05])
CHANNELS = ("direct", "search", "social", "email", "affiliate")
CHANNEL_MIX = np.array([0.35, 0.30, 0.15, 0.10, 0.10])
PARTITIONS = 4

ORDERED = 0.93
"""Share of approved authorizations that become an order."""
FAILING = 0.01
"""Share of status error, on every operation."""
_HOURLY = np.array([0.42, 0.28, 0.21, 0.18, 0.18, 0.23, 0.38, 0.60, 0.83, 1.02, 1.15, 1.22,
                    1.27, 1.23, 1.18, 1.18, 1.24, 1.34, 1.50, 1.70, 1.82, 1.70, 1.28, 0.78])  # fmt: skip
_HOURLY /= _HOURLY.mean()
_WEEKLY = np.array([1.0, 0.98, 0.99, 1.0, 1.05, 0.92, 0.96])
VOLATILITY = 0.12
"""Coefficient of variation of a partner's intensity, beyond its shape."""


@dataclass(frozen=True, eq=False)
class Habits:
    """What is usual among those who shop, and how large partners are: what another world may have otherwise."""

    hourly: Floats = field(default_factory=lambda: _HOURLY)
    """(24,): traffic by hour of the local day, 1 on average."""
    weekly: Floats = field(default_factory=lambda: _WEEKLY)
    """(7,): traffic from Monday to Sunday, reached at local noon."""
    countries: Floats = field(default_factory=lambda: COUNTRY_WEIGHTS)
    methods: Floats = field(default_factory=lambda: METHOD_MIX)
    """(countries, methods)"""
    agents: Floats = field(default_factory=lambda: AGENT_MIX)
    channels: Floats = field(default_factory=lambda: CHANNEL_MIX)
    zipf: float = 1.0
    """How steeply the sizes of partners fall: the exponent of their rank."""
    volatility: float = VOLATILITY


USUAL = Habits()


@dataclass(frozen=True)
class Market:
    """Partners and their normal traffic. A cell is a (partner, country) pair; partner k is named ``p{k+1}``."""

    cell_partner: Ints
    cell_country: Ints
    cell_rate: Floats
    """Sessions a second of each cell on an average day; cells are ordered by partner, its home country first."""
    authorizes: Floats
    """Share of sessions with an authorization, by partner."""
    basket: Floats
    """Logarithm of the median order amount in EUR, by partner."""
    partition: NDArray[np.int8]
    """By partner: a hash of its number."""
    events_per_session: float
    habits: Habits

    @property
    def partners(self) -> int:
        return len(self.authorizes)

    @property
    def home(self) -> Ints:
        """Each partner's home country, as an index into COUNTRIES."""
        first = np.searchsorted(self.cell_partner, np.arange(self.partners))
        return np.asarray(self.cell_country[first], dtype=np.int64)

    def cell_volume(self, at: dt.datetime | None = None) -> Floats:
        """Expected events a minute of each cell at a time, or on average."""
        volume = self.cell_rate * self.events_per_session * 60
        return volume if at is None else volume * self.shape(at)[self.cell_country]

    def volume(self, at: dt.datetime | None = None) -> Floats:
        """Expected events a minute of each partner at a time, or on average."""
        return np.bincount(self.cell_partner, self.cell_volume(at), self.partners).astype(np.float64)

    def shape(self, at: dt.datetime) -> Floats:
        """Traffic of each country at a time, relative to its average: by the local hour and day of the week."""
        local = [at.astimezone(ZoneInfo(zone)) for zone in ZONES]
        hour = np.array([t.hour + t.minute / 60 + t.second / 3600 for t in local])
        day = np.array([t.weekday() for t in local]) + hour / 24 - 0.5
        hourly: Floats = np.interp(hour - 0.5, np.arange(24), self.habits.hourly, period=24)
        weekly: Floats = np.interp(day, np.arange(7), self.habits.weekly, period=7)
        return hourly * weekly


@functools.lru_cache(maxsize=2)
def market(partners: int, rate: float, seed: int, habits: Habits = USUAL) -> Market:
    """The market of `partners` whose sizes follow Zipf's law, with `rate` events a second in all on an average day."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, 0]))
    rank = np.arange(partners)
    size = 1 / (rank + 1.0) ** habits.zipf
    preference = np.argsort(-(np.log(habits.countries) + rng.gumbel(size=(partners, len(COUNTRIES)))), axis=1)
    abroad = 1 + (rank < 10_000) + (rank < 1000) + (rank < 100)
    home_share = rng.uniform(0.7, 0.9, partners)
    spread = rng.uniform(0.5, 1.5, (partners, len(COUNTRIES)))
    spread[np.arange(1, len(COUNTRIES) + 1) > abroad[:, None] + 1] = 0
    spread[:, 0] = 0
    share = spread / spread.sum(axis=1, keepdims=True) * (1 - home_share)[:, None]
    share[:, 0] = home_share
    partner, nth = np.nonzero(share)
    country = preference[partner, nth]
    authorizes = rng.uniform(0.45, 0.6, partners)
    weight = (size / size.sum())[partner] * share[partner, nth]
    approved = (habits.methods @ APPROVAL - FAILING)[country]
    per_session = 1 + (1 - FAILING) * authorizes[partner] * (1 + approved * ORDERED)
    events_per_session = float(weight @ per_session)
    return Market(
        cell_partner=partner,
        cell_country=country,
        cell_rate=weight * rate / events_per_session,
        authorizes=authorizes,
        basket=rng.normal(math.log(45), 0.6, partners),
        partition=(((rank + 1) * 2654435761 % 2**32) >> 30).astype(np.int8),
        events_per_session=events_per_session,
        habits=habits,
    )


_TEAMS = {
    "SE": "nordics", "NO": "nordics", "FI": "nordics", "DE": "dach", "AT": "dach", "GB": "uk", "US": "americas",
    "NL": "continental", "PL": "continental", "ES": "continental",
}  # fmt: skip
_FIRST = ("Nord", "Alpen", "Blue", "Royal", "Urban", "Fjord", "Silver", "Happy", "Prime", "Little", "Bright")
_SECOND = ("Sport", "Mode", "Living", "Books", "Electronics", "Garden", "Shoes", "Toys", "Travel", "Beauty", "Bikes")


def reference(partners: int, seed: int) -> pl.DataFrame:
    """The partner reference: partner, name, account_team, slack_channel, tier (by size) and timezone (of its home)."""
    home = market(partners, 1.0, seed).home
    rank = np.arange(partners)
    rng = np.random.default_rng(np.random.SeedSequence([seed, 5]))
    names = [np.array(words)[rng.integers(0, len(words), partners)] for words in (_FIRST, _SECOND)]
    partner = pl.Series([f"p{k + 1}" for k in rank], dtype=pl.String)
    tier = (rank >= max(1, partners // 50)).astype(int) + (rank >= max(2, partners // 6))
    return pl.DataFrame({
        "partner": partner,
        "name": pl.Series(names[0]) + " " + pl.Series(names[1]) + " " + pl.Series(rank + 1).cast(pl.String),
        "account_team": np.array([_TEAMS[country] for country in COUNTRIES])[home],
        "slack_channel": "#" + partner,
        "tier": np.array(["gold", "silver", "bronze"])[tier],
        "timezone": np.array(ZONES)[home],
    })  # fmt: skip
