"""When an incident began, and what it has cost so far."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import polars as pl

from kmon.config import Config, Metric
from kmon.config.models import Loss
from kmon.detect import Cube, Mask, expected_since
from kmon.detect.quantiles import beyond
from kmon.ledger import Incident
from kmon.store import Store

Floats = npt.NDArray[np.float64]
HOUR = dt.timedelta(hours=1)
DAY = dt.timedelta(days=1)
MINUTE = dt.timedelta(minutes=1)
YOUNG, OLDER = dt.timedelta(minutes=30), 1.1
"""The age up to which every sweep tells an incident's loss, and the times its age at which an older one's is told."""
ENOUGH = 1000
"""Events that tell what one is worth on average."""
SURGE = 2.0
"""What counts as a rise from nothing."""


def beginning(
    store: Store, config: Config, incident: Incident, at: dt.datetime, earliest: dt.datetime | None = None
) -> dt.datetime:
    """The most likely time of change from the expected level to the incident's (Hinkley 1970), before `at`.

    Not before `earliest`, such as when the level changed for good: what was seen earlier tells of another level.
    Counts by their Poisson likelihood, rates by their binomial one, means by the distance to either level, quantiles by
    how many events lie beyond what was expected; to the minute, or to a fifteenth of the window that showed it.
    """
    metric = config.metrics[incident.metric]
    grain = max(MINUTE, incident.window // 15 // MINUTE * MINUTE)
    n = max(30, int(3 * incident.window / grain))
    if earliest is not None:
        n = max(1, min(n, (at - earliest) // grain))
    begin = at - n * grain
    rows = store.measures(incident.scope, begin, at, grain)
    grid = pl.DataFrame(
        {"bucket": [begin.replace(tzinfo=None) + i * grain for i in range(n)]}, schema={"bucket": pl.Datetime("us")}
    )
    dense = grid.join(rows, on="bucket", how="left").fill_null(0)
    counts = dense.select(metric.measures).to_numpy().astype(float)
    value, levels = counts[:, 0], (incident.expected, incident.observed)
    if metric.kind == "quantile":
        value = beyond(counts, metric.histogram, incident.expected)
        levels = _shares(value, counts[:, 0], incident, metric, -(-incident.window // grain))
    if metric.kind == "count":
        expected = max(incident.expected * (grain / incident.window), 1e-9)
        ratio = max(incident.observed / incident.expected, 0.02) if incident.expected else SURGE
        gain = value * np.log(ratio) - expected * (ratio - 1)
    else:
        size = dense[metric.volume].to_numpy().astype(float)
        if metric.judged_as == "rate":
            before, after = (float(np.clip(level, 1e-3, 1 - 1e-3)) for level in levels)
            gain = value * np.log(after / before) + (size - value) * np.log((1 - after) / (1 - before))
        else:
            toward = np.sign(incident.observed - incident.expected)
            gain = toward * (value - size * (incident.observed + incident.expected) / 2)
    since = np.cumsum(gain[::-1])[::-1]
    return begin + int(np.argmax(since)) * grain


def _shares(value: Floats, size: Floats, incident: Incident, metric: Metric, window: int) -> tuple[float, float]:
    """The usual share of events beyond a quantile, and that in the last `window` steps.

    Where that does not show the incident any more, half of the way to all of them or to none.
    """
    usual = 1 - (metric.q or 0.5)
    seen = value[-window:].sum() / max(size[-window:].sum(), 1.0)
    up = incident.direction == "up"
    return usual, float(seen) if (seen > usual) == up else (usual + up) / 2


def loss(
    store: Store,
    config: Config,
    incident: Incident,
    at: dt.datetime,
    masks: Sequence[Mask] = (),
    cube: Cube | None = None,
) -> dict[str, float]:
    """Observed minus expected of the measures of `incidents.impact` in its scope, from its beginning to `at`.

    The expectation is that of the sweep (`kmon.detect.expected_since`), whose `masks` it needs, and whose `cube` saves
    questions; a measure of which too little is known is left out. The measure of `incidents.money` is what the missing
    events were worth on average before: large orders come by chance.
    """
    money = config.incidents.money
    asked = (*config.incidents.impact, *((money.of,) if money else ()))
    measures = [m for m in dict.fromkeys(asked) if money is None or m != money.measure]
    if not measures:
        return {}
    start = incident.started_at
    observed = store.totals(incident.scope, start, at)
    expected = expected_since(store, config, measures, incident.scope, start, at, masks=masks, cube=cube)
    found = {measure: round(observed[measure] - expected[measure], 2) for measure in measures if measure in expected}
    if money is not None and money.of in found:
        found[money.measure] = round(found[money.of] * _worth(store, incident, money), 2)
    return found


def _worth(store: Store, incident: Incident, money: Loss) -> float:
    """The average amount of an event in the hour before an incident, or in the day where the hour had few."""
    for span in (HOUR, DAY):
        before = store.totals(incident.scope, incident.started_at - span, incident.started_at)
        if before[money.of] >= ENOUGH:
            break
    return before[money.measure] / max(before[money.of], 1)


def is_due(incident: Incident, at: dt.datetime, since: dt.datetime | None) -> bool:
    """Whether the loss is told anew by a sweep at `at`, after one at `since`.

    While it is young by every sweep, then when the incident is a tenth older: the longer it lasts, the longer its loss
    takes to tell, and the less one more minute changes.
    """

    def step(time: dt.datetime) -> int:
        return int(math.log(max((time - incident.started_at) / YOUNG, 1.0)) / math.log(OLDER))

    return since is None or at - incident.started_at <= YOUNG or step(since) < step(at)


def an_hour(incident: Incident, measure: str, at: dt.datetime) -> float | None:
    """What an incident costs of a measure an hour, positive where something is missing; None where that is unknown."""
    change = incident.impact.get(measure)
    lasted = max(at - incident.started_at, MINUTE)
    return None if change is None else -change * (HOUR / lasted)
