"""Which rows of which tiers answer a question: scans with literal conditions, which the zone maps prune by.

A tier answers for buckets of some width only where its own fit into them: an hour is never taken for a minute. Rows
move down the tiers a block after the other; what is left in a tier of a block that is moving is not all there was, and
no answer.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

from kmon.store import sql
from kmon.store.schema import TIERS

EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
MINUTE = dt.timedelta(minutes=1)


def scan_sql(
    columns: str, start: dt.datetime, end: dt.datetime, condition: str, width: dt.timedelta | None = None
) -> str:
    """The rows in [start, end) that match, from each tier that answers for buckets of `width` that begin at `start`.

    Without `width` the whole range is one bucket, and a row of any tier counts by when its bucket begins.
    """
    tiers = serving(width, start)
    within = f"bucket >= {sql.time(start)} AND bucket < {sql.time(end)}"
    if width is not None and len(tiers) < len(TIERS):
        within += f" AND bucket >= {floor_sql(tiers, width, start)}"
    return " UNION ALL ".join(f"SELECT {columns} FROM {tier} WHERE {within} AND {condition}" for tier in tiers)


def serving(width: dt.timedelta | None, start: dt.datetime) -> list[str]:
    """The tiers whose buckets fit into buckets of `width` that begin at `start`.

    Buckets up to a minute may begin anywhere in them: a window that begins between two minutes takes the minutes that
    begin in it.
    """
    if width is None:
        return list(TIERS)
    return [
        tier for tier, own in TIERS.items() if not width % own and (own <= MINUTE or not (start - EPOCH) % own)
    ] or [next(iter(TIERS))]


def floor_sql(tiers: Sequence[str], width: dt.timedelta, start: dt.datetime) -> str:
    """The first of the buckets of which nothing has moved out of `tiers`."""
    step, origin = interval(width), sql.time(start)
    first = f"time_bucket({step}, begins + {step} - INTERVAL 1 MICROSECOND, {origin})"
    return f"(SELECT coalesce(max({first}), '-infinity'::TIMESTAMP) FROM tiers WHERE tier = {sql.text(tiers[-1])})"


def interval(width: dt.timedelta) -> str:
    """A width as SQL."""
    return f"to_seconds({width.total_seconds():.0f})"
