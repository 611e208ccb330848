"""When an incident began, and what it has cost so far."""

from __future__ import annotations

import datetime as dt

import numpy as np
import polars as pl

from kmon.config import Config
from kmon.ledger import Incident
from kmon.store import Store

HOUR = dt.timedelta(hours=1)
DAY = dt.timedelta(days=1)
MINUTE = dt.timedelta(minutes=1)
SHIFT = 2.0
"""Today's level against yesterday's is believed up to this factor."""


def beginning(store: Store, config: Config, incident: Incident, at: dt.datetime) -> dt.datetime:
    """The most likely time of change from the expected level to the incident's (Hinkley 1970), before `at`.

    Counts by their Poisson likelihood, rates by their binomial one, means by the distance to either level; to the
    minute, or to a fifteenth of the window that showed it.
    """
    metric = config.metrics[incident.metric]
    grain = max(MINUTE, incident.window // 15 // MINUTE * MINUTE)
    n = max(30, int(3 * incident.window / grain))
    begin = at - n * grain
    rows = store.measures(incident.scope, begin, at, grain)
    grid = pl.DataFrame(
        {"bucket": [begin.replace(tzinfo=None) + i * grain for i in range(n)]}, schema={"bucket": pl.Datetime("us")}
    )
    dense = grid.join(rows, on="bucket", how="left").fill_null(0)
    numerator, denominator = metric.parts
    value = dense[numerator].to_numpy().astype(float)
    if metric.kind == "count":
        expected = max(incident.expected * (grain / incident.window), 1e-9)
        ratio = max(incident.observed / incident.expected, 0.02) if incident.expected else SHIFT
        gain = value * np.log(ratio) - expected * (ratio - 1)
    else:
        size = dense[str(denominator)].to_numpy().astype(float)
        before, after = (float(np.clip(level, 1e-3, 1 - 1e-3)) for level in (incident.expected, incident.observed))
        if metric.kind == "rate":
            gain = value * np.log(after / before) + (size - value) * np.log((1 - after) / (1 - before))
        else:
            toward = np.sign(incident.observed - incident.expected)
            gain = toward * (value - size * (incident.observed + incident.expected) / 2)
    since = np.cumsum(gain[::-1])[::-1]
    return begin + int(np.argmax(since)) * grain


def loss(store: Store, config: Config, incident: Incident, at: dt.datetime) -> dict[str, float]:
    """Observed minus expected of the measures of `incidents.impact` in its scope, from its beginning to `at`.

    Expected is the same time yesterday at today's level, the level being that of the hour before against yesterday's;
    without a yesterday it is the rate of the hour before. The measure of `incidents.money` is what the missing events
    were worth on average in the day before: large orders come by chance.
    """
    money = config.incidents.money
    measures = dict.fromkeys((*config.incidents.impact, *((money.measure, money.of) if money else ())))
    if not measures:
        return {}
    start, end = incident.started_at, at
    observed = store.totals(incident.scope, start, end)
    before = store.totals(incident.scope, start - HOUR, start)
    yesterday = store.totals(incident.scope, start - DAY, end - DAY)
    yesterday_before = store.totals(incident.scope, start - DAY - HOUR, start - DAY)
    found = {}
    for measure in measures:
        expected = before[measure] * ((end - start) / HOUR)
        if yesterday[measure] > 0 and yesterday_before[measure] > 0:
            level = before[measure] / yesterday_before[measure]
            expected = yesterday[measure] * min(max(level, 1 / SHIFT), SHIFT)
        found[measure] = round(observed[measure] - expected, 2)
    if money is not None:
        day = store.totals(incident.scope, start - DAY, start)
        found[money.measure] = round(found[money.of] * day[money.measure] / max(day[money.of], 1), 2)
    return found


def an_hour(incident: Incident, measure: str, at: dt.datetime) -> float | None:
    """What an incident costs of a measure an hour, positive where something is missing; None where that is unknown."""
    change = incident.impact.get(measure)
    lasted = max(at - incident.started_at, MINUTE)
    return None if change is None else -change * (HOUR / lasted)
