"""How much more residuals vary than chance alone."""

from __future__ import annotations

import numpy as np
import pytest

from kmon.detect.dispersion import overdispersion, overdispersions


@pytest.mark.parametrize("excess", [0.0, 0.02, 0.3])
def test_overdispersion_is_found_by_moments_and_robustly(excess: float) -> None:
    rng = np.random.default_rng(3)
    mean = rng.gamma(2, 100, 20_000)
    off = rng.poisson(mean * (rng.gamma(1 / excess, excess, 20_000) if excess else 1)) - mean
    off[:200] = -mean[:200]  # an outage of one in a hundred
    assert overdispersion(off**2, mean, mean**2, most=1.0) == pytest.approx(excess, rel=0.25, abs=0.002)


@pytest.mark.parametrize(("squares", "found"), [([], 0.1), ([np.nan], 0.1), ([0.0] * 50, 0.0), ([1e9] * 50, 1.0)])
def test_overdispersion_of_little_is_what_was_guessed(squares: list[float], found: float) -> None:
    ones = np.ones(len(squares))
    assert overdispersion(np.array(squares), ones, ones, most=1.0, guess=0.1) == pytest.approx(found)


def test_each_group_has_its_own_overdispersion_whatever_the_order() -> None:
    rng = np.random.default_rng(5)
    mean, group = rng.gamma(2, 100, 40_000), rng.integers(0, 2, 40_000).astype(np.uint16)
    excess = np.array([0.02, 0.3])[group]
    squares = (rng.poisson(mean * rng.gamma(1 / excess, excess)) - mean) ** 2
    each = overdispersions(squares, mean, mean**2, group, 2, most=1.0)
    assert each == pytest.approx([0.02, 0.3], rel=0.25)
    back = [values[::-1] for values in (squares, mean, mean**2, group)]
    assert overdispersions(*back, 2, most=1.0) == pytest.approx(each, rel=0.05)
