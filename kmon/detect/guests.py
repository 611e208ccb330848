"""Which monitor is which, and guests: monitors that no grouping set has, judged for one look in the fleet's company."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import polars as pl

from kmon.config import Config
from kmon.detect.calendar import Comparable
from kmon.detect.cube import Cube, observe
from kmon.detect.fleet import Fleet, Mask, numbers_of
from kmon.detect.sweeps import Scored
from kmon.store import Store
from kmon.store.schema import EVENTS


def scope_of(store: Store, fleet: Fleet, row: int) -> dict[str, str]:
    """The dimension values of a fleet's row."""
    numbers = {d: n for d, n in fleet.monitors.row(row, named=True).items() if d != "set" and n is not None}
    return {d: store.names(d, [n])[n] for d, n in numbers.items()}


def row_of(fleet: Fleet, numbers: dict[str, int]) -> int | None:
    """The row of the monitor with these dimension values; None where it is none."""
    if not numbers.keys() <= set(fleet.monitors.columns):
        return None
    dimensions = [c for c in fleet.monitors.columns if c != "set"]
    same = [pl.col(d).eq_missing(pl.lit(numbers.get(d), pl.UInt32)) for d in dimensions]
    rows = fleet.monitors.with_row_index("row").filter(pl.all_horizontal(same))["row"]
    return int(rows[0]) if len(rows) else None


def with_guest(
    fleet: Fleet,
    store: Store,
    config: Config,
    scope: dict[str, str],
    *,
    masks: Sequence[Mask] = (),
    without: Sequence[dict[str, str]] = (),
    cube: Cube | None = None,
) -> Fleet | None:
    """The fleet and, as its last row, the monitor of `scope`, which no grouping set has; None where it has no events.

    Only what lies outside all of the scopes `without` is counted for it; `cube` is what the sweep has read.
    """
    numbers = numbers_of(store, scope)
    if len(numbers) < len(scope):
        return None
    alone = config.model_copy(update={"watch": [list(scope)]})
    one = pl.DataFrame({"set": [0], **numbers}, schema={"set": pl.Int32, **dict.fromkeys(numbers, pl.UInt32)})
    own = observe(store, alone, fleet.at, masks=masks, scope=scope, without=without, among=one, cube=cube)
    row = row_of(own, numbers)
    if row is None or not own.values[EVENTS][row].any():
        return None
    monitors = pl.concat([fleet.monitors, own.monitors[row]], how="diagonal")
    values = {measure: np.vstack([mine, own.values[measure][row]]) for measure, mine in fleet.values.items()}
    usable = np.vstack([fleet.usable, own.usable[row] & fleet.recorded])
    comparable = _together(fleet.comparable, fleet.monitors.height, own.comparable, row)
    return replace(fleet, monitors=monitors, values=values, usable=usable, comparable=comparable)


def guest_scored(scored: Scored, fleet: Fleet, metric: str, config: Config) -> Scored:
    """What the detector says of the last monitor of `fleet` alone; without scores where it was not judged."""
    row = fleet.monitors.height - 1
    scores = scored.again(fleet, metric, [row], config).filter(pl.col("judged"))
    named = scores.with_columns(metric=pl.lit(metric), row=pl.lit(row, pl.Int64))
    return replace(scored, fleet=fleet, scores=named)


def _together(fleet: Comparable | None, monitors: int, guest: Comparable | None, row: int) -> Comparable | None:
    if fleet is None and guest is None:
        return None
    mine = fleet or Comparable(np.zeros(monitors, dtype=np.int64), ({},), np.zeros(monitors, dtype=bool))
    kind, reasons, unlike = (0, ({},), False) if guest is None else (guest.kind[row], guest.reasons, guest.unlike[row])
    return Comparable(
        np.append(mine.kind, len(mine.reasons) + kind), (*mine.reasons, *reasons), np.append(mine.unlike, unlike)
    )
