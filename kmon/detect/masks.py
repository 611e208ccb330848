"""Which references known incidents spoil: those of the monitors that have much in their scope, while they last.

    inside the scope     all of its events
    around it            what the scope has of them
    across it            what both have in common: exactly, where that is a watched monitor; else about so much

Who is across a broken browser has its own fall, too small to be told, and when that is over a rise that nobody has to
hear of. While it lasts all are judged by what they have: a browser is across everybody, and may be broken for hours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import polars as pl

from kmon.detect.fleet import Fleet, Mask, naive, numbers_of, slot_starts
from kmon.detect.keys import Ints, Keys
from kmon.store import Store
from kmon.store.schema import EVENTS

Floats = npt.NDArray[np.float64]
Count = Callable[[Ints], Floats]
"""The events of the monitors in some rows."""
CONSIDERABLE = 0.2
"""The share of a monitor's events from which on an incident there spoils it as its own reference."""


def mask(fleet: Fleet, keys: Keys, count: Count, store: Store, masks: Sequence[Mask]) -> None:
    """Take the slots that known incidents touch from the references of the monitors of `keys` that they weigh on."""
    starts = slot_starts(fleet.spans)
    widths = np.array([span.width for span in fleet.spans for _ in range(span.count)], "timedelta64[us]")
    for one in masks:
        end = one.resolved_at or fleet.at
        touched = np.flatnonzero((starts < naive(end)) & (starts + widths > naive(one.started_at)))
        numbers = numbers_of(store, one.scope)
        if not len(touched) or len(numbers) < len(one.scope):
            continue

        def events(scope: Mapping[str, str] = one.scope) -> float:
            return sum(store.totals(scope, span.start, span.end)[EVENTS] for span in fleet.spans)

        weight = shares(fleet.monitors, keys, numbers, count, events, across=one.resolved_at is not None)
        fleet.usable[np.ix_(weight >= CONSIDERABLE, touched)] = False


def shares(
    monitors: pl.DataFrame,
    keys: Keys,
    scope: Mapping[str, int],
    count: Count,
    events: Callable[[], float],
    *,
    across: bool = True,
) -> Floats:
    """(monitors): about what part of the events of each lies in a scope, which has as many as `events` says.

    Without `across` it is 0 of what neither is inside the scope nor around it. Of what is across the scope, and has no
    watched monitor in common with it, each value that the scope adds counts as often as with that one of the monitor's
    own values with which it is most frequent.
    """
    found = np.zeros(monitors.height)
    for number, grouping in enumerate(keys.sets):
        same = [pl.col("set") == number, *(pl.col(d) == scope[d] for d in grouping if d in scope)]
        mine = np.flatnonzero(monitors.select(pl.all_horizontal(same).fill_null(value=False)).to_series().to_numpy())
        if len(mine) and (across or scope.keys() <= {*grouping} or {*grouping} <= scope.keys()):
            inside = scope.keys() <= {*grouping}
            found[mine] = 1.0 if inside else _common(monitors[mine], grouping, scope, keys, count, events)
    return found


def _common(
    own: pl.DataFrame,
    grouping: Sequence[str],
    scope: Mapping[str, int],
    keys: Keys,
    count: Count,
    events: Callable[[], float],
) -> Floats:
    """(own): the same of monitors of one set that are around the scope, or across it."""
    added = {d: n for d, n in scope.items() if d not in grouping}
    both = own.with_columns(pl.lit(n, pl.UInt32).alias(d) for d, n in added.items())

    def part(given: Sequence[str], more: Sequence[str]) -> Floats | None:
        """Of those with the `given` dimensions' values, which have those of `more`; None where that is not watched."""
        outer, inner = keys.places(both, given), keys.places(both, [*given, *more])
        return None if outer is None or inner is None else count(inner) / np.maximum(count(outer), 1.0)

    if (exact := part(grouping, [*added])) is not None:
        return exact
    if {*grouping} <= scope.keys() and (rows := keys.places(own, grouping)) is not None:
        return events() / np.maximum(count(rows), 1.0)
    found = np.ones(own.height)
    for dimension in added:
        told = [known for given in ((), *((d,) for d in grouping)) if (known := part(given, [dimension])) is not None]
        found *= np.max(told, axis=0) if told else 0.0
    return found
