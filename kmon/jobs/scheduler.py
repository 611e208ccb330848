"""Runs the jobs of ``kmon.yaml`` when they are due: APScheduler keeps the time, `run_job` does the work."""

from __future__ import annotations

import datetime as dt
import logging
import threading
from collections import Counter
from collections.abc import Callable, Sequence

import structlog
from apscheduler.events import EVENT_JOB_ERROR, EVENT_JOB_MAX_INSTANCES, JobEvent
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.base import BaseTrigger

from kmon.config import Config
from kmon.errors import KmonError
from kmon.jobs.kernels import IMPORTS, KernelPool
from kmon.jobs.runner import run_job, utc_now
from kmon.ledger import Ledger

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
SLOW = 3
"""Runs left out while one goes on, from which on somebody should know; the next sweep makes up for them."""
_log = structlog.get_logger(__name__)


class Aligned(BaseTrigger):  # type: ignore[misc]
    """At once, and then at whole multiples of `every` since 1970 UTC: ``1m`` is due at :00 of each minute."""

    def __init__(self, every: dt.timedelta) -> None:
        self.every = every

    def get_next_fire_time(self, previous: dt.datetime | None, now: dt.datetime) -> dt.datetime:
        if previous is None:
            return now
        return _EPOCH + ((previous - _EPOCH) // self.every + 1) * self.every


class Scheduler:
    """Runs each job at once and then every `job.every`; a job never overlaps itself, missed runs are made up for once.

    A run that fails is in the ledger and the log, and is tried again when the job is due the next time.
    """

    def __init__(
        self,
        config: Config,
        ledger: Ledger,
        *,
        store: str | None = None,
        imports: Sequence[str] = IMPORTS,
        patience: dt.timedelta = dt.timedelta(seconds=5),
        clock: Callable[[], dt.datetime] = utc_now,
        on_end: Callable[[str, KmonError | None], None] | None = None,
    ) -> None:
        """`store` as in `run_job`; `imports` are the modules that kernels have ready.

        At the stop a running job gets `patience` to end before its kernel is killed. `on_end` is called with the name
        of the job and its error, if any, after each run, in that run's thread.
        """
        self._config, self._ledger, self._store, self._imports = config, ledger, store, imports
        self._patience, self._clock, self._on_end = patience, clock, on_end
        self._idle = threading.Condition()
        self._running = 0
        self._skipped: Counter[str] = Counter()  # runs left out while the last one goes on
        self._stopping = False
        self._live: tuple[BackgroundScheduler, KernelPool] | None = None

    def run(self, stop: threading.Event, look: Callable[[], None] | None = None) -> None:
        """Run jobs until `stop` is set; returns when no run and no kernel is left.

        `look` is called about every second, and may have the scheduler `follow` another configuration.
        """
        jobs = self._config.jobs
        folder = self._config.path.absolute().parent
        with KernelPool(min(2, len(jobs)), imports=self._imports, cwd=folder) as pool:
            scheduler = self._scheduler(pool)
            scheduler.start()
            self._live = scheduler, pool
            try:
                while not stop.wait(1):  # waking up now and then, or signals wait for ever
                    if look is not None:
                        look()
            finally:
                self._live = None
                with self._idle:
                    self._stopping = True
                scheduler.shutdown(wait=False)
                self._wait_until_idle(self._patience.total_seconds())
                pool.close("kmon was stopped during the run")
                self._wait_until_idle(10)

    def _scheduler(self, pool: KernelPool) -> BackgroundScheduler:
        # APScheduler's own logger stays silent: what it has to say arrives as events.
        silent = logging.getLogger("kmon.jobs.apscheduler")
        silent.addHandler(logging.NullHandler())
        scheduler = BackgroundScheduler(
            executors={"default": ThreadPoolExecutor(max(1, len(self._config.jobs)))},
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
            timezone=dt.UTC,
            logger=silent,
        )
        scheduler.add_listener(self._hear, EVENT_JOB_ERROR | EVENT_JOB_MAX_INSTANCES)
        for name, job in self._config.jobs.items():
            scheduler.add_job(self._run_one, Aligned(job.every), args=[name, pool], id=name, name=name)
        return scheduler

    def follow(self, config: Config) -> None:
        """Go by `config` from now on: what runs is not disturbed, what is new or due at other times is scheduled."""
        before, self._config = self._config.jobs, config
        if self._live is None:
            return
        scheduler, pool = self._live
        for name in before.keys() - config.jobs.keys():
            scheduler.remove_job(name)
        for name, job in config.jobs.items():
            if name not in before:
                scheduler.add_job(self._run_one, Aligned(job.every), args=[name, pool], id=name, name=name)
            elif job.every != before[name].every:
                scheduler.reschedule_job(name, trigger=Aligned(job.every))

    def _run_one(self, name: str, pool: KernelPool) -> None:
        with self._idle:
            if self._stopping:
                return
            self._running += 1
        self._skipped[name] = 0
        try:
            failure = self._try(name, pool)
            if self._on_end:
                self._on_end(name, failure)
        finally:
            with self._idle:
                self._running -= 1
                self._idle.notify_all()

    def _try(self, name: str, pool: KernelPool) -> KmonError | None:
        job = self._config.jobs.get(name)
        if job is None:  # it was taken out of kmon.yaml a moment ago
            return None
        try:
            run = run_job(name, job, self._config, self._ledger, pool, store=self._store, clock=self._clock)
        except KmonError as error:
            _log.warning("job failed", job=name, error=str(error))
            return error
        _log.debug("job ran", job=name, notebook=run.notebook)
        return None

    def _hear(self, event: JobEvent) -> None:
        if event.code == EVENT_JOB_MAX_INSTANCES:
            self._skipped[event.job_id] += 1
            if self._skipped[event.job_id] == SLOW:
                _log.warning("a run takes much longer than its schedule allows", job=event.job_id)
        else:
            _log.error("job raised an unexpected error", job=event.job_id, error=repr(event.exception))

    def _wait_until_idle(self, seconds: float) -> None:
        with self._idle:
            self._idle.wait_for(lambda: self._running == 0, seconds)
