"""How fast events become committed rollups, against the bare decode of the same bytes and against others' rollups."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from kmon.bench import contest
from kmon.bench.contest import Standing
from kmon.bench.contestants import BARE, BATCHES, RIVALS, USUAL, WHOLE, Recordings, kmon_called
from kmon.bench.rows import Row, missing, reaching, told
from kmon.bench.workplace import Options, folder
from kmon.testing.broker import Broker, BrokerUnavailableError

LEAST = {"files": 0.3, "Kafka": 0.2}
"""Shares of the bare decode's rate."""
_UNIT = "events/s"


def run(options: Options) -> list[Row]:
    """From files and from a real Kafka; everybody's totals are checked."""
    with folder() as work, contextlib.ExitStack() as stack:
        broker, problem = _broker(stack, work)
        recordings = Recordings(work, options, broker)
        standings = contest.hold(list(recordings.contestants()), recordings.expected, options.repeats, options.say)
    return list(_rows(standings, problem, rivals=options.rivals))


def _broker(stack: contextlib.ExitStack, work: Path) -> tuple[Broker | None, str]:
    """A running broker, or why there is none."""
    try:
        return stack.enter_context(Broker.start(work / "kafka")), ""
    except BrokerUnavailableError as error:
        return None, str(error)


def _rows(standings: Mapping[str, Standing], problem: str, *, rivals: bool) -> Iterator[Row]:
    nobody = Standing(None, problem)
    bare = standings[BARE].rate or 0.0
    yield told(BARE, bare, _UNIT, f"both cores, the fields that are needed, {USUAL:,} a batch")
    for where in LEAST:
        for size in BATCHES:
            yield _against_decode(where, size, standings.get(kmon_called(where, size), nobody), bare)
    whole = standings[WHOLE].rate
    if whole is not None:
        note = "as events are that are younger than 'keep: raw', two hours"
        yield Row("from files, whole events kept, against the decode", whole, _UNIT, ratio=whole / bare, note=note)
    for rival in RIVALS:
        for size in rival.batches if rivals else ():
            theirs = standings.get(rival.called(size), nobody)
            yield (
                told(rival.called(size), theirs.rate, _UNIT)
                if theirs.rate
                else missing(rival.called(size), _UNIT, theirs.problem)
            )
            for where in LEAST:
                mine = standings.get(kmon_called(where, size), nobody)
                if mine.rate and theirs.rate and (where == "Kafka" or not rival.from_kafka):
                    ahead = "kmon" if mine.rate >= theirs.rate else rival.name
                    name = f"from {where}, {size:,} a batch, against {rival.name}"
                    yield reaching(name, mine.rate, _UNIT, theirs.rate, note=f"{ahead} is ahead")


def _against_decode(where: str, size: int, mine: Standing, bare: float) -> Row:
    name = f"from {where}, {size:,} a batch, against the decode"
    if mine.rate is None:
        return missing(name, _UNIT, mine.problem)
    if size == USUAL:
        return reaching(name, mine.rate, _UNIT, bare, LEAST[where])
    return Row(name, mine.rate, _UNIT, ratio=mine.rate / bare)
