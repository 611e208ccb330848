"""Whom an incident hit most, of the values that its scope leaves open: the partners of a broken browser, by loss.

a partner's share of what came in clean hours before  ►  of what was to be expected of all of them since it began
  ►  less what came  ►  those who lost more than by chance, the largest loss first

That is one question to the store, however many partners there are.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import polars as pl
from scipy import stats

from kmon.config import Config, Metric
from kmon.config.models import Loss
from kmon.detect import Mask, expected_since
from kmon.errors import UsageError
from kmon.impact import DAY, HOUR
from kmon.leaves import related
from kmon.ledger import Incident, Ledger
from kmon.references import MONTH, References
from kmon.store import Store
from kmon.store.schema import EVENTS

Stretch = tuple[dt.datetime, dt.datetime]
MOST = 20
"""How many are named."""
WRONG = 0.05
"""Of those who are said to be hit, at most this share was not, on average (Benjamini and Hochberg 1995)."""
FEW = 10.0
"""What an event of one partner is worth is weighed against that of all by so many events."""
DENOMINATOR = "denominator_"
SURELY = 3.0
"""Standard deviations by which something is missing for sure."""


@dataclass(frozen=True)
class Hit:
    """What an incident did to one value of a dimension."""

    value: str
    observed: float | None
    """Of the incident's metric; None where nothing was."""
    expected: float | None
    impact: dict[str, float]
    """Observed minus expected, by measure, as in the incident's own."""


@dataclass(frozen=True)
class Hits:
    """Whom an incident hit."""

    dimension: str
    metric: str
    scope: dict[str, str]
    """The incident's when this was told, as is its metric."""
    start: dt.datetime
    end: dt.datetime
    measure: str
    """In which the loss is ranked."""
    count: int
    """How many lost more than by chance."""
    worst: tuple[Hit, ...]
    """The largest loss first."""

    def public(self) -> dict[str, Any]:
        """The JSON object of ``kmon hit --format json``."""
        row = asdict(self)
        return {"from": row.pop("start"), "to": row.pop("end"), "hit": row.pop("count"), **row}


def open_dimension(config: Config) -> str:
    """Whose values people look after: partners, or those of the first dimension."""
    return "partner" if "partner" in config.dimensions else config.dimensions[0]


def hit_of(store: Store, ledger: Ledger, config: Config, id: str, *, by: str, most: int = MOST) -> Hits:
    """Whom the incident of that name hit so far, or until it was last seen; UsageError where that cannot be told."""
    incident = ledger.incident(id)
    if incident is None:
        message = f"there is no incident {id!r}: 'kmon incidents' lists them"
        raise UsageError(message)
    if by in incident.scope:
        message = f"{id} is of one {by}, {incident.scope[by]!r}: name another dimension with --by"
        raise UsageError(message)
    told = References.of(ledger, config, incident.started_at - MONTH, incident.seen_at)
    found = hit(store, told.config, incident, incident.seen_at, told.masks, by=by, most=most)
    if found is None:
        message = f"whom {id} hit cannot be told: it is no loss, or too little is known of the time before it"
        raise UsageError(message)
    return found


def hit(
    store: Store,
    config: Config,
    incident: Incident,
    end: dt.datetime,
    masks: Sequence[Mask] = (),
    *,
    by: str | None = None,
    most: int = MOST,
) -> Hits | None:
    """Whom `incident` hit from its beginning to `end`, of the values of the dimension `by`.

    `masks` are known incidents, whose minutes are no reference. None where its scope names a value of that dimension,
    where it is good news, and where too little is known of the time before.
    """
    dimension, metric, money = by or open_dimension(config), config.metrics.get(incident.metric), config.incidents.money
    if metric is None or metric.good == incident.direction or dimension in incident.scope:
        return None
    if not {dimension, *incident.scope} <= set(store.schema.dimensions):
        return None
    name, counted = _counted(metric, incident)
    sums = {name: counted, EVENTS: (EVENTS,)}
    sums |= {DENOMINATOR: (metric.parts[1],)} if metric.parts[1] is not None else {}
    sums |= {money.of: (money.of,), money.measure: (money.measure,)} if money is not None else {}
    start = max(incident.started_at, end - config.incidents.lasting)
    asked = list(dict.fromkeys([*counted, *((money.of,) if money else ())]))
    before = _references(store, incident, dimension, start, end, masks, asked)
    expected = expected_since(store, config, asked, incident.scope, start, end, masks=masks)
    if not before or not expected.keys() >= {*counted}:
        return None
    rows = store.against(dimension, sums, incident.scope, (start, end), before)
    totals = {name: sum(expected[m] for m in counted)}
    totals |= {money.of: expected[money.of]} if money is not None and money.of in expected else {}
    totals = {of: total for of, total in totals.items() if _sum(rows, f"{of}_before") > 0}
    if name not in totals:
        return None
    table = _shared(rows, totals)
    beyond = _beyond_chance(table, name, totals[name], incident.direction) & (table["number"] > 0)
    impact, measure = [name], name
    if money is not None and money.of in totals:
        lost = pl.col(f"{money.of}_impact") * _worth(table, money)
        table = table.with_columns(lost.alias(f"{money.measure}_impact"))
        impact = list(dict.fromkeys([name, money.of, money.measure]))
        missing = totals[money.of] - _sum(table, money.of)
        if missing > SURELY * totals[money.of] ** 0.5:  # otherwise what it costs each of them is chance
            measure = money.measure
    up = measure == name and incident.direction == "up"
    found = _valued(table, metric, name).filter(beyond).sort(f"{measure}_impact", "number", descending=[up, False])
    worst = found.head(most)
    values = store.names(dimension, worst["number"].to_list())
    told = tuple(
        Hit(values[r["number"]], r["observed"], r["expected"], {m: round(r[f"{m}_impact"], 2) for m in impact})
        for r in worst.iter_rows(named=True)
    )
    return Hits(dimension, incident.metric, dict(incident.scope), start, end, measure, found.height, told)


def _counted(metric: Metric, incident: Incident) -> tuple[str, tuple[str, ...]]:
    """What is missing or too much, and the measures that it is the sum of.

    Of a quantile the events beyond what it is expected to be, to the nearest edge of its histogram.
    """
    if metric.kind != "quantile":
        return metric.parts[0], (metric.parts[0],)
    away = np.abs(np.log(metric.histogram.edges) - np.log(max(incident.expected, metric.histogram.low)))
    return f"events beyond usual {incident.metric}", metric.beyond(int(away[:-1].argmin()))


def _references(
    store: Store,
    incident: Incident,
    dimension: str,
    start: dt.datetime,
    end: dt.datetime,
    masks: Sequence[Mask],
    measures: Sequence[str],
) -> list[Stretch]:
    """The clean time that tells the shares: the hour just before, and the incident's own time of the day before.

    What hit the whole scope, or a part of it across the dimension, is left out; one partner's own incident is not: with
    100,000 partners nothing would be left.
    """
    recent = start - HOUR
    spans = [(recent, start), (start - DAY, min(end - DAY, recent))]
    known = store.schema.known_from(*measures, dimension, *incident.scope)
    spoilt = [(m.started_at, m.resolved_at or end) for m in masks if _touches(m, incident, dimension)]
    spoilt += [] if known is None else [(dt.datetime.min.replace(tzinfo=dt.UTC), known)]
    for low, high in spoilt:
        pieces = [piece for a, b in spans for piece in ((a, min(b, low)), (max(a, high), b))]
        spans = [(a, b) for a, b in pieces if a < b]
    return spans


def _touches(mask: Mask, incident: Incident, dimension: str) -> bool:
    return dimension not in mask.scope and related(mask.scope, incident.scope)


def _shared(rows: pl.DataFrame, totals: dict[str, float]) -> pl.DataFrame:
    """With ``<name>_expected``, each one's share before of each total, and ``<name>_impact``."""
    shares = [
        (pl.col(f"{name}_before") * (total / _sum(rows, f"{name}_before"))).alias(f"{name}_expected")
        for name, total in totals.items()
    ]
    impacts = [(pl.col(name) - pl.col(f"{name}_expected")).alias(f"{name}_impact") for name in totals]
    return rows.with_columns(shares).with_columns(impacts)


def _valued(table: pl.DataFrame, metric: Metric, name: str) -> pl.DataFrame:
    """With what the metric was and was expected to be: of a rate or mean what it was before."""
    values = [pl.col(name), pl.col(f"{name}_expected")]
    if metric.kind in ("rate", "mean"):
        values = [pl.col(f"{name}{when}") / pl.col(f"{DENOMINATOR}{when}") for when in ("", "_before")]
    return table.with_columns(observed=values[0].fill_nan(None), expected=values[1].fill_nan(None))


def _worth(table: pl.DataFrame, money: Loss) -> pl.Expr:
    """What one event of each was worth before, that of few events weighed against everybody's."""
    amount, of = f"{money.measure}_before", f"{money.of}_before"
    average = _sum(table, amount) / max(_sum(table, of), 1.0)
    return (pl.col(amount) + FEW * average) / (pl.col(of) + FEW)


def _beyond_chance(table: pl.DataFrame, name: str, total: float, direction: str) -> pl.Series:
    """Who has fewer (or more) than by chance, given how many there were before: two Poisson counts are a binomial one.

    A sum such as of money counts as so many events as it had.
    """
    unit = max(1.0, _sum(table, f"{name}_before") / max(_sum(table, f"{EVENTS}_before"), 1.0))
    now, before = (np.rint(table[c].to_numpy().clip(0) / unit) for c in (name, f"{name}_before"))
    odds = total / _sum(table, f"{name}_before")
    chance = stats.binom(now + before, odds / (1 + odds))
    p = chance.cdf(now) if direction == "down" else chance.sf(now - 1)
    return pl.Series(stats.false_discovery_control(np.clip(p, 0.0, 1.0)) <= WRONG)


def _sum(table: pl.DataFrame, column: str) -> float:
    return float(table[column].sum())
