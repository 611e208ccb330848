"""What people say of incidents, what it does to the ledger, and what the next looks make of it."""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from kmon import labels
from kmon.apps.feed import Feed
from kmon.apps.parts import facts
from kmon.apps.selection import default
from kmon.config import PIPELINE, Config
from kmon.detect import expected_series
from kmon.errors import UsageError
from kmon.ledger import Incident, Label, Ledger, Word
from kmon.reasons import why
from kmon.references import MONTH, References
from kmon.store import EmbeddedStore
from kmon.watch import Watch
from kmon.windows import days_unused
from tests.detect.worlds import AT, DAY, MINUTE, add, config, shop, traffic
from tests.test_ledger import DELIVERY, INCIDENT, SWEEP

P1 = {"partner": "p1"}
NOW = dt.datetime(2026, 1, 10, 12, 30, tzinfo=dt.UTC)
SETTINGS = config()
TOLD = replace(DELIVERY, created_at=NOW - MINUTE)


def lower(ago: int, usual: float = 8.0, level: float = 2.0) -> pl.DataFrame:
    """p1's sessions are at `level` since so many minutes before AT."""
    since = (pl.col("partner") == "p1") & pl.col("today") & (pl.col("ago") <= ago)
    return traffic(pl.when(since).then(level).otherwise(usual), minutes=120)


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    with Ledger.open("sqlite://") as opened:
        yield opened


def say(ledger: Ledger, id: str, word: Word) -> Label:
    return labels.say(SETTINGS, ledger, id, word, by="ann", clock=lambda: NOW)


def look(store: EmbeddedStore, ledger: Ledger, first: int, last: int) -> list[str]:
    """What is decided from `first` to `last` minutes before AT."""
    outcomes = [Watch(SETTINGS, store, ledger).look(AT - ago * MINUTE) for ago in range(first, last - 1, -1)]
    return [decision.action for outcome in outcomes for decision in outcome.decisions]


# ---- the ledger ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("word", "status"), [("true", "firing"), ("false", "resolved"), ("new-normal", "resolved")])
def test_a_label_is_kept_with_who_and_when_and_may_end_its_incident(ledger: Ledger, word: Word, status: str) -> None:
    ledger.record(SWEEP, [replace(INCIDENT, detected_at=SWEEP.at - MINUTE)], [], [TOLD])
    label = say(ledger, "inc_1", word)
    assert ledger.labels() == [label]
    assert (label.word, label.incident, label.metric, label.scope) == (word, "inc_1", "conversion", P1)
    assert (label.said_by, label.said_at, label.known_at) == ("ann", NOW, SWEEP.at)
    (incident,) = ledger.incidents()
    assert incident.status == status
    assert incident.resolved_at == (SWEEP.at if status == "resolved" else None)
    told = [(d.kind, d.sink, d.channel, d.created_at) for d in ledger.deliveries()[1:]]
    assert told == ([("resolved", "console", "#p1", NOW)] if status == "resolved" else [])


def test_saying_it_again_changes_nothing_and_another_word_takes_its_place(ledger: Ledger) -> None:
    ledger.record(SWEEP, [INCIDENT], [], [TOLD])
    first = say(ledger, "inc_1", "false")
    assert say(ledger, "inc_1", "false") == first
    assert [d.kind for d in ledger.deliveries()] == ["firing", "resolved"]
    second = say(ledger, "inc_1", "true")
    assert ledger.labels() == [second]
    assert second.id != first.id


def test_a_stretch_is_marked_once_and_a_label_can_be_taken_back(ledger: Ledger) -> None:
    stretch = ("sessions", AT - DAY, AT - DAY + 5 * MINUTE)
    first = labels.mark(ledger, stretch, P1, by="ann", clock=lambda: NOW)
    assert labels.mark(ledger, stretch, P1, by="bob") == first
    other = labels.mark(ledger, stretch, {}, by="bob", clock=lambda: NOW + MINUTE)
    assert ledger.labels() == [first, other]
    labels.remove(ledger, first.id)
    assert ledger.labels() == [other]
    with pytest.raises(UsageError, match=f"there is no label '{first.id}': 'kmon label' lists them"):
        labels.remove(ledger, first.id)


@pytest.mark.parametrize(
    ("id", "says"),
    [("inc_9", "there is no incident 'inc_9'"), ("inc_2", "inc_2 is of the data itself")],
)
def test_what_cannot_be_labelled(ledger: Ledger, id: str, says: str) -> None:
    ledger.record(SWEEP, [replace(INCIDENT, id="inc_2", metric=PIPELINE)])
    with pytest.raises(UsageError, match=says):
        say(ledger, id, "false")
    assert ledger.labels() == []


@pytest.mark.parametrize("word", ["true", "new-normal"])
def test_a_sweep_that_was_on_its_way_does_not_bring_back_what_a_label_ended(ledger: Ledger, word: Word) -> None:
    ledger.record(SWEEP, [INCIDENT])
    say(ledger, "inc_1", word)
    ledger.record(replace(SWEEP, at=SWEEP.at + MINUTE), [replace(INCIDENT, anomalies=9)])
    (incident,) = ledger.incidents()
    assert (incident.status, incident.anomalies) == (("firing", 9) if word == "true" else ("resolved", 2))


# ---- what serves as a reference --------------------------------------------------------------------------------------


def known(ledger: Ledger, start: dt.datetime = AT - MONTH, end: dt.datetime = AT) -> References:
    return References.of(ledger, SETTINGS, start, end)


def past(hours: float) -> Incident:
    """An incident of p1 that began a day ago and lasted so many hours."""
    began = AT - DAY
    ended = began + dt.timedelta(hours=hours)
    times = {"started_at": began, "detected_at": began + MINUTE, "seen_at": ended, "resolved_at": ended + 3 * MINUTE}
    return replace(INCIDENT, status="resolved", **times)  # type: ignore[arg-type]


@pytest.mark.parametrize(("word", "masked", "shifts"), [
    (None, [(AT - DAY, AT - DAY + 2 * 60 * MINUTE)], []),
    ("true", [(AT - DAY, AT - DAY + 2 * 60 * MINUTE)], []),
    ("false", [], []),
    ("new-normal", [(AT - DAY - 120 * MINUTE, AT - DAY)], [AT - DAY]),
])  # fmt: skip
def test_what_an_incident_hides(
    ledger: Ledger, word: Word | None, masked: list[tuple[dt.datetime, dt.datetime]], shifts: list[dt.datetime]
) -> None:
    ledger.record(SWEEP, [past(2)])
    if word:
        say(ledger, "inc_1", word)
    told = known(ledger)
    assert [(mask.started_at, mask.resolved_at) for mask in told.masks] == masked
    assert [shift.at for shift in told.config.calendar.shifts] == shifts
    assert [i.id for i in told.settled] == (["inc_1"] if word in ("false", "new-normal") else [])
    assert [i.id for i in told.incidents] == ["inc_1"]


def test_what_has_lasted_is_the_new_normal_without_a_label(ledger: Ledger) -> None:
    ledger.record(SWEEP, [past(23.96)])  # three minutes until it was resolved
    told = known(ledger)
    assert told.incidents == ()
    assert [shift.name for shift in told.config.calendar.shifts] == ["the new normal (inc_1)"]
    assert [mask.resolved_at for mask in told.masks] == [AT - DAY]


def test_a_real_incident_is_no_new_normal_however_long_it_lasted(ledger: Ledger) -> None:
    ledger.record(SWEEP, [past(23.96)])
    say(ledger, "inc_1", "true")
    told = known(ledger)
    assert told.config.calendar.shifts == ()
    assert [(mask.id, mask.started_at) for mask in told.masks] == [("inc_1", AT - DAY)]


def test_a_new_normal_is_none_before_it_began(ledger: Ledger) -> None:
    ledger.record(SWEEP, [past(2)])
    say(ledger, "inc_1", "new-normal")
    told = known(ledger, end=AT - DAY)
    assert (told.masks, told.config.calendar.shifts) == ((), ())


def test_a_stretch_hides_its_minutes(ledger: Ledger) -> None:
    label = labels.mark(ledger, ("sessions", AT - DAY, AT - DAY + MINUTE), P1, by="ann")
    (mask,) = known(ledger).masks
    assert (mask.id, mask.scope, mask.started_at, mask.resolved_at) == (label.id, P1, AT - DAY, AT - DAY + MINUTE)
    assert known(ledger, start=AT - DAY + MINUTE).masks == ()


# ---- the looks that follow -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [2, 20])
def test_a_new_normal_is_told_once_and_the_references_follow(ledger: Ledger, after: int) -> None:
    """A quarter of the sessions since 50 minutes ago, labelled soon or late."""
    with shop(lower(50)) as store:
        assert look(store, ledger, 50, 45).count("new") == 1
        look(store, ledger, 44, 45 - after)
        (incident,) = ledger.incidents()
        say(ledger, incident.id, "new-normal")
        assert look(store, ledger, 44 - after, 0) == []
        told = known(ledger)
        series = expected_series(store, told.config, "sessions", P1, AT - 5 * MINUTE, AT, masks=told.masks)
        assert series["expected"].mean() == pytest.approx(18, rel=0.15)  # 9 cells of 2 a minute
    assert sorted(d.kind for d in ledger.deliveries()) == ["firing", "resolved"]


@pytest.mark.parametrize(("grain", "first"), [(1, 10), (5, 10), (15, 20), (60, 65)])
def test_a_band_learns_a_new_normal_as_soon_as_a_sweep_could(ledger: Ledger, grain: int, first: int) -> None:
    """From the first whole bin of five minutes between the change and a bucket, however wide that is."""
    levels = {}
    for ago in (first - 5, first, first + 15):
        began = {"started_at": AT - ago * MINUTE, "detected_at": AT - ago * MINUTE, "seen_at": AT, "metric": "sessions"}
        ledger.record(SWEEP, [replace(INCIDENT, **began)])
        label = say(ledger, "inc_1", "new-normal")
        told, width = known(ledger), grain * MINUTE
        since = (pl.col("partner") == "p1") & pl.col("today") & (pl.col("ago") <= ago)
        with shop(traffic(pl.when(since).then(2.0).otherwise(8.0), minutes=480)) as store:
            band = expected_series(store, told.config, "sessions", P1, AT - width, AT, grain=width, masks=told.masks)
        levels[ago] = band["expected"].item()
        labels.remove(ledger, label.id)
    new = pytest.approx(9 * 2 * grain, rel=0.4)  # 9 cells of 2 a minute; it was four times as much
    assert levels == {first - 5: None, first: new, first + 15: new}


def test_an_outage_after_a_new_normal_is_an_incident_of_its_own(ledger: Ledger) -> None:
    since = (pl.col("partner") == "p1") & pl.col("today")
    level = (
        pl.when(since & (pl.col("ago") <= 12)).then(0.0).when(since & (pl.col("ago") <= 60)).then(3.0).otherwise(8.0)
    )
    with shop(traffic(level, minutes=120)) as store:
        look(store, ledger, 60, 50)
        (first,) = ledger.incidents()
        say(ledger, first.id, "new-normal")
        assert "new" in look(store, ledger, 49, 0)
    _, second = ledger.incidents()
    assert second.scope == P1
    assert second.expected == pytest.approx(27 * 5, rel=0.2)


def test_what_returns_after_a_new_normal_began_when_it_returned(ledger: Ledger) -> None:
    shut = (pl.col("partner") == "p1") & pl.col("today") & pl.col("ago").is_between(9, 25)
    with shop(traffic(8.0, pl.when(shut).then(0.02).otherwise(0.5), minutes=120)) as store:
        look(store, ledger, 25, 18)
        (first,) = ledger.incidents()
        say(ledger, first.id, "new-normal")
        look(store, ledger, 17, 0)
    _, second = ledger.incidents()
    assert (second.scope, second.direction) == (P1, "up")
    assert abs(second.started_at - (AT - 9 * MINUTE)) <= 2 * MINUTE


def test_days_before_the_new_normal_are_of_another_kind(ledger: Ledger) -> None:
    """At the new level since an hour before this time yesterday; the day before that was four times as large."""
    old = (pl.col("partner") == "p1") & (pl.col("ts") < (AT - DAY - 60 * MINUTE).replace(tzinfo=None))
    with shop(traffic(pl.when(old).then(8.0).otherwise(2.0), minutes=120, days=[2, 1, 0])) as store:
        began = AT - DAY - 60 * MINUTE
        shifted = replace(past(1), metric="sessions", started_at=began, detected_at=began + MINUTE)
        ledger.record(replace(SWEEP, at=AT - DAY), [shifted])
        say(ledger, "inc_1", "new-normal")
        found = why(SETTINGS, store, ledger, "sessions", P1, AT)
        (window,) = found.windows
        assert days_unused(window) == ["day2 not used: before the new normal (inc_1)"]
        assert window.days == {"day1": 1.0}
        assert [mask.id for mask in found.masked] == ["the new normal (inc_1)"]
        other = why(SETTINGS, store, ledger, "sessions", {"partner": "p2"}, AT)
        assert set(other.windows[0].days or {}) == {"day1", "day2"}
        before = why(SETTINGS, store, ledger, "sessions", P1, AT - DAY)
        assert days_unused(before.windows[0]) == []  # nobody had said so by then


def test_a_false_alarm_serves_as_a_reference_again(ledger: Ledger) -> None:
    """Yesterday p1 had three times as many sessions: a mask would leave nothing of that day."""
    more = (pl.col("partner") == "p1") & pl.col("today").not_()
    with shop(traffic(pl.when(more).then(24.0).otherwise(8.0), minutes=120)) as store:
        ended = AT - DAY + 130 * MINUTE
        whole = replace(past(2), started_at=AT - DAY - 130 * MINUTE, seen_at=ended, resolved_at=ended)
        ledger.record(replace(SWEEP, at=AT - MINUTE), [whole])
        hidden = why(SETTINGS, store, ledger, "sessions", P1, AT)
        say(ledger, "inc_1", "false")
        used = why(SETTINGS, store, ledger, "sessions", P1, AT)
    assert [window.days for window in (*hidden.windows, *used.windows)] == [{}, {"day1": 1.0}]
    assert ([mask.id for mask in hidden.masked], used.masked) == (["inc_1"], ())


def test_what_was_a_false_alarm_is_not_opened_again(ledger: Ledger) -> None:
    with shop(lower(50)) as store:
        look(store, ledger, 50, 43)
        (incident,) = ledger.incidents()
        say(ledger, incident.id, "false")
        assert "reopened" not in look(store, ledger, 42, 0)
    assert ledger.incident(incident.id).resolved_at == AT - 43 * MINUTE  # type: ignore[union-attr]


def test_looking_back_past_a_label_tells_nothing_twice(ledger: Ledger) -> None:
    with shop(lower(50)) as store:
        look(store, ledger, 50, 40)
        say(ledger, ledger.incidents()[0].id, "new-normal")
        before = ledger.incidents()
        assert look(store, ledger, 46, 41) == []
    assert ledger.incidents() == before


@contextlib.contextmanager
def lower_since(settings: Config, ago: int, detected: int) -> Iterator[Ledger]:
    """The ledger beside a store in which p1 is lower since so many minutes: one open incident, inc_1."""
    with EmbeddedStore(settings.resolve(settings.store), settings) as store:
        add(store, lower(ago))
    with Ledger.beside(settings.resolve(settings.store)) as ledger:
        times = {"started_at": AT - ago * MINUTE, "detected_at": AT - detected * MINUTE, "seen_at": AT}
        ledger.record(replace(SWEEP, at=AT), [replace(INCIDENT, metric="sessions", **times)])
        yield ledger


def test_the_page_says_that_a_new_normal_is_too_young(tmp_path: Path) -> None:
    settings = config(tmp_path)
    with lower_since(settings, 7, detected=5) as ledger:
        labels.say(settings, ledger, "inc_1", "new-normal", by="ann")
    told = []
    for where in (P1, {"partner": "p2"}):
        view = Feed(settings).view(replace(default(settings), where=where))
        told.append(facts(settings, "sessions", view))
    assert "too little since the new normal of 11:53 UTC" in told[0]
    assert "expected 3" in told[1]


def test_the_page_goes_by_the_labels(tmp_path: Path) -> None:
    settings = config(tmp_path)
    with lower_since(settings, 50, detected=45) as ledger:
        selection = replace(default(settings), where=P1)
        hidden = Feed(settings).view(selection).latest["sessions"]["expected"][0]
        labels.say(settings, ledger, "inc_1", "new-normal", by="ann")
        shown = Feed(settings).view(selection).latest["sessions"]["expected"][0]
    assert hidden == pytest.approx(360, rel=0.2)
    assert shown == pytest.approx(90, rel=0.2)
