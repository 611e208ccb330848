"""The alerts of the last week day by day, with what people said of them: to be compared with the budget.

Only a label can tell a false alert. So the true rate of false ones lies between those that are labelled so and those
that are not labelled as right.
"""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from kmon.config import PIPELINE
from kmon.ledger import Incident, Label, Ledger

DAYS = 7
DAY = dt.timedelta(days=1)
_RIGHT = {"true", "new-normal"}
"""The labels of an incident that was one."""


@dataclass(frozen=True)
class Day:
    """The 24 hours before `until`, of which `watched` is the part since the first sweep."""

    until: dt.datetime
    watched: float
    alerts: int = 0
    """Incidents of traffic that are more than information, by when they fired."""
    labelled_false: int = 0
    labelled_right: int = 0
    """As real, or as the new normal."""
    unlabelled: int = 0
    pipeline_incidents: int = 0
    """Of the data itself, which cost nothing of the budget."""

    def public(self) -> dict[str, Any]:
        """A row of the JSON and of the table."""
        return vars(self) | {"watched": round(self.watched, 3)}


def last_week(ledger: Ledger) -> list[Day]:
    """The days before the last sweep on which there were sweeps, the oldest first; none where there was no sweep."""
    last, first = ledger.last_sweep(), ledger.first_sweep()
    if last is None or first is None:
        return []
    end = last.at + dt.timedelta(microseconds=1)  # what it found fired at its own time
    words = {label.incident: label for label in ledger.labels()}
    days = []
    for ago in range(DAYS - 1, -1, -1):
        begin, until = end - (ago + 1) * DAY, end - ago * DAY
        if first.at < until:
            fired = ledger.incidents(since=begin, until=until)
            days.append(_day(last.at - ago * DAY, (until - max(first.at, begin)) / DAY, fired, words))
    return days


def achieved(days: Iterable[Day], budget: float) -> dict[str, float | int | None]:
    """What came of `false_alerts_per_day`, as rates a day over the time that was watched; None where there was none."""
    sums: Counter[str] = Counter()
    for day in days:
        sums.update({key: value for key, value in vars(day).items() if key != "until"})
    names = ("alerts", "labelled_false", "labelled_right", "unlabelled")
    # sweeps of less than a day say nothing of a day's rate: what came then counts as a day's
    rates = {name: round(sums[name] / max(sums["watched"], 1), 3) if sums["watched"] else None for name in names}
    return {
        "false_alerts_per_day_budget": budget,
        "alerts_per_day": rates["alerts"],
        "alerts_per_day_labelled_false": rates["labelled_false"],
        "alerts_per_day_labelled_right": rates["labelled_right"],
        "alerts_per_day_unlabelled": rates["unlabelled"],
        "pipeline_incidents_last_week": sums["pipeline_incidents"],
    }


def _day(until: dt.datetime, watched: float, fired: Sequence[Incident], words: dict[str | None, Label]) -> Day:
    alerts = [i for i in fired if i.metric != PIPELINE and i.severity != "info"]
    said = [words[i.id].word for i in alerts if i.id in words]
    return Day(
        until,
        watched,
        alerts=len(alerts),
        labelled_false=said.count("false"),
        labelled_right=sum(word in _RIGHT for word in said),
        unlabelled=len(alerts) - len(said),
        pipeline_incidents=sum(i.metric == PIPELINE for i in fired),
    )
