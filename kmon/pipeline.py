"""Symptoms of the pipeline itself: where data is missing that partners did send.

    a partition that went silent while others go on  ·  the source quiet altogether  ·  a jump in rejected records
    ·  data that falls behind the clock

Each is judged by what the stream usually brings (`kmon.store.intake`). What they mean for verdicts and people is for
`kmon.gate` to decide. Reads the store, writes nothing.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from kmon.config import Config
from kmon.ledger import Incident, Ledger
from kmon.store import Store
from kmon.store.intake import READING
from kmon.store.schema import EVENTS

Kind = Literal["partition", "quiet", "rejects", "lag"]
ORDER: tuple[Kind, ...] = ("quiet", "lag", "rejects", "partition")
"""The widest first."""
MINUTE, HOUR, DAY = dt.timedelta(minutes=1), dt.timedelta(hours=1), dt.timedelta(days=1)
JUMP = 10 * MINUTE
"""The stretch in which a share of rejects is judged."""
PAUSE = 1.5
"""A silence is unusual that exceeds the usual ones by this factor."""
USUAL = 3
"""A pause of the source is usual that came at least so often in the last day."""
DENSE = 0.8
"""A silence tells something where there usually are events in so many of the minutes: small shops sell in bursts."""
WEEKLY = 6 * HOUR
"""A longer silence of the source is judged only where the week before is known: the shop may be closed."""
LIVE = 1 * HOUR
"""Events that are older than this when they come are a recording or a backlog, whose end is no trouble."""


@dataclass(frozen=True)
class Symptom:
    """One thing that is wrong with the data."""

    kind: Kind
    since: dt.datetime
    """The end of the last minute that was as usual; of a lag, up to when the data is complete."""
    until: dt.datetime | None = None
    """When it ended, where it did: a gap between events is seen only afterwards."""
    partitions: tuple[str, ...] = ()
    """Those that are silent, or lag; empty: all, or nobody knows."""
    observed: float = 0.0
    """Events that came, the share of records that is rejected, or minutes behind the clock."""
    expected: float = 0.0
    """What is usual of the same."""
    missing: float = 0.0
    """About how many events are not there."""
    detail: str = ""
    """What else helps to find the fault, in words."""


def symptoms(
    config: Config,
    store: Store,
    ledger: Ledger,
    at: dt.datetime,
    since: dt.datetime,
    *,
    known: Sequence[Incident] = (),
    now: dt.datetime | None = None,
) -> list[Symptom]:
    """What is wrong with the data up to `at`, the widest first; gaps are those that ended after `since`.

    `known` are the pipeline incidents of the last days. With the wall clock `now` the source is live: what came after
    `at`, and how long nothing has come, count too.
    """
    newest = store.newest()
    if newest is None:
        return []
    current = next((i for i in known if i.resolved_at is None), None)
    end = at if now is None else max(at, _minute(newest) + MINUTE)
    found = [*gaps(config, store, since, at), *rejects(config, store, end, current), *silent(config, store, at, known)]
    live = standstill(config, store, ledger, now, current) if now is not None else None
    if live is not None:
        found = [live, *(s for s in found if s.kind != live.kind)]
    return sorted(found, key=lambda s: ORDER.index(s.kind))


# ---- a partition that went silent ------------------------------------------------------------------------------------


def silent(config: Config, store: Store, at: dt.datetime, known: Sequence[Incident] = ()) -> list[Symptom]:
    """The partitions that are left out of the watermark at `at`, as one symptom, where others go on.

    One is silent whose gap around `at` is at least `events.idle` long, if by its share of all events enough are missing
    in it, and many more than in any of its gaps of the day before.
    """
    newest = store.newest() or at
    heard, idle = store.last_heard(at).rows(), config.events.idle
    gone: dict[str, tuple[dt.datetime, dt.datetime]] = {}
    for partition, last, following, own in heard:
        if (following - last >= idle) if following else (newest - (own or last) > idle):  # as the watermark has it
            gone[partition] = last, following or newest
    if len(gone) == len(heard):  # all of them, or nothing is known: the source is quiet
        return []
    found: dict[str, tuple[dt.datetime, float]] = {}
    for partition, (last, end) in gone.items():
        mine = store.received(last - DAY, last, [partition])[0]
        alive = store.received(last - DAY, last, list(gone))[1]
        share = mine / alive if alive else 0.0
        pauses = store.pauses(last - DAY, last + MINUTE, idle, [partition])
        usual = [share * store.received(*pause, list(gone))[1] for pause in pauses if not _is_known(*pause, known)]
        missing = share * store.received(last + MINUTE, _minute(end), list(gone))[1]
        enough = missing >= max(config.pipeline.missing, PAUSE * max(usual, default=0.0))
        if enough and store.dense(last - HOUR / 2, last, [partition]) >= DENSE:
            found[partition] = last + MINUTE, missing
    if not found:
        return []
    missing = sum(missing for _, missing in found.values())
    since = min(since for since, _ in found.values())
    return [Symptom("partition", since, None, tuple(sorted(found)), 0.0, missing, missing)]


def _is_known(began: dt.datetime, ended: dt.datetime, known: Sequence[Incident]) -> bool:
    """Whether a pause was one of the pipeline's incidents, and so says nothing of what is usual."""
    return any(i.started_at < ended and (i.resolved_at is None or i.resolved_at > began) for i in known)


# ---- the source quiet altogether -------------------------------------------------------------------------------------


def gaps(config: Config, store: Store, since: dt.datetime, at: dt.datetime) -> list[Symptom]:
    """The longest gap between events that ended in [since, at], in which there usually are enough of them."""
    least = config.pipeline.quiet
    pauses = [p for p in store.pauses(since - 2 * DAY, at, least) if p[1] >= since]
    for began, ended in sorted(pauses, key=lambda p: p[0] - p[1]):
        missing = usual(store, began, ended)
        if missing >= config.pipeline.missing:
            return [Symptom("quiet", began, ended, (), 0.0, missing, missing)]
    return []


def usual(store: Store, start: dt.datetime, end: dt.datetime) -> float:
    """The events that usually come in [start, end): the least that any reference says, 0 where they do not suffice.

    They are the hour before, the same time of the day before, and of the week before. Without a day before nobody
    knows, and without a week before nobody knows about long silences, nor of a stream that comes in bursts.
    """
    oldest, length = store.oldest() or start, end - start
    first = _minute(start)
    spans = [
        (first - HOUR, first),
        (first - DAY, first - DAY + max(_minute(start + min(length, HOUR)) - first, MINUTE)),
    ]
    if any(store.dense(*span) < DENSE for span in spans):
        return 0.0
    days = [d for d in (1, 7) if start - d * DAY >= oldest]
    if not days or (length > WEEKLY and 7 not in days):
        return 0.0
    told = [store.totals({}, start - HOUR, start)[EVENTS] * (length / HOUR)]
    told += [store.totals({}, start - d * DAY, end - d * DAY)[EVENTS] for d in days]
    return float(min(told))


def standstill(
    config: Config, store: Store, ledger: Ledger, now: dt.datetime, current: Incident | None = None
) -> Symptom | None:
    """What the wall clock `now` says of a live source: nothing comes any more, or what comes is ever later.

    Where kmon has just begun to read, the time before does not count. `current` is the open pipeline incident.
    """
    heard, newest, began = store.heard(), store.newest(), reading(store)
    if heard is None or newest is None:
        return None
    waited = now - max(heard, began[0]) if began else now - heard
    if waited < config.pipeline.quiet:
        return _late(config, store, ledger, now, began)
    lasting = current is not None and current.detector == "quiet" and heard <= current.detected_at
    if not lasting:
        pauses = ledger.pauses(now - DAY)
        often = pauses[USUAL - 1] if len(pauses) >= USUAL else dt.timedelta(0)
        if heard - newest > LIVE or waited <= PAUSE * often:
            return None
    missing = usual(store, newest, now)
    if not lasting and missing < config.pipeline.missing:
        return None
    return Symptom("quiet", newest, None, (), 0.0, missing, missing)


def reading(store: Store) -> tuple[dt.datetime, dt.datetime | None] | None:
    """When the store's owner began to read, and the watermark then; None where it never did."""
    noted = store.noted(READING)
    if noted is None:
        return None
    began, mark = json.loads(noted)
    return dt.datetime.fromisoformat(began), dt.datetime.fromisoformat(mark) if mark else None


def _late(
    config: Config,
    store: Store,
    ledger: Ledger,
    now: dt.datetime,
    began: tuple[dt.datetime, dt.datetime | None] | None,
) -> Symptom | None:
    """The watermark falls ever further behind the clock while events come: a lagging partition, or too many events.

    A backlog that is being read comes nearer to the clock, and is none.
    """
    mark = store.watermark(config.events.lateness, config.events.idle)
    if mark is None:
        return None
    start = began[0] if began else now - DAY
    before = ledger.least_lag(max(start, now - HOUR), start)
    if before is None and began and began[1]:
        before = began[0] - began[1]
    if before is None or now - mark - before < config.pipeline.lag:
        return None
    unread = store.lagging()
    detail = ", ".join(f"partition {p} has {n:,} unread records" for p, n in list(unread.items())[:3])
    behind, usually = (now - mark) / MINUTE, max(before / MINUTE, 0.0)
    return Symptom("lag", mark, None, tuple(sorted(unread)), behind, usually, 0.0, detail)


# ---- rejected records ------------------------------------------------------------------------------------------------


def rejects(config: Config, store: Store, end: dt.datetime, current: Incident | None = None) -> list[Symptom]:
    """A share of rejected records, in the minutes before `end`, that is much larger than in the day before.

    While such an incident is open it is compared with the day before that, and half of the jump is enough.
    """
    open_ = current is not None and current.detector == "rejects"
    middle = _minute(end - JUMP)
    found = store.rejected(middle - DAY, middle, end)
    if open_ and current is not None:
        before = store.rejected(current.started_at - DAY, current.started_at, current.started_at)
        found |= {key: before[key] for key in ("records_before", "rejected_before")}
    if not found["records"] or found["records_before"] < found["records"]:
        return []  # a stream that has just begun has no usual share
    share, usually = (found[f"rejected{s}"] / found[f"records{s}"] for s in ("", "_before"))
    jump = config.pipeline.rejects * (0.5 if open_ else 1.0)
    if share - usually < jump or found["rejected"] < (1 if open_ else config.pipeline.missing):
        return []
    first = store.first_rejected(middle, end, usually + jump / 2) or middle
    since = current.started_at if open_ and current is not None else first
    missing = (share - usually) * found["records"]
    return [Symptom("rejects", since, None, (), share, usually, missing, f"most of them: {found['reason']}")]


def _minute(at: dt.datetime) -> dt.datetime:
    return at.replace(second=0, microsecond=0)
