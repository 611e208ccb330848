"""One monitor over time, each bucket against what a sweep would have expected."""

from __future__ import annotations

import datetime as dt

import polars as pl
import pytest

from kmon.detect import Compare, expected_measures, expected_series, observe
from kmon.errors import UsageError
from kmon.store import EmbeddedStore
from tests.conftest import settle
from tests.detect.worlds import AT, DAY, MINUTE, Mask, config, shop, traffic

FIVE, HOUR = 5 * MINUTE, 60 * MINUTE
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


@pytest.mark.parametrize(("minutes", "rel"), [(1, 0.02), (5, 0.005), (10, 0.005), (15, 0.005)])
@pytest.mark.parametrize("metric", ["sessions", "conversion"])
def test_a_bucket_is_scored_as_a_sweep_scores_its_window(
    store: EmbeddedStore, metric: str, minutes: int, rel: float
) -> None:
    """But for the shape, which only a fleet tells."""
    width = minutes * MINUTE
    (shown,) = expected_series(store, config(), metric, WHERE, AT - width, AT, grain=width).rows(named=True)
    fleet = observe(store, config(), AT)
    alone = [pl.col("partner") == store.number("partner", "p1"), pl.col("country", "browser").is_null()]
    rows = fleet.monitors.with_row_index("row").filter(*alone)["row"].to_numpy()
    score = Compare().score(fleet.windows(config().metrics[metric], width, rows)).row(0, named=True)
    assert shown["observed"] == score["observed"]
    for name in ("expected", "lower", "upper"):
        assert shown[name] == pytest.approx(score[name], rel=rel), name


def test_what_is_shown_is_what_was(store: EmbeddedStore, events: pl.DataFrame) -> None:
    found = expected_series(store, config(), "sessions", WHERE, START, AT, grain=FIVE)
    starts = [START + n * FIVE for n in range(4)]
    assert found["bucket"].to_list() == [s.replace(tzinfo=None) for s in starts]
    assert found["observed"].to_list() == [count(events, s) for s in starts]
    assert found["yesterday"].to_list() == [count(events, s - DAY) for s in starts]
    assert found["expected"].to_list() == pytest.approx([9 * 8 * 5] * 4, rel=0.1)
    assert (found["lower"] < found["expected"]).all()
    assert (found["expected"] < found["upper"]).all()


def test_hours_are_shown_where_minutes_are_not_kept() -> None:
    with shop(traffic(days=(2, 1, 0))) as opened:
        settle(opened, config(), minutes=AT, hours=AT)
        found = expected_series(opened, config(), "sessions", WHERE, AT - DAY - HOUR, AT - DAY + HOUR, grain=HOUR)
    for name in ("observed", "yesterday"):
        assert found[name].to_list() == pytest.approx([9 * 8 * 60] * 2, rel=0.05), name
    assert found["expected"].null_count() == 0


def test_masked_minutes_are_no_references(events: pl.DataFrame) -> None:
    """An outage an hour ago, and one of yesterday at this time, pull nothing down once they are known."""
    now, then = (START - 10 * FIVE, START - 2 * FIVE), (START - DAY - 3 * FIVE, START - DAY + 3 * FIVE)
    masks = [Mask(WHERE, *now), Mask(WHERE, *then)]
    times = [[t.replace(tzinfo=None) for t in span] for span in (now, then)]
    gone = pl.any_horizontal(pl.col("event_time").is_between(*span, closed="left") for span in times)
    with shop(events.filter(~(gone & (pl.col("partner") == "p1")))) as ill:
        plain, masked = (
            expected_series(ill, config(), "sessions", WHERE, START, START + FIVE, grain=FIVE, masks=known)
            for known in ([], masks)
        )
    assert masked["expected"][0] == pytest.approx(9 * 8 * 5, rel=0.1)
    assert plain["expected"][0] < 0.7 * masked["expected"][0]
    assert masked["observed"][0] == count(events, START)
    assert masked["yesterday"][0] == 0  # it was so, incident or not


def test_a_gap_of_the_source_is_unknown_and_a_gap_of_the_partner_is_zero(events: pl.DataFrame) -> None:
    first, last = ((START + n * FIVE).replace(tzinfo=None) for n in (1, 2))
    gap = pl.col("event_time").is_between(first, last, closed="left")
    later = []
    for missing, observed in ((gap, None), (gap & (pl.col("partner") == "p1"), 0)):
        with shop(events.filter(~missing)) as store:
            found = expected_series(store, config(), "sessions", WHERE, START, AT, grain=FIVE)
        assert found["observed"][1] == observed
        assert (found["yesterday"] > 0).all()
        later.append(found["expected"][2])
    assert later[0] == pytest.approx(9 * 8 * 5, rel=0.1)
    assert later[1] < later[0] - 10  # nothing of p1 is something to learn from


def test_several_metrics_are_read_at_once(store: EmbeddedStore) -> None:
    both = expected_measures(store, config(), ["sessions", "orders"], WHERE, START, AT)
    alone = [expected_series(store, config(), m, WHERE, START, AT) for m in ("sessions", "orders")]
    assert [len(b) for b in both] == [20, 20]
    assert all(a.equals(b) for a, b in zip(alone, both, strict=True))


def test_an_empty_range_and_a_stranger(store: EmbeddedStore) -> None:
    assert expected_series(store, config(), "sessions", WHERE, AT, AT).is_empty()
    unknown = expected_series(store, config(), "conversion", {"partner": "nobody"}, START, AT)
    assert unknown["observed"].null_count() == 20
    nothing = expected_series(store, config(), "sessions", {"partner": "nobody"}, START, AT)
    assert (nothing["lower"] <= nothing["expected"]).all()
    assert (nothing["expected"] <= nothing["upper"]).all()


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
