"""Exact tails against scipy's own distributions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from kmon.detect.tails import Floats, beta_binomial, negative_binomial

MEANS, SPREADS = st.floats(0.01, 2000), st.floats(1e-4, 2.0)
SHARES = st.floats(0.001, 0.999)


def both(tail: Callable[..., Floats], *arguments: Floats) -> tuple[Floats, Floats]:
    """The lower and the upper one."""
    low = np.ones(len(arguments[0]), dtype=bool)
    return tail(*arguments, low), tail(*arguments, ~low)


def count(x: float, mean: float, excess: float) -> tuple[float, float]:
    lower, upper = both(negative_binomial, *(np.array([float(v)]) for v in (x, mean, excess)))
    return lower[0], upper[0]


def hits(x: float, trials: float, share: float, spread: float) -> tuple[float, float]:
    lower, upper = both(beta_binomial, *(np.array([float(v)]) for v in (x, trials, share, spread)))
    return lower[0], upper[0]


def mid(found: object, x: float) -> tuple[float, float]:
    """The tails of a scipy distribution, with half of what was observed in each."""
    half = found.pmf(x) / 2  # type: ignore[attr-defined]
    return found.cdf(x) - half, found.sf(x) + half  # type: ignore[attr-defined]


@given(st.integers(0, 5000), MEANS, SPREADS)
def test_a_count_is_negative_binomial(x: int, mean: float, excess: float) -> None:
    size = 1 / excess
    expected = mid(stats.nbinom(size, size / (size + mean)), x)
    assert count(x, mean, excess) == pytest.approx(expected, rel=1e-6, abs=1e-12)


@given(st.integers(0, 5000), MEANS)
def test_a_count_without_excess_is_poisson(x: int, mean: float) -> None:
    assert count(x, mean, 0.0) == pytest.approx(mid(stats.poisson(mean), x), rel=1e-3, abs=1e-6)


@given(st.integers(0, 400), st.integers(1, 400), SHARES, st.floats(1e-4, 0.9))
def test_hits_are_beta_binomial(x: int, trials: int, share: float, spread: float) -> None:
    x, size = min(x, trials), 1 / spread - 1
    expected = mid(stats.betabinom(trials, share * size, (1 - share) * size), x)
    assert hits(x, trials, share, spread) == pytest.approx(expected, rel=1e-4, abs=1e-8)


@given(st.integers(0, 400), st.integers(1, 400), SHARES)
def test_hits_without_spread_are_binomial(x: int, trials: int, share: float) -> None:
    x = min(x, trials)
    assert hits(x, trials, share, 0.0) == pytest.approx(mid(stats.binom(trials, share), x), rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("mean", [0.02, 1.0, 40.0, 1e6])
@pytest.mark.parametrize("excess", [0.0, 0.01, 1.0])
def test_half_of_what_was_observed_belongs_to_each_tail(mean: float, excess: float) -> None:
    x = np.arange(0.0, 200.0)
    lower, upper = both(negative_binomial, x, np.full(200, mean), np.full(200, excess))
    assert lower + upper == pytest.approx(1)
    assert (np.diff(lower) >= 0).all()
    assert (np.diff(upper) <= 0).all()
    assert ((lower >= 0) & (upper <= 1)).all()


@pytest.mark.parametrize("share", [0.001, 0.3, 0.5, 0.98])
@pytest.mark.parametrize(("trials", "spread"), [(1, 0.0), (200, 0.0), (200, 0.05), (40_000, 0.0), (40_000, 0.01)])
def test_more_hits_are_never_less_likely_low(share: float, trials: int, spread: float) -> None:
    """Also where sums in one range meet an approximation in another."""
    x = np.arange(trials + 1.0)
    lower, upper = both(beta_binomial, x, *(np.full(len(x), float(v)) for v in (trials, share, spread)))
    assert lower + upper == pytest.approx(1)
    assert (np.diff(lower) >= -1e-3).all()
    assert np.isclose(lower[:: max(1, trials // 50)], upper[::-1][:: max(1, trials // 50)]).all() or share != 0.5


@pytest.mark.parametrize(("share", "spread"), [(0.3, 0.001), (0.02, 0.002), (0.5, 1e-5), (0.97, 1e-6)])
def test_large_numbers_of_trials(share: float, spread: float) -> None:
    """The middle by a beta distribution, the tails by a sum of some hundred terms."""
    trials, size = 100_000, 1 / spread - 1
    a, b = share * size, (1 - share) * size
    truth, mirrored = stats.betabinom(trials, a, b), stats.betabinom(trials, b, a)
    for z in (-6, -3, -1, 0, 1, 3, 6):
        x = float(np.clip(round(trials * share + z * truth.std()), 0, trials))
        expected = (mid(truth, x)[0], mid(mirrored, trials - x)[0])  # scipy's own upper tail is 1 less the lower one
        assert hits(x, trials, share, spread) == pytest.approx(expected, rel=0.05, abs=1e-12)


@pytest.mark.parametrize(
    ("found", "log10"),
    [
        (count(0, 500, 0.0)[0], -500 / np.log(10)),
        (count(1500, 500, 0.0)[1], np.log10(stats.poisson(500).sf(1500))),
        (hits(0, 500, 0.5, 0.0)[0], 500 * np.log10(0.5)),
        (hits(500, 500, 0.5, 0.0)[1], 500 * np.log10(0.5)),
    ],
)
def test_far_out_a_tail_is_small_and_not_nothing(found: float, log10: float) -> None:
    assert np.log10(found) == pytest.approx(log10, abs=0.5)


@pytest.mark.parametrize(("trials", "share", "spread"), [(283, 0.5, 0.5), (10_000, 0.02, 0.05), (10_000, 0.97, 0.3)])
def test_no_hit_at_all_may_be_likely(trials: int, share: float, spread: float) -> None:
    """Where a rate varies much, the chance of none is no matter of a smooth curve."""
    size = 1 / spread - 1
    none = stats.betabinom(trials, share * size, (1 - share) * size).pmf(0)
    assert hits(0, trials, share, spread)[0] == pytest.approx(none / 2, rel=1e-3)


@pytest.mark.parametrize(("share", "spread"), [(0.0, 0.0), (0.3, 0.0), (1.0, 0.2), (0.5, 1.0)])
def test_nothing_of_nothing_says_nothing(share: float, spread: float) -> None:
    assert hits(0, 0, share, spread) == pytest.approx((0.5, 0.5))


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (count(1e9, 1e9, 0.0), 0.5),
        (count(1e9 - 2e5, 1e9, 0.0), stats.norm.cdf(-2e5 / np.sqrt(1e9))),
        (count(8e8, 1e9, 0.01), stats.gamma(100).cdf(80)),
        (hits(3e8, 1e9, 0.3, 0.0), 0.5),
        (hits(2.9e8, 1e9, 0.3, 1e-3), stats.beta(299.7, 699.3).cdf(0.29)),
    ],
)
def test_a_thousand_million(found: tuple[float, float], expected: float) -> None:
    assert found[0] == pytest.approx(expected, rel=0.02)
    assert found[0] + found[1] == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("x", [0.5, 1.25, 99.9])
def test_a_sum_of_money_lies_between_whole_numbers(x: float) -> None:
    below, at, above = (count(v, 50, 0.02)[0] for v in (np.floor(x), x, np.ceil(x)))
    assert below < at < above
