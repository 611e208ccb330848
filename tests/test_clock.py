from __future__ import annotations

import datetime as dt
import itertools
import json

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmon.clock import Clock, Lanes, far_ahead, parse_time
from kmon.config import Config, EventField
from kmon.events import Decoder
from kmon.sources import RawBatch
from tests.conftest import T

SECOND, MINUTE, HOUR = (dt.timedelta(**{unit: 1}) for unit in ("seconds", "minutes", "hours"))
AHEAD = 60


def judged(minutes, known=0, now=10**9, final=True):
    """Indices of the absurd ones of times in minutes, and how many are decided on."""
    micros = np.array(minutes, dtype=np.int64) * 60_000_000
    absurd, decided = far_ahead(micros, known, AHEAD * 60_000_000, now * 60_000_000, final=final)
    return np.flatnonzero(absurd).tolist(), decided


STEADY = list(range(20))
LATER = [1000 + i for i in range(20)]
AROUND = [
    ("nothing", [], []),
    ("steady", STEADY, []),
    ("one in the middle", [*STEADY, 500, *STEADY], [20]),
    ("three in the middle", [*STEADY, 500, 501, 502, *STEADY], [20, 21, 22]),
    ("one at the beginning", [500, *STEADY], [0]),
    ("one at the end", [*STEADY, 500], [20]),
    ("two far apart", [*STEADY, 500, *STEADY, 900, *STEADY], [20, 41]),
    ("a shop opens", [*STEADY, *LATER], []),
    ("a shop opens at the very end", [*STEADY, 1000, 1001], []),
    ("backwards", [*LATER, *STEADY], []),
    ("a straggler", [*LATER, 0, *LATER], []),
    ("stragglers after the last", [*LATER, 0, 1, 2], []),
    ("hours apart", [i * 300 for i in range(20)], []),
    ("two in all, hours apart", [0, 300], []),
    ("two partitions, one hours behind", [t for i in range(40) for t in (i, 1000 + i)], []),
    ("an hour ahead is fine", [*STEADY, 70, *STEADY], []),
]


@pytest.mark.parametrize(("times", "absurd"), [row[1:] for row in AROUND], ids=[row[0] for row in AROUND])
def test_what_is_absurdly_far_ahead(times, absurd):
    assert judged(times) == (absurd, len(times))


@pytest.mark.parametrize(
    ("times", "now", "decided"),
    [
        ([*STEADY, 500], 10**9, 20),  # it may be a jump
        ([*STEADY, 500, 501], 10**9, 20),
        ([*STEADY, 1000, 1001, 1002, 1003], 10**9, 24),  # enough support
        ([*STEADY, 500, *STEADY[:3]], 10**9, 20),
        ([*STEADY, 500], 510, 21),  # it is the present hour
        ([500], 10**9, 1),
    ],
)
def test_a_jump_at_the_end_waits_for_more(times, now, decided):
    assert judged(times, now=now, final=False)[1] == decided


def lines(minutes):
    rows = [{"ts": (T + m * MINUTE).isoformat(), "operation": "session"} for m in minutes]
    return [json.dumps(row).encode() + b"\n" for row in rows]


def outcome(config, minutes, cuts):
    decoder = Decoder(config, now=lambda: T + 9999 * HOUR)
    data, edges = lines(minutes), [0, *sorted(cuts), len(minutes)]
    pairs = [(a, b) for a, b in itertools.pairwise(edges) if b > a]
    batches = [RawBatch.consecutive("f", 0, a, b"".join(data[a:b]), b - a) for a, b in pairs]
    parts = [part for batch in (*batches, None) for part in decoder.feed(batch)]
    times = [time for part in parts for time in part.events["event_time"]]
    return times, [(part.batch.origin(r.record), r.reason) for part in parts for r in part.rejects]


@given(st.lists(st.sampled_from([0, 1, 2, 3, 500, 501, 2000]), min_size=12, max_size=40), st.data())
def test_a_stream_cut_anywhere_after_its_beginning_is_judged_the_same(config, jumps, data):
    minutes = [*STEADY, *jumps]
    cuts = data.draw(st.lists(st.integers(9, len(minutes)), max_size=6))
    assert outcome(config, minutes, cuts) == outcome(config, minutes, [])


@pytest.mark.parametrize("cut", range(15, 30))
def test_a_legitimate_jump_loses_nothing_wherever_a_batch_ends(config, cut):
    times, letters = outcome(config, [*STEADY, *LATER], [cut])
    assert (len(times), letters) == (40, [])


def test_a_jump_is_supported_by_the_next_file(config):
    decoder = Decoder(config, now=lambda: T + 9999 * HOUR)
    files = [lines([*STEADY, 1000]), lines(range(1001, 1010))]
    batches = [RawBatch.consecutive(str(i), 0, 0, b"".join(x), len(x)) for i, x in enumerate(files)]
    parts = [part for batch in (*batches, None) for part in decoder.feed(batch)]
    assert [(p.batch.source, p.first, p.next, len(p.rejects)) for p in parts] == [
        ("0", 0, 20, 0),
        ("0", 20, 21, 0),
        ("1", 0, 9, 0),
    ]


def test_an_earlier_run_is_company(config):
    decoder = Decoder(config, now=lambda: T + 9999 * HOUR, newest=T)
    batch = RawBatch.consecutive("f", 0, 0, lines([500])[0], 1)
    assert decoder.feed(batch) == []


# ---- the watermark ---------------------------------------------------------------------------------------------------


def events(*pairs):
    """Seconds after T and partitions."""
    times = pl.Series([(T + s * SECOND).replace(tzinfo=None) for s, _ in pairs], dtype=pl.Datetime("us"))
    return pl.DataFrame({"event_time": times, "partition": pl.Series([p for _, p in pairs], dtype=pl.Int64)})


MARKS = [
    ("one partition", [(100, 0), (50, 0)], 70),
    ("no partition is a partition", [(100, None)], 70),
    ("the slowest counts", [(40, 0), (50, 1), (100, 0), (60, 1)], 30),
    ("idle ones do not", [(1000, 0), (60, 1)], 970),
    ("just not idle", [(60, 1), (40, 0), (660, 0)], 30),
    ("a partition that comes back does not turn it back", [(60, 1), (1000, 0), (500, 1)], 970),
]


@pytest.mark.parametrize(("pairs", "mark"), [row[1:] for row in MARKS], ids=[row[0] for row in MARKS])
@pytest.mark.parametrize("one_by_one", [False, True])
def test_watermark(config: Config, pairs, mark, one_by_one):
    clock = Clock(config)
    for batch in [[pair] for pair in pairs] if one_by_one else [pairs]:
        clock.tick(events(*batch))
    assert clock.watermark == T + mark * SECOND


def test_no_watermark_before_the_first_event(config: Config):
    clock = Clock(config)
    ticks = clock.tick(events())
    assert (clock.watermark, len(ticks.before), ticks.newest) == (None, 0, {})


def test_late_events_are_those_behind_the_watermark_when_they_came(config: Config):
    ticks = Clock(config).tick(events((0, 0), (100, 0), (69, 0), (70, 0), (71, 0)))
    assert ticks.late.tolist() == [False, False, True, False, False]
    assert ticks.newest_at(0) == {"0": T}
    assert ticks.newest_at(4) == {"0": T + 100 * SECOND}


def test_a_clock_goes_on_where_an_earlier_one_stopped(config: Config):
    clock = Clock(config, {"0": T, "1": T + 40 * SECOND})
    assert clock.watermark == T - 30 * SECOND
    clock.tick(events((60, 0)))
    assert clock.watermark == T + 10 * SECOND


def test_a_partition_of_a_source_has_more_to_come_until_its_last_event(config: Config):
    pairs = [(0, 0), (5000, 0), (0, 1), (5000, 1), (5010, 0)]
    lanes = Lanes(["a", "b", "read, and nothing in it"], np.array([partition for _, partition in pairs], np.int32))
    clock = Clock(config)
    ticks = clock.tick(events(*pairs), lanes, {"a": 0, "b": 0, "read, and nothing in it": 0})
    assert ticks.late.tolist() == [False] * 5
    assert clock.watermark == T + 4970 * SECOND


@given(st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 2)), min_size=1, max_size=40), st.integers(0, 40))
def test_the_watermark_never_goes_back_and_cuts_do_not_matter(config: Config, pairs, cut):
    whole, halves = Clock(config), Clock(config)
    ticks = whole.tick(events(*pairs))
    parts = [halves.tick(events(*part)).before for part in (pairs[:cut], pairs[cut:])]
    assert np.concatenate(parts).tolist() == ticks.before.tolist()
    assert (np.diff(ticks.before.astype(float)) >= 0).all()
    assert whole.watermark == halves.watermark


@given(
    st.lists(
        st.one_of(
            st.datetimes().map(lambda time: f"{time:%Y-%m-%dT%H:%M:%S}.{time.microsecond // 1000:03d}Z"),
            st.sampled_from(["2026-02-30T10:00:00.123Z", "2026-02-03T23:59:60.000Z", "2026-02-03t10:00:00.123z"]),
            st.sampled_from(
                ["2026-02-03T10:00:00.123+02:00", "2026-02-03 10:00:00.123Z", "1770000000123", "soon", None]
            ),
        ),
        min_size=1,
    )
)
def test_a_time_is_read_alike_whatever_company_it_has(times):
    field = EventField(type="time")
    alone = [parse_time(pl.Series(["soon", time], dtype=pl.String), field)[1] for time in times]
    assert parse_time(pl.Series(times, dtype=pl.String), field).to_list() == alone
