"""Whether an open incident goes on, by the shortest window that can tell, on a real small store."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import polars as pl
import pytest

from kmon.config import Config
from kmon.detect import sweep
from kmon.explain import Cause
from kmon.incidents import Verdict, decide
from kmon.ledger import Incident
from kmon.recheck import Recheck
from tests.detect.worlds import AT, MINUTE, config, shop, traffic

P1 = pl.col("partner") == "p1"
SETTINGS = config(windows=["1m", "5m", "15m"])
USUAL = {"sessions": 8.0, "conversion": 0.5}


def since(began: int, until: int, ill: float, usual: float, then: float | None = None) -> pl.Expr:
    """`ill` at p1 from so many minutes ago until so many, then `then`."""
    ago = pl.col("ago")
    after = pl.when(P1 & pl.col("today") & (ago <= until)).then(usual if then is None else then).otherwise(usual)
    return pl.when(P1 & pl.col("today") & ago.is_between(until + 1, began)).then(ill).otherwise(after)


def incident(
    metric: str = "sessions", observed: float = 0.0, expected: float = 360.0, began: int = 20, **changes: Any
) -> Incident:
    """An open incident of p1, found in a window of five minutes."""
    direction, effect = "down" if observed < expected else "up", observed / expected - 1
    numbers = (observed, expected, 0.8 * expected, 1.2 * expected, 1e-9, effect, 50.0)
    cause = Cause(metric, {"partner": "p1"}, direction, 5 * MINUTE, "compare", *numbers, ())
    (decision,) = decide(SETTINGS, AT - began * MINUTE + 5 * MINUTE, [cause], [], lambda _: "unjudged")
    return replace(decision.incident, **changes)


def verdict(events: pl.DataFrame, known: Incident, settings: Config = SETTINGS) -> Verdict:
    with shop(events, settings) as store:
        found = sweep(store, settings, AT, masks=[known])
        return Recheck(store, settings, found)(known)


@pytest.mark.parametrize(
    ("until", "then", "says"),
    [
        (0, None, "abnormal"),  # it goes on
        (1, None, "normal"),  # a minute is enough: 72 sessions, and none before
        (10, None, "normal"),
        (10, 1.6, "abnormal"),  # a fifth is back
        (10, 6.4, "normal"),  # most is back
        (10, 4.0, "abnormal"),  # half of it
        (15, 0.0, "abnormal"),
    ],
)
def test_an_outage(until: int, then: float | None, says: str) -> None:
    events = traffic(since(20, until, 0.0, 8.0, then))
    assert verdict(events, incident()) == says


@pytest.mark.parametrize(
    ("metric", "ill", "observed", "expected"),
    [("sessions", 40.0, 1800.0, 360.0), ("sessions", 1.0, 45.0, 360.0), ("conversion", 0.1, 0.1, 0.5)],
)
@pytest.mark.parametrize(("until", "says"), [(0, "abnormal"), (6, "normal")])
def test_what_rose_or_fell(metric: str, ill: float, observed: float, expected: float, until: int, says: str) -> None:
    changes = {metric: since(20, until, ill, USUAL[metric])}
    assert verdict(traffic(**changes), incident(metric, observed, expected)) == says


@pytest.mark.parametrize(("until", "says"), [(0, "abnormal"), (2, "normal")])
def test_what_fell_by_half_is_over_by_what_three_sweeps_say_together(until: int, says: str) -> None:
    """The last minute says so with 7 to 1: long windows reach back, and are not asked."""
    assert verdict(traffic(since(20, until, 4.2, 8.0)), incident(observed=189.0)) == says


@pytest.mark.parametrize(("until", "says"), [(0, "abnormal"), (3, "abnormal"), (15, "normal")])
def test_a_small_monitor_is_judged_by_the_window_that_can_tell(until: int, says: str) -> None:
    """One session a minute: after three good minutes the quarter of an hour is still low."""
    small = pl.when(P1).then(since(30, until, 0.0, 1 / 9)).otherwise(8.0)
    assert verdict(traffic(small), incident(expected=5.0, began=30)) == says


@pytest.mark.parametrize(("ill", "says"), [(0.0, "abnormal"), (8.0, "normal"), (2.0, "abnormal"), (6.0, "normal")])
def test_what_has_outlasted_its_references_is_compared_with_its_beginning(ill: float, says: str) -> None:
    """It hides all of today's bins: the detector does not judge it any more."""
    known = incident(began=130)
    assert verdict(traffic(since(60, 0, ill, 8.0)), known) == says


@pytest.mark.parametrize(
    "changes",
    [
        {"metric": "gone"},
        {"scope": {"partner": "never seen"}},
        {"detector": "another"},
    ],
)
def test_what_nobody_looks_at_is_not_judged(changes: dict[str, Any]) -> None:
    assert verdict(traffic(), replace(incident(), **changes)) == "unjudged"


def test_a_quiet_source_says_nothing() -> None:
    silent = pl.when(pl.col("today") & (pl.col("ago") <= 20)).then(0.0).otherwise(8.0)
    assert verdict(traffic(silent), incident()) == "unjudged"


@pytest.mark.parametrize(("until", "says"), [(0, "abnormal"), (10, "normal")])
def test_a_scope_that_no_grouping_set_has_is_read_for_it(until: int, says: str) -> None:
    there = (pl.col("country") == "SE") & (pl.col("browser") == "edge")
    gone = pl.when(there & pl.col("today") & pl.col("ago").is_between(until + 1, 20)).then(0.0).otherwise(8.0)
    known = incident(expected=240.0, scope={"country": "SE", "browser": "edge"})
    assert verdict(traffic(gone), known) == says
