"""When jobs are due, and what the scheduler does about failing and running ones."""

from __future__ import annotations

import datetime as dt
import os
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from kmon.config import Config, parse_duration
from kmon.errors import JobError, KmonError
from kmon.jobs import Scheduler
from kmon.jobs.scheduler import Aligned
from kmon.ledger import Ledger

Ended = queue.Queue[tuple[str, KmonError | None]]


@contextmanager
def running(config: Config, ledger: Ledger, patience: float = 5) -> Iterator[tuple[Ended, threading.Event]]:
    """A scheduler in a thread of its own; stopped, and seen to have stopped, at the end."""
    ended: Ended = queue.Queue()
    stop = threading.Event()
    scheduler = Scheduler(
        config,
        ledger,
        imports=(),
        patience=dt.timedelta(seconds=patience),
        on_end=lambda name, error: ended.put((name, error)),
    )
    thread = threading.Thread(target=scheduler.run, args=[stop])
    thread.start()
    try:
        yield ended, stop
    finally:
        stop.set()
        thread.join(20)
        assert not thread.is_alive()


@pytest.mark.parametrize(
    ("every", "previous", "due"),
    [
        ("1m", None, "12:00:17"),
        ("1m", "12:00:17", "12:01:00"),
        ("1m", "12:01:00", "12:02:00"),
        ("5m", "12:01:00", "12:05:00"),
        ("1h", "12:59:59", "13:00:00"),
        ("10s", "12:00:00", "12:00:10"),
    ],
)
def test_jobs_are_due_at_once_and_then_at_whole_intervals(every: str, previous: str | None, due: str) -> None:
    def at(time: str) -> dt.datetime:
        return dt.datetime.fromisoformat(f"2026-03-29T{time}+00:00")

    trigger = Aligned(parse_duration(every))
    assert trigger.get_next_fire_time(at(previous) if previous else None, at("12:00:17")) == at(due)


def test_a_failing_job_is_recorded_and_tried_again(configure: Callable[..., Config], ledger: Ledger) -> None:
    config = configure(bad={"notebook": "fails.ipynb", "every": "1s"}, good={"notebook": "ok.ipynb", "every": "1h"})
    with running(config, ledger) as (ended, _):
        seen = [ended.get(timeout=30) for _ in range(3)]
    assert {name for name, error in seen if error is None} == {"good"}
    assert sum(isinstance(error, JobError) for _, error in seen) >= 2
    assert {(run.job, run.status) for run in ledger.runs()} >= {("bad", "failed"), ("good", "ok")}


def test_stopping_kills_a_run_that_does_not_end(
    configure: Callable[..., Config], ledger: Ledger, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "pipe")
    config = configure(slow={"notebook": "slow.ipynb", "params": {"pipe": "pipe"}})
    with running(config, ledger, patience=0.1) as (ended, stop):
        (tmp_path / "pipe").read_text()  # returns when the notebook is in its endless cell
        stop.set()
        name, error = ended.get(timeout=20)
    assert (name, type(error)) == ("slow", JobError)
    assert ledger.runs()[0].error == "kmon was stopped during the run"
    assert [p for p in psutil.process_iter(["cwd"]) if p.info["cwd"] == str(tmp_path)] == []
