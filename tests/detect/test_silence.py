"""Silence: who should have come by now, and who is only asleep, bursty, gone or new."""

import datetime as dt

import numpy as np
import polars as pl
import pytest

from kmon.config import DetectorUse
from kmon.detect import SCORES, Silence, load_detector, sweep
from kmon.detect.silence import History, chance, longest, usual
from kmon.doctor import examine
from kmon.errors import UsageError
from kmon.ledger import Ledger
from kmon.reasons import why
from kmon.watch import Watch
from tests.conftest import ROOT
from tests.detect.worlds import AT, DAY, MINUTE, Mask, config, shop, windows

HOUR = dt.timedelta(hours=1)
DAYS = 7


def history(counts, silent, like=None, shift=None):
    """Of hourly counts (monitors, hours), the newest first."""
    table = np.array(counts, float)
    m, days = len(table), table.shape[1] // 24 - 1
    good = np.ones((m, days), bool) if like is None else np.array(like)
    moved = np.zeros((m, days), np.int64) if shift is None else np.array(shift)
    return History(table, np.broadcast_to(np.array(silent, float), m).copy(), good, moved, np.ones((m, 24)))


def draw(rate, n, silent_hours, seed=1):
    """(hourly counts, hours since the last event) of Poisson arrivals at `rate` an hour, seen at any time."""
    rng = np.random.default_rng(seed)
    hours = 24 * (DAYS + 1)
    counts, since = np.zeros((n, hours)), np.full(n, np.nan)
    for i in range(n):
        ago = np.cumsum(rng.exponential(1 / rate, int(rate * hours * 1.5 + 50)))
        ago = ago[ago < hours]
        since[i] = ago[0]
        counts[i] = np.bincount(ago.astype(int), minlength=hours)[:hours]
    return counts, since


@pytest.mark.parametrize("rate", [0.5, 1, 3, 8, 20])
def test_p_values_of_poisson_partners_are_uniform_or_larger(rate):
    """At any time, nothing being wrong: P(p <= a) is at most a, and not much less where it matters."""
    counts, since = draw(rate, 4000, 24)
    given = history(counts, since)
    due = usual(given, given.silent)
    p = chance(due.expected, due.excess)
    for level in (0.3, 0.1, 0.03, 0.01):
        share = (p <= level).mean()
        assert share <= level + 3 * np.sqrt(level / 4000), (rate, level, share)
        assert share >= level / 3, (rate, level, share)
    told = np.where(due.expected > longest(given), p, 1.0)
    assert (told <= 1e-3).mean() <= 1e-3


def test_the_expected_count_is_that_of_the_same_hours():
    hourly = np.where(np.arange(24) < 8, 0, 3)  # of the last 24 hours, the newest first: nothing in the last 8
    counts = np.tile(hourly, DAYS + 1)[None, :].repeat(3, 0)
    silent = np.array([8.0, 9.0, 10.5])
    for row, h in enumerate(silent):
        counts[row, : int(h)] = 0
    assert usual(history(counts, silent), silent).expected == pytest.approx([0, 3, 7.5], abs=0.02)


def test_nights_and_bursts_are_silences_of_before():
    quiet_nights = np.tile(np.where(np.arange(24) < 8, 0, 3), DAYS + 1)
    bursts = np.where(np.arange(24 * (DAYS + 1)) % 30 == 25, 60, 0)  # every 30 hours, at another hour each time
    night, burst = longest(history([quiet_nights, bursts], [0.0, 0.0]))
    assert night < 4
    assert burst > 40


def test_a_day_of_another_kind_and_a_clock_change_move_what_is_expected():
    counts = np.tile(np.arange(24.0), DAYS + 1)[None, :].copy()
    counts[:, 24:48] = 0  # a holiday yesterday
    one = np.array([1.0])
    counts[:, 0] = 0
    like = [[False] + [True] * 6]
    assert usual(history(counts, one), one).days[0] == 7
    given = history(counts, one, like, [[1] * DAYS])  # an hour later in universal time then: one column nearer
    assert usual(given, one).days[0] == 6
    assert usual(history(counts, one, like), one).expected[0] == 0
    assert usual(history(counts, one, like, [[-1] * DAYS]), one).expected[0] == pytest.approx(1, abs=0.3)
    unlike = usual(history(counts, one, [[False] * DAYS]), one)
    assert unlike.excess[0] > 1


# ---- in a store --------------------------------------------------------------------------------------------------

USE = {"use": "silence"}


def settings(folder=None, **changes):
    few = {"windows": ["1h"], "every": "10m", "false_alerts_per_day": 0.1, "watch": [["partner"]]}
    return config(folder, **{"detectors": [{"use": "compare"}, USE], **few, **changes})


def visits(rates, start, end, seed=2, hours=None):
    """Sessions of partners at their rates an hour in [start, end), in local `hours` only."""
    rng = np.random.default_rng(seed)
    frames = []
    for partner, rate in rates.items():
        minutes = np.arange((end - start) // MINUTE)
        level = np.full(len(minutes), rate / 60.0)
        if hours is not None:
            clock = np.array([(start + int(m) * MINUTE).hour for m in minutes])
            level = np.where((clock >= hours[0]) & (clock < hours[1]), level, 0.0)
        n = rng.poisson(level)
        times = [start.replace(tzinfo=None) + dt.timedelta(minutes=int(m)) for m in np.repeat(minutes, n)]
        frames.append(pl.DataFrame({"event_time": times}, schema={"event_time": pl.Datetime("us")}).with_columns(
            partner=pl.lit(partner), country=pl.lit("SE"), browser=pl.lit("chrome"), kind=pl.lit("s")))  # fmt: skip
    return pl.concat(frames).sort("event_time")


OTHERS = {f"o{i}": 6.0 for i in range(12)}
BEGIN = AT - 8 * DAY


def looked(store, at, **changes):
    """{partner: p-value} of those that are judged silent at `at`."""
    full = settings(**changes)
    found = load_detector(DetectorUse(use="silence"), ROOT).look(store, full, at)
    if found is None:
        return {}
    fleet, scores, _ = found
    return {store.names("partner", [fleet.monitors["partner"][r]])[fleet.monitors["partner"][r]]: p
            for r, p in scores.select("row", "p_value").rows()}  # fmt: skip


def test_a_partner_of_three_an_hour_is_missed_after_a_sensible_time():
    quiet_since = AT - 9 * HOUR
    events = pl.concat([visits(OTHERS, BEGIN, AT), visits({"p": 3.0}, BEGIN, quiet_since, seed=3)])
    with shop(events.sort("event_time"), settings(), AT) as store:
        seen = [looked(store, quiet_since + h * HOUR).get("p", 1.0) for h in range(1, 10)]
    assert seen[1] == 1.0  # two hours are nothing
    first = next(h for h, p in enumerate(seen, 1) if p < 1e-5)
    assert 4 <= first <= 7
    assert seen[8] < 1e-6


def test_a_partner_that_sleeps_at_night_is_not_silent_then():
    """From 6 to 22 o'clock: at 5 it has been silent for 7 hours, and at noon for 2 if it did not wake up."""
    events = pl.concat(
        [visits(OTHERS, BEGIN, AT), visits({"p": 10.0}, BEGIN, AT - 14 * HOUR, seed=3, hours=(6, 22))]
    ).sort("event_time")
    with shop(events, settings(), AT) as store:
        assert looked(store, AT - 7 * HOUR).get("p", 1.0) > 0.01  # at 5
        assert looked(store, AT - 3 * HOUR)["p"] < 1e-6  # at 9, three hours after it should have come


def test_a_bursty_partner_is_given_its_time():
    bursts = pl.concat(
        [visits({"p": 200.0}, at, at + 30 * MINUTE, seed=i) for i, at in enumerate(
            BEGIN + (5 + 25 * k) * HOUR for k in range(7))]
    )  # fmt: skip
    events = pl.concat([visits(OTHERS, BEGIN, AT), bursts]).sort("event_time")
    last = bursts["event_time"].max().replace(tzinfo=dt.UTC)
    with shop(events, settings(), AT) as store:
        assert all(looked(store, min(AT, last + h * HOUR)).get("p", 1.0) > 1e-3 for h in (4, 12, 20))


def test_who_is_new_or_gone_is_not_silent():
    events = pl.concat(
        [
            visits(OTHERS, BEGIN, AT),
            visits({"new": 20.0}, AT - 20 * HOUR, AT - 4 * HOUR, seed=3),
            visits({"gone": 20.0}, BEGIN, AT - 30 * HOUR, seed=4),
        ]
    ).sort("event_time")
    with shop(events, settings(), AT) as store:
        assert looked(store, AT) == {}
        assert looked(store, AT - 24 * HOUR)["gone"] < 1e-9


def test_nobody_is_silent_while_the_source_stands_still():
    events = visits(OTHERS | {"p": 20.0}, BEGIN, AT - 3 * HOUR)
    with shop(events, settings(), AT) as store:
        assert sweep(store, settings(), AT).anomalies == 0


def test_a_known_incident_is_no_longest_silence():
    events = (
        visits({"p": 6.0}, BEGIN, AT - 60 * HOUR, seed=3),
        visits({"p": 6.0}, AT - 50 * HOUR, AT - 6 * HOUR, seed=4),
    )
    mask = Mask({"partner": "p"}, AT - 60 * HOUR, AT - 50 * HOUR)
    with shop(pl.concat([visits(OTHERS, BEGIN, AT), *events]).sort("event_time"), settings(), AT) as store:
        detector = Silence()
        plain, masked = (detector.look(store, settings(), AT, masks)[1] for masks in ((), [mask]))
    assert plain["p_value"].to_list() == [1.0]
    assert masked["p_value"][0] < 1e-7


def test_a_silence_from_its_beginning_to_its_end_and_who_retires():
    gone, back = AT - 16 * HOUR, AT - 6 * HOUR
    rate = {"p": 4.0}
    events = pl.concat(
        [visits(OTHERS, BEGIN, AT), visits(rate, BEGIN, gone, seed=3), visits(rate, back, AT, seed=5)]
    ).sort("event_time")
    full = settings()
    actions = []
    with shop(events, full, AT) as store, Ledger.open("sqlite://") as ledger:
        watch = Watch(full, store, ledger)
        for step in range(16 * 6 + 1):
            at = gone + step * 10 * MINUTE
            for d in (d for d in watch.look(at).decisions if d.incident.scope == {"partner": "p"}):
                actions.append((d.action, d.incident, (at - gone) / HOUR))
                if d.action == "new":
                    told = why(full, store, ledger, "sessions", {"partner": "p"}, at)
    news = [(i, h) for action, i, h in actions if action == "new"]
    assert len(news) == 1, [(i.scope, i.metric, i.direction, i.detector, i.observed, i.expected, h) for i, h in news]
    ((incident, after),) = news
    assert (incident.scope, incident.metric, incident.direction) == ({"partner": "p"}, "sessions", "down")
    assert (incident.detector, incident.observed) == ("silence", 0)
    assert 3 <= after <= 8
    assert abs(incident.started_at - gone) <= HOUR
    (end,) = [h for action, _, h in actions if action == "resolved"]
    assert 0 < end - 10 <= 2
    assert told.outcome == "fired"
    assert "0 was seen" in told.sentence


def test_who_retires_is_told_once_and_then_forgotten():
    gone = AT - 40 * HOUR
    events = pl.concat([visits(OTHERS, BEGIN, AT), visits({"p": 6.0}, BEGIN, gone, seed=3)]).sort("event_time")
    full = settings()
    with shop(events, full, AT) as store, Ledger.open("sqlite://") as ledger:
        watch = Watch(full, store, ledger)
        seen = [(d.action, step) for step in range(40) for d in watch.look(gone + step * HOUR).decisions]
    assert [action for action, _ in seen].count("new") == 1, seen
    ((_, ended),) = [(a, step) for a, step in seen if a == "resolved"]
    assert 23 <= ended <= 25
    assert seen[-1] == ("resolved", ended)


# ---- its contract ------------------------------------------------------------------------------------------------


def test_of_the_windows_of_a_sweep_nothing_is_judged():
    given = windows("count", [1.0, 2.0])
    scores = Silence().score(given)
    assert scores.schema == SCORES
    assert not scores["judged"].any()


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"least": 0}, "needs a number from 1 to 60 for 'least', not 0"),
        ({"every": "soon"}, "every: 'soon' is not a duration"),
        ({"every": "0s"}, "every: '0s' is too short"),
    ],
)
def test_wrong_parameters(params, says):
    with pytest.raises(UsageError, match=says):
        Silence(**params)


def test_its_metric_must_be_a_count():
    assert Silence().metric_of(config()) == "sessions"
    with pytest.raises(UsageError, match="needs a count: 'conversion' is none of sessions, orders"):
        Silence(metric="conversion").metric_of(config())


def test_it_looks_every_ten_minutes_and_has_its_own_share_of_the_budget():
    one = config(every="1m", detectors=[{"use": "compare"}, USE])
    assert [Silence().is_due(one, AT + n * MINUTE, AT + (n - 1) * MINUTE) for n in (0, 1, 9, 10)] == [
        True, False, False, True]  # fmt: skip


@pytest.mark.parametrize(
    ("metric", "scope", "is_about"),
    [
        ("sessions", {"partner": "p1"}, True),
        ("orders", {"partner": "p1"}, False),
        ("sessions", {"country": "SE"}, False),
        ("sessions", {}, False),
    ],
)
def test_which_monitors_it_is_about(metric: str, scope: dict[str, str], is_about: bool) -> None:
    silence = load_detector(DetectorUse(use="silence"), ROOT)
    assert silence.watches(config(), metric, scope) is is_about


def test_a_silence_without_a_count_is_refused_at_load(tmp_path):
    rates = settings(tmp_path, metrics={"conversion": {"rate": "orders / sessions"}})
    (check,) = [check for check in examine(rates) if check.name == "detectors"]
    assert not check.ok
    assert "the detector 'silence' needs a count" in check.detail


def test_why_tells_of_a_silent_partner_that_no_line_of_watch_has():
    events = pl.concat([visits(OTHERS, BEGIN, AT), visits({"p": 3.0}, BEGIN, AT - 9 * HOUR, seed=3)]).sort("event_time")
    full = settings(watch=[["country"]])
    with shop(events, full, AT) as store, Ledger.open("sqlite://") as ledger:
        found = why(full, store, ledger, "sessions", {"partner": "p"}, AT)
    assert [(w.detector, w.outcome) for w in found.windows] == [("compare", "not judged"), ("silence", "fired")]
    assert (found.outcome, found.watched) == ("fired", False)
