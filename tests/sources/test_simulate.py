from __future__ import annotations

import dataclasses
import datetime as dt
import io
import itertools
import json
import threading
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import zstandard

from kmon.config import SimulatorSource
from kmon.sources import RawBatch
from kmon.sources.market import Habits, market
from kmon.sources.scenario import KINDS, REAL, epoch_ms
from kmon.sources.simulate import (
    CHUNK,
    MONDAY,
    Simulation,
    Simulator,
    encode,
    incident,
    live_schedule,
    reference,
    schedule,
    write,
)

MINUTE = dt.timedelta(minutes=1)
HOUR = dt.timedelta(hours=1)
NOON = MONDAY + 12 * HOUR
SIZE = (200, 30.0)  # partners, events a second
SEED = 7


def simulation(*incidents, start=MONDAY, seed=SEED, live=None):
    return Simulation(*SIZE, start, seed, incidents, live)


def between(sim, low, high):
    """Events whose time is in [low, high)."""
    first, last = (low - sim.start) // CHUNK, (high + 10 * MINUTE - sim.start) // CHUNK
    events = pl.concat([sim.chunk(index) for index in range(first, last + 1)])
    return events.filter(pl.col("ts") >= low, pl.col("ts") < high)


def measure(events, metric):
    of = events["operation"]
    counts = {
        "sessions": (of == "session").sum(),
        "authorizations": (of == "authorization").sum(),
        "approved": ((of == "authorization") & (events["status"] == "ok")).sum(),
        "orders": ((of == "order") & (events["status"] == "ok")).sum(),
    }
    match metric:
        case "conversion":
            return counts["orders"] / counts["sessions"]
        case "approval":
            return counts["approved"] / counts["authorizations"]
        case "error_rate":
            return (events["status"] == "error").mean()
        case _:
            return counts[metric]


def in_scope(events, scope):
    return events.filter(*(pl.col(dimension) == value for dimension, value in scope.items()))


SCOPES = {
    "country_conversion_drop": {"partner": "p1", "country": "home"},
    "browser_breaks": {"browser": "safari"},
    "payment_declines": {"payment_method": "card"},
    "holiday": {"country": "DE"},
    "campaign": {"partner": "p1", "channel": "social"},
    "small_partner_silent": {"partner": "p150"},
}
EFFECTS = {  # lowest and highest multiple of the normal at full effect
    "partner_outage": (0, 0),
    "orders_stop": (0, 0),
    "country_conversion_drop": (0.18, 0.32),
    "browser_breaks": (0, 0.05),
    "payment_declines": (0.12, 0.2),
    "surge": (3.7, 4.3),
    "slow_decay": (0.15, 0.25),
    "small_partner_silent": (0, 0),
    "errors_rise": (12, 30),
    "campaign": (1.5, 1.7),
    "holiday": (0.55, 0.65),
}


def one_incident(kind):
    """An incident that is at full effect from noon to half past, and its scope."""
    scope = dict(SCOPES.get(kind, {"partner": "p1"}))
    if scope.get("country") == "home":
        scope["country"] = in_scope(simulation().chunk(72), {"partner": "p1"})["country"].mode()[0]
    rise, fall = KINDS[kind].ramp
    return incident(kind, NOON - (rise + 5) * MINUTE, NOON + (30 + fall) * MINUTE, scope)


@pytest.mark.parametrize("kind", EFFECTS)
def test_each_kind_shows_its_effect_in_its_window(kind):
    one = one_incident(kind)
    where = {"partner": one.scope["partner"]} if kind == "campaign" else one.scope
    wrong, normal = (in_scope(between(sim, NOON, NOON + 30 * MINUTE), where) for sim in (simulation(one), simulation()))
    low, high = EFFECTS[kind]
    assert low <= measure(wrong, one.metric) / measure(normal, one.metric) <= high if len(wrong) else low == high == 0


@pytest.mark.parametrize("kind", EFFECTS)
def test_each_kind_leaves_everything_else_alone(kind):
    one = one_incident(kind)
    wrong, normal = simulation(one), simulation()
    before, after = (one.start - MONDAY) // CHUNK - 1, (one.end - MONDAY) // CHUNK + 2
    for index in (before, after):
        assert wrong.chunk(index).equals(normal.chunk(index))
    others = ~pl.all_horizontal(pl.col(key) == value for key, value in one.scope.items() if key != "channel")
    kept = [sim.chunk(73).filter(others).drop("event_id") for sim in (wrong, normal)]
    assert kept[0].equals(kept[1])


def test_surge_does_not_convert_and_campaign_does():
    surge, campaign = one_incident("surge"), one_incident("campaign")
    orders = [
        measure(in_scope(between(sim, NOON, NOON + 30 * MINUTE), {"partner": "p1"}), "orders")
        for sim in (simulation(), simulation(surge), simulation(campaign))
    ]
    assert orders[0] == orders[1]
    assert 1.4 < orders[2] / orders[0] < 1.8


def test_campaign_comes_by_its_channel():
    sims, scope = (simulation(one_incident("campaign")), simulation()), {"partner": "p1", "operation": "session"}
    sessions = [in_scope(between(sim, NOON, NOON + 30 * MINUTE), scope) for sim in sims]
    gain = sessions[0]["channel"].value_counts().join(sessions[1]["channel"].value_counts(), on="channel")
    gain = gain.select("channel", gain=pl.col("count") - pl.col("count_right")).filter(pl.col("gain") != 0)
    assert gain["channel"].to_list() == ["social"]


def test_slow_decay_sinks_linearly():
    one = incident("slow_decay", NOON, NOON + 3 * HOUR, {"partner": "p1"})
    wrong, normal = simulation(one), simulation()

    def conversion(sim, at):
        return measure(in_scope(between(sim, at, at + 20 * MINUTE), one.scope), "conversion")

    left = [conversion(wrong, at) / conversion(normal, at) for at in (NOON, NOON + HOUR, NOON + 2.5 * HOUR)]
    assert left == pytest.approx([0.93, 0.53, 0.2], abs=0.12)


def test_lagging_partition_comes_late_and_complete():
    one = incident("lagging_partition", NOON + 2 * MINUTE, NOON + 11 * MINUTE, {"partition": "2"})
    late, normal = (pl.concat([sim.chunk(index) for index in range(71, 76)]) for sim in (simulation(one), simulation()))
    assert late.drop("arrival").sort("event_id").equals(normal.drop("arrival").sort("event_id"))
    held = late.filter(partition=2).filter(pl.col("arrival") >= one.start, pl.col("arrival") <= one.end)
    assert len(held) > 500
    assert held["arrival"].unique().to_list() == [one.end]
    assert held["ts"].is_sorted()
    assert late["arrival"].is_sorted()
    assert late.filter(pl.col("partition") != 2).equals(normal.filter(pl.col("partition") != 2))


def test_chunks_do_not_depend_on_the_order_asked():
    forward, backward = simulation(), simulation()
    chunks = [forward.chunk(index) for index in range(4)]
    assert all(backward.chunk(index).equals(chunks[index]) for index in (3, 1, 2, 0))
    assert not simulation(seed=8).chunk(1).equals(chunks[1])


def test_events_arrive_in_order_in_their_chunk():
    chunks = [simulation().chunk(index) for index in range(3)]
    events = pl.concat(chunks)
    assert events["arrival"].is_sorted()
    assert events["event_id"].is_unique().all()
    assert events["ts"].min() >= MONDAY
    for index, chunk in enumerate(chunks):
        assert MONDAY + index * CHUNK <= chunk["arrival"].min() <= chunk["arrival"].max() < MONDAY + (index + 1) * CHUNK
    lateness = events["arrival"] - events["ts"].dt.cast_time_unit("us")
    assert dt.timedelta() <= lateness.min() <= lateness.max() <= dt.timedelta(seconds=20)


def test_count_is_the_length_of_a_chunk():
    lag = incident("lagging_partition", NOON + 2 * MINUTE, NOON + 11 * MINUTE, {"partition": "2"})
    sim = simulation(lag)
    assert [sim.count(index) for index in (72, 73)] == [len(sim.chunk(index)) for index in (72, 73)]


def test_rate_and_mix_over_a_day():
    sim = Simulation(500, 10.0, MONDAY, SEED, [])
    day = pl.concat([sim.chunk(index) for index in range(144)])
    assert len(day) / 86_400 == pytest.approx(10, rel=0.05)
    assert (day["status"] == "error").mean() == pytest.approx(0.01, abs=0.002)
    assert day.filter(status="declined")["operation"].unique().to_list() == ["authorization"]
    assert day["amount"].is_not_null().equals(day["operation"] == "order")
    assert 0.38 < measure(day, "conversion") < 0.56
    hours = day.group_by(pl.col("ts").dt.hour()).len().sort("ts")["len"]
    assert hours.arg_max() in range(17, 22)
    assert hours.arg_min() in range(1, 5)
    largest = day["partner"].value_counts(sort=True)["partner"].head(3).to_list()
    assert largest == ["p1", "p2", "p3"]
    home = in_scope(day, {"partner": "p1"})["country"].value_counts(sort=True, normalize=True)["proportion"][0]
    assert 0.68 < home < 0.92


def test_intensity_is_overdispersed():
    sim = Simulation(3, 60.0, MONDAY, SEED, [])
    noon = pl.concat([sim.chunk(index) for index in range(66, 90)]).filter(operation="session", partner="p1")
    counts = noon.group_by(pl.col("ts").dt.truncate("5m")).len().sort("ts")["len"].to_numpy()[1:-1]
    trend = np.polyval(np.polyfit(np.arange(len(counts)), counts, 3), np.arange(len(counts)))
    assert 0.04 < (counts / trend).std() < 0.2


@pytest.mark.parametrize("count", [1, len(REAL), 2 * len(REAL)])
@pytest.mark.parametrize("days", [0.5, 3])
def test_schedule_spreads_every_kind_without_overlap(count, days):
    end = MONDAY + days * dt.timedelta(days=1)
    listed = schedule(count, MONDAY, end, 2000, 100, SEED)
    real = [one for one in listed if not one.harmless]
    assert listed == sorted(listed, key=lambda one: one.start)
    assert sorted(one.kind for one in listed if one.harmless) == ["campaign", "holiday", "lagging_partition"]
    assert sorted(one.kind for one in real) == sorted(REAL * (count // len(REAL))) or count == 1
    assert real[0].start >= MONDAY + (dt.timedelta(days=1) if days > 1 else 0.4 * (end - MONDAY))
    assert real[-1].end <= end
    gap = 30 * MINUTE if days > 1 else dt.timedelta()
    assert all(later.start - earlier.end >= gap for earlier, later in itertools.pairwise(real))
    partners = [one.scope["partner"] for one in real if "partner" in one.scope]
    assert len(set(partners)) == len(partners)


def test_schedule_lets_some_begin_while_another_lasts():
    end = MONDAY + dt.timedelta(days=1)
    listed = schedule(6, MONDAY, end, 2000, 100, SEED, together=2)
    real = [one for one in listed if not one.harmless]
    assert len(real) == 6
    assert sum(later.start < earlier.end for earlier, later in itertools.pairwise(real)) == 2
    assert len({one.kind for one in real}) == len({tuple(one.scope.items()) for one in real}) == 6
    assert all(one.start < one.end <= end for one in real)
    assert sum(one.harmless for one in schedule(3, MONDAY, end, 2000, 100, SEED, together=9)) == 3


def test_a_ramp_of_its_own():
    one = dataclasses.replace(incident("orders_stop", NOON, NOON + 30 * MINUTE, {"partner": "p1"}), ramp=(10, 0))
    at = [NOON - MINUTE, NOON + 5 * MINUTE, NOON + 10 * MINUTE, NOON + 29 * MINUTE, NOON + 31 * MINUTE]
    assert one.level(np.array([epoch_ms(t) for t in at])).round(3).tolist() == [1, 0.5, 0, 0, 1]


def test_other_habits_are_another_world():
    flat = Habits(hourly=np.ones(24), weekly=np.ones(7), agents=np.eye(10)[8], zipf=0.0, volatility=0.0)
    sim = Simulation(20, 30.0, MONDAY, SEED, habits=flat)
    night, evening = (pl.concat([sim.chunk(h * 6 + i) for i in range(6)]) for h in (3, 20))
    assert len(night) == pytest.approx(len(evening), rel=0.03)
    assert evening["browser"].unique().to_list() == ["edge"]
    sizes = evening["partner"].value_counts()["count"]
    assert sizes.max() < 1.2 * sizes.min()


def test_schedule_hits_what_is_large_enough_at_its_hour():
    size = (2000, 20.0, SEED)
    for one in schedule(len(REAL), MONDAY, MONDAY + dt.timedelta(days=2), *size):
        if one.scope.keys() == {"partner"} and not one.harmless:
            volume = market(*size).volume(one.start + (one.end - one.start) / 2)[int(one.scope["partner"][1:]) - 1]
            assert volume >= KINDS[one.kind].volume


@pytest.mark.parametrize(("partners", "rate"), [(1, 1.0), (3, 0.01), (50, 5000.0)])
def test_schedule_makes_do_with_any_size(partners, rate):
    listed = schedule(len(REAL), MONDAY, MONDAY + HOUR, partners, rate, SEED)
    assert len(listed) == len(REAL)
    assert all(one.start < one.end <= MONDAY + HOUR for one in listed)


def test_live_schedule_is_endless_and_changes_its_target():
    live = live_schedule(NOON, 4 * MINUTE, 2000, 20, SEED)
    first = live(MONDAY, NOON + 40 * MINUTE)
    assert [one.start for one in first] == [NOON + n * 4 * MINUTE for n in range(10)]
    assert {one.end - one.start for one in first} == {12 * MINUTE}
    assert all(one.scope != after.scope for one, after in itertools.pairwise(first))
    assert live(NOON + 9 * MINUTE, NOON + 11 * MINUTE) == first[:3]
    assert live(NOON + 5000 * HOUR, NOON + 5001 * HOUR)


def test_history_and_live_incidents_together():
    past = incident("partner_outage", NOON, NOON + 10 * MINUTE, {"partner": "p2"})
    live = live_schedule(NOON + HOUR, HOUR, *SIZE, SEED)
    sim = simulation(past, live=live)
    assert sim.during(NOON, NOON + 2 * HOUR) == [past, *live(NOON, NOON + 2 * HOUR)]


def test_encode_leaves_nulls_and_arrival_out():
    events = simulation().chunk(70)
    lines = [json.loads(line) for line in encode(events).splitlines()]
    assert len(lines) == len(events)
    order = next(line for line in lines if line["operation"] == "order")
    session = next(line for line in lines if line["operation"] == "session")
    assert list(order) == [name for name in events.columns if name != "arrival"]
    assert set(order) - set(session) == {"amount", "currency"}
    assert dt.datetime.strptime(order["ts"], "%Y-%m-%dT%H:%M:%S.%f%z").utcoffset() == dt.timedelta()
    assert all(len(line["ts"]) == len("2026-03-02T00:00:00.000Z") and line["ts"].endswith("Z") for line in lines)


def recording(out):
    return write(out, partners=50, rate=2.0, days=0.5, incidents=3, seed=SEED)


def test_recordings_repeat_byte_for_byte(tmp_path):
    told = [recording(tmp_path / name) for name in "ab"]
    files = [sorted((tmp_path / name).iterdir()) for name in "ab"]
    names = ["events-000.ndjson.zst", "events-001.ndjson.zst", "partners.csv", "truth.json"]
    assert [[path.name for path in side] for side in files] == [names, names]
    assert [path.read_bytes() for path in files[0]] == [path.read_bytes() for path in files[1]]
    assert told[0]["events"] == told[1]["events"] > 0


def test_recordings_parse(tmp_path):
    seen = []
    size = {"partners": 50, "rate": 2.0, "days": 0.5}
    told = write(tmp_path, **size, incidents=3, seed=SEED, progress=lambda *at: seen.append(at))
    assert seen[0] == (1, 72)
    assert seen[-1] == (72, 72)
    unpacked = [zstandard.ZstdDecompressor().stream_reader(Path(path).read_bytes()).read() for path in told["files"]]
    assert sum(len(pl.read_ndjson(io.BytesIO(data))) for data in unpacked) == told["events"]
    truth = json.loads((tmp_path / "truth.json").read_text())
    assert (truth["start"], truth["end"]) == ("2026-03-02T00:00:00Z", "2026-03-02T12:00:00Z")
    assert [one["harmless"] for one in truth["incidents"]].count(False) == 3
    assert set(truth["incidents"][0]) == {"kind", "harmless", "started_at", "ended_at", "scope", "metric", "direction"}
    assert pl.read_csv(tmp_path / "partners.csv").equals(reference(50, SEED))


def test_reference_is_complete():
    partners = reference(2000, SEED)
    assert partners.columns == ["partner", "name", "account_team", "slack_channel", "tier", "timezone"]
    assert partners["partner"].to_list() == [f"p{k}" for k in range(1, 2001)]
    assert partners["slack_channel"][16] == "#p17"
    assert partners["name"].is_unique().all()
    assert partners["tier"].unique(maintain_order=True).to_list() == ["gold", "silver", "bronze"]


class Clock:
    """A clock that only waiting moves, and that stops the source at its end."""

    def __init__(self, at, end):
        self.at, self.end = at, end

    def now(self):
        return self.at

    def wait(self, stop, seconds):
        self.at += dt.timedelta(seconds=seconds * 20)
        if self.at >= self.end:
            stop.set()
        return stop.is_set()


CONFIG = SimulatorSource(kind="simulator", partners=50, rate=8, history=dt.timedelta(hours=8), seed=SEED)


def run(positions, until=2**63):
    """What a simulator yields from `positions` to 12 minutes after noon, or until a position is passed."""
    clock = Clock(NOON + dt.timedelta(seconds=40), NOON + dt.timedelta(minutes=12))
    source = Simulator(CONFIG, now=clock.now, wait=clock.wait)
    batches: list[RawBatch] = []
    for batch in source.read(positions, threading.Event()):
        batches.append(batch)
        if batch.next >= until:
            break
    return source, clock, batches


def test_simulator_follows_history_with_the_wall_clock():
    source, clock, batches = run({})
    assert source.name == f"simulator:{SEED}:{int((NOON - 8 * HOUR).timestamp())}"
    assert source.history_end == NOON
    assert {batch.source for batch in batches} == {source.name}
    assert batches[0].first == 0
    assert all(one.next == after.first for one, after in itertools.pairwise(batches))
    assert all(batch.data.count(b"\n") == batch.size <= 20_000 for batch in batches)
    assert all(batch.next - batch.first == batch.size for batch in batches)
    live = [source.caught_up(batch) for batch in batches]
    assert live == sorted(live)
    assert 0 < live.count(False) < len(live)
    events = pl.read_ndjson(io.BytesIO(b"".join(batch.data for batch in batches)))
    sim = source.simulation()
    last = clock.end - dt.timedelta(seconds=10)  # the clock's last tick stops it
    expected = pl.concat([sim.chunk(index) for index in range(50)]).filter(pl.col("arrival") <= last)
    assert events["event_id"].to_list() == expected["event_id"].to_list()


@pytest.mark.parametrize("passed", [20_000, 120_000])
def test_simulator_resumes_as_if_never_interrupted(passed):
    source, _, whole = run({})
    _, _, head = run({}, until=passed)
    position = {(source.name, 0): head[-1].next, ("other", 0): 5}
    _, _, tail = run(position)
    assert tail[0].first == head[-1].next
    assert b"".join(batch.data for batch in head + tail) == b"".join(batch.data for batch in whole)


def test_simulator_estimates_its_backlog():
    source = Simulator(CONFIG, now=lambda: NOON)
    assert source.backlog({}) == 8 * 8 * 3600
    assert source.backlog({(source.name, 0): 200_000}) == 8 * 8 * 3600 - 200_000


def test_simulator_keeps_the_end_of_its_history_quiet():
    source = Simulator(CONFIG, now=lambda: NOON)
    sim = source.simulation()
    real = [one for one in sim.incidents if not one.harmless]
    assert len(real) == 4
    assert max(one.end for one in real) <= NOON - 2 * HOUR
    assert [one.start for one in sim.during(NOON - HOUR, NOON) if one.start >= NOON - HOUR] == [NOON - 6 * MINUTE]
