"""One monitor over time, against references computed by hand."""

from __future__ import annotations

import datetime as dt

import polars as pl
import pytest

from kmon.detect import Compare, expected_measures, expected_series
from kmon.errors import UsageError
from kmon.store import EmbeddedStore
from tests.detect.worlds import AT, DAY, MINUTE, Mask, config, shop, traffic, windows

FIVE = 5 * MINUTE
START = AT - 4 * FIVE
WHERE = {"partner": "p1"}


@pytest.fixture(scope="module")
def events() -> pl.DataFrame:
    return traffic()


@pytest.fixture(scope="module")
def store(events: pl.DataFrame) -> EmbeddedStore:
    return shop(events)


def count(events: pl.DataFrame, begin: dt.datetime, kind: str = "s", width: dt.timedelta = FIVE) -> float:
    first, last = (t.replace(tzinfo=None) for t in (begin, begin + width))
    mine = (
        (pl.col("partner") == "p1")
        & (pl.col("kind") == kind)
        & pl.col("event_time").is_between(first, last, closed="left")
    )
    return float(events.filter(mine).height)


def test_a_count_with_the_references_of_a_sweep(store: EmbeddedStore, events: pl.DataFrame) -> None:
    """No pooling to hide behind: every row is compared with what the detector says of references counted here."""
    found = expected_series(store, config(), "sessions", WHERE, START, AT, grain=FIVE)
    starts = [START + i * FIVE for i in range(4)]
    previous = [[count(events, s - k * FIVE) for k in range(6, 0, -1)] for s in starts]
    yesterday = [[count(events, s - DAY + k * FIVE) for k in range(-5, 6)] for s in starts]
    now = [count(events, s) for s in starts]
    by_hand = Compare().score(windows("count", now, previous, yesterday=yesterday))
    for column in ("observed", "expected", "lower", "upper"):
        assert found[column].to_list() == pytest.approx(by_hand[column].to_list())
    assert found["expected"][0] == pytest.approx((sum(previous[0]) / 6 + sum(yesterday[0]) / 11) / 2)
    assert found["yesterday"].to_list() == [count(events, s - DAY) for s in starts]
    assert found["bucket"].to_list() == [s.replace(tzinfo=None) for s in starts]


def test_a_rate_pools_its_references(store: EmbeddedStore, events: pl.DataFrame) -> None:
    found = expected_series(store, config(), "conversion", WHERE, START, START + FIVE, grain=FIVE)
    shares = []
    for first, last in ((START - 6 * FIVE, START), (START - DAY - 5 * FIVE, START - DAY + 6 * FIVE)):
        orders, sessions = (count(events, first, kind, last - first) for kind in ("o", "s"))
        shares.append(orders / sessions)
    assert found["expected"][0] == pytest.approx(sum(shares) / 2)
    assert found["observed"][0] == count(events, START, "o") / count(events, START)


def test_masked_minutes_are_no_references(store: EmbeddedStore, events: pl.DataFrame) -> None:
    known = Mask(WHERE, AT - 20 * FIVE, START - 2 * FIVE)
    found = expected_series(store, config(), "sessions", WHERE, START, START + FIVE, grain=FIVE, masks=[known])
    previous = [count(events, START - k * FIVE) for k in (1, 2)]
    yesterday = [count(events, START - DAY + k * FIVE) for k in range(-5, 6)]
    assert found["expected"][0] == pytest.approx((sum(previous) / 2 + sum(yesterday) / 11) / 2)
    assert found["observed"][0] == count(events, START)


def test_a_gap_of_the_source_is_unknown_and_a_gap_of_the_partner_is_zero(events: pl.DataFrame) -> None:
    first, last = ((START + n * FIVE).replace(tzinfo=None) for n in (1, 2))
    gap = pl.col("event_time").is_between(first, last, closed="left")
    for missing, observed in ((gap, None), (gap & (pl.col("partner") == "p1"), 0)):
        with shop(events.filter(~missing)) as store:
            found = expected_series(store, config(), "sessions", WHERE, START, AT, grain=FIVE)
        assert found["observed"][1] == observed
        previous = [count(events, START + n * FIVE) for n in range(-4, 2)]
        previous[-1] = 0
        used = previous if observed is not None else previous[:-1]
        yesterday = [count(events, START + 2 * FIVE - DAY + k * FIVE) for k in range(-5, 6)]
        assert found["expected"][2] == pytest.approx((sum(used) / len(used) + sum(yesterday) / 11) / 2)


def test_several_metrics_are_read_at_once(store: EmbeddedStore) -> None:
    both = expected_measures(store, config(), ["sessions", "orders"], WHERE, START, AT)
    alone = [expected_series(store, config(), m, WHERE, START, AT) for m in ("sessions", "orders")]
    assert [len(b) for b in both] == [20, 20]
    assert all(a.equals(b) for a, b in zip(alone, both, strict=True))


def test_an_empty_range_and_a_stranger(store: EmbeddedStore) -> None:
    assert expected_series(store, config(), "sessions", WHERE, AT, AT).is_empty()
    unknown = expected_series(store, config(), "conversion", {"partner": "nobody"}, START, AT)
    assert unknown["observed"].null_count() == 20


@pytest.mark.parametrize(
    ("metric", "where", "says"),
    [
        ("session", {}, "'session' is not a metric; did you mean 'sessions'?"),
        ("sessions", {"contry": "SE"}, "'contry' is not a dimension; did you mean 'country'?"),
        ("sessions", {"kind": "s"}, "the store has no dimension 'kind' yet: 'kmon reload' has kmon.yaml taken over"),
        ("bought", {}, "the store has no measure 'bought' yet: 'kmon reload' has kmon.yaml taken over"),
    ],
)
def test_a_name_that_the_store_does_not_know_is_told(store: EmbeddedStore, metric: str, where: dict, says: str) -> None:
    edited = config(
        dimensions=["partner", "country", "browser", "kind"],
        measures={**config().measures, "bought": "count(*)"},
        metrics={"sessions": {"count": "sessions"}, "bought": {"count": "bought"}},
    )
    with pytest.raises(UsageError) as caught:
        expected_series(store, edited, metric, where, START, AT)
    assert str(caught.value) == says
