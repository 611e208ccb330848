"""The metrics of labelled series, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from kmon.bench import nab
from kmon.bench.segments import Pool


def pool(scores, labels, k=7, days=1.0):
    return Pool.of([(np.array(scores, float), np.array(labels, bool), days)], k)


@pytest.mark.parametrize(
    ("scores", "labels", "point", "event", "alarms"),
    [
        # found by its second point: all three count
        ([0, 0, 1, 0, 0], [0, 1, 1, 1, 0], 1, 1, 0),
        # one of two segments, of 1 and 3 points: 2 x 3 / (2 x 3 + 1)
        ([0, 0, 1, 0, 0], [1, 0, 1, 1, 1], 6 / 7, 2 / 3, 0),
        # a run of two false points is two points and one alarm
        ([1, 1, 0, 1, 0], [0, 0, 0, 1, 0], 2 / 4, 2 / 3, 1),
        # a run that a segment interrupts is two runs
        ([1, 1, 1], [0, 1, 0], 2 / 4, 2 / 4, 2),
        ([0, 0], [0, 1], 0, 0, 0),
        ([np.nan, 1], [0, 1], 1, 1, 0),
    ],
)
def test_points_and_events(scores, labels, point, event, alarms):
    found = pool(scores, labels).at(0.5)
    assert (found.point_f1, found.event_f1, found.false_alarms) == pytest.approx((point, event, alarms))


@pytest.mark.parametrize(("at", "found"), [(7, 1.0), (8, 0.0)])
def test_a_segment_is_found_within_seven_points_of_its_first(at, found):
    scores = np.zeros(20)
    scores[at] = 1
    assert pool(scores, np.ones(20)).at(0.5).recall == found


def test_series_are_pooled():
    one = (np.array([1.0, 0]), np.array([True, False]), 2.0)
    other = (np.array([0.0, 1]), np.array([True, False]), 3.0)
    found = Pool.of([one, other]).at(0.5)
    assert found.event_f1 == 0.5
    assert found.false_alarms == pytest.approx(1 / 5)


def test_the_best_threshold_keeps_to_the_false_alarms():
    scores, labels = [9, 0, 5, 0, 6, 0, 3, 3], [1, 0, 1, 0, 0, 0, 1, 1]
    assert pool(scores, labels).best("event_f1") == 3
    assert pool(scores, labels).best("event_f1", most=0.5) == 9
    assert pool([0, 1], [1, 0]).best("event_f1", most=0.5) == np.inf


def test_a_window_of_nab_earns_by_its_earliest_detection_and_once():
    worth = nab.Worth.of(100, [(50, 59)])
    assert worth.point[50] == pytest.approx(1)
    assert 0 < worth.point[59] < worth.point[55] < 1
    scores = np.zeros(100)
    scores[[50, 55]] = 1
    assert nab.score([(worth, scores)], 0.5) == pytest.approx(100)
    scores[50] = 0
    assert nab.score([(worth, scores)], 0.5) == pytest.approx(50 * (1 + worth.point[55]))


def test_a_false_detection_of_nab_costs_less_just_behind_a_window():
    worth = nab.Worth.of(100, [(50, 59)])
    assert worth.point[30] == -0.11
    assert -0.11 < worth.point[60] < 0
    assert worth.point[99] == -0.11
    scores = np.zeros(100)
    scores[[50, 30]] = 1
    assert nab.score([(worth, scores)], 0.5) == pytest.approx(100 - 50 * 0.11)
    assert nab.score([(worth, scores)], 2) == 0


def test_the_probation_of_nab_counts_nothing():
    worth = nab.Worth.of(10_000, [(5000, 5010)])
    assert (worth.window[:750] == -2).all()
    assert worth.window[750] == -1
    scores = np.zeros(10_000)
    scores[:750] = 1
    assert nab.score([(worth, scores)], 0.5) == 0


def test_the_best_threshold_of_nab_is_found_among_equal_scores():
    worth = nab.Worth.of(100, [(50, 59)])
    scores = np.zeros(100)
    scores[[50, 30, 31]] = [2, 3, 3]
    top, threshold = nab.best([(worth, scores)])
    assert threshold == 2
    assert top == pytest.approx(nab.score([(worth, scores)], 2)) == pytest.approx(100 - 2 * 50 * 0.11)
    scores[50] = 0
    assert nab.best([(worth, scores)]) == (0, np.inf)
