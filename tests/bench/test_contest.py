"""Who runs when, and who counts."""

import sys

from kmon.bench import contest
from kmon.bench.contest import Contestant, Result
from kmon.bench.rows import markdown, missing, reaching, told, under
from kmon.errors import KmonError

EXPECTED = {10: {"orders": 3.0}}


def contestant(name, *seconds, orders=3.0):
    left = list(seconds)
    return Contestant(name, 10, lambda: Result(left.pop(0), {"orders": orders}))


def test_contestants_run_in_turn_and_the_best_run_counts():
    said = []
    standings = contest.hold([contestant("a", 2.0, 1.0), contestant("b", 5.0, 10.0)], EXPECTED, 2, said.append)
    assert said == ["a (1 of 2)", "b (1 of 2)", "a (2 of 2)", "b (2 of 2)"]
    assert {name: standing.rate for name, standing in standings.items()} == {"a": 10.0, "b": 2.0}


def test_nobody_wins_by_counting_less():
    standings = contest.hold([contestant("a", 1.0, orders=2.0)], EXPECTED, 3, lambda _: None)
    assert standings["a"].rate is None
    assert standings["a"].problem == "counted 2 orders instead of 3"


def test_a_contestant_that_fails_does_not_stop_the_others():
    def fail():
        message = "not here"
        raise KmonError(message)

    standings = contest.hold([Contestant("a", 10, fail), contestant("b", 1.0)], EXPECTED, 1, lambda _: None)
    assert standings["a"].problem == "not here"
    assert standings["b"].rate == 10.0


def test_a_rival_that_is_not_installed_says_how_to_install_it():
    standings = contest.hold(
        [Contestant("a", 10, lambda: contest.rival("none", "no_such_package"))], EXPECTED, 1, lambda _: None
    )
    assert standings["a"].problem == "not installed: 'make rivals' installs it"


def test_this_interpreter_serves_for_a_rival_that_it_has():
    assert contest.interpreter("duckdb") == sys.executable


def test_a_row_says_whether_its_limit_was_kept():
    fast, slow = reaching("r", 50.0, "events/s", 100.0, 0.3), under("l", 2.0, "s", 1.0)
    assert (fast.limit, fast.ratio, fast.ok) == (30.0, 0.5, True)
    assert (slow.limit, slow.ratio, slow.ok) == (1.0, 2.0, False)
    assert (told("t", 1.0, "s").ok, missing("m", "s", "why").value) == (None, None)
    assert "| l | 2 | s | 1 | 2 | NO |" in markdown([fast, slow])
