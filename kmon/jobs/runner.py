"""One run of a scheduled notebook: parameters, papermill, evidence, record."""

from __future__ import annotations

import datetime as dt
import difflib
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import nbformat
import papermill
from papermill.exceptions import PapermillException, PapermillExecutionError

from kmon import resources
from kmon.config import Config, Job, show_duration
from kmon.errors import JobError, KmonError, UsageError
from kmon.jobs.kernels import Kernel, KernelPool, execute
from kmon.ledger import Ledger, Run, new_id
from kmon.store import SCHEME

_ABANDONED = dt.timedelta(minutes=5)
"""A run that is this much older than its timeout and still marked as running has lost its process."""
_LONGEST_ERROR = 500
_COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def utc_now() -> dt.datetime:
    """The wall clock."""
    return dt.datetime.now(dt.UTC)


def run_job(
    name: str,
    job: Job,
    config: Config,
    ledger: Ledger,
    pool: KernelPool | None = None,
    params: Mapping[str, Any] | None = None,
    *,
    store: str | None = None,
    clock: Callable[[], dt.datetime] = utc_now,
) -> Run:
    """Run the notebook of `job` once and return its record.

    The notebook gets `config_path` and `store` if it declares them, then the job's own parameters, then `params`.
    `store` is a path or ``quack:`` address and defaults to the configuration's. Without a `pool` the run starts a
    kernel of its own. A run that fails leaves its executed notebook and its record, then raises JobError (UsageError
    for a parameter that the notebook does not have).
    """
    run = Run(new_id("run"), name, clock(), None, "running", None, None)
    _close_abandoned(name, job, ledger, run.started_at)
    ledger.save_run(run)
    output = config.beside("runs", store) / name / f"{run.started_at.astimezone(dt.UTC):%Y-%m-%dT%H-%M-%S.%fZ}.ipynb"
    try:
        with _as_job_error():
            notebook = _find(name, job, config)
            parameters = _parameters(notebook, _standard(config, store), {**job.params, **(params or {})})
            output.parent.mkdir(parents=True, exist_ok=True)
            with _kernel(pool, config) as kernel, _deadline(kernel, job):
                execute(kernel, notebook, output, parameters)
    except BaseException as error:
        reason = one_line(str(error)) if isinstance(error, KmonError) else "interrupted"
        ledger.save_run(_ended(run, clock(), output, error=reason))
        if isinstance(error, JobError):
            message = f"the job {name} failed: {reason}" + (f"; see {output}" if output.exists() else "")
            raise JobError(message) from error
        raise
    finally:
        _prune(output.parent, job.keep)
    run = _ended(run, clock(), output)
    ledger.save_run(run)
    return run


def one_line(text: str) -> str:
    """The text of an error for a table: one line, no terminal colours, not endless."""
    line = " ".join(_COLOUR.sub("", text).split())
    return line if len(line) <= _LONGEST_ERROR else line[: _LONGEST_ERROR - 3] + "..."


def _standard(config: Config, store: str | None) -> dict[str, Any]:
    """What every job's notebook may ask for."""
    where = store or (config.store if config.store.startswith(SCHEME) else str(config.resolve(config.store)))
    where = where if where.startswith(SCHEME) else str(Path(where).absolute())
    return {"config_path": str(config.file), "store": where}


def _find(name: str, job: Job, config: Config) -> Path:
    try:
        return resources.notebook(config, job.notebook)
    except KmonError as error:
        message = f"{error}, or correct 'jobs.{name}.notebook' in {config.path}"
        raise JobError(message) from error


def _parameters(notebook: Path, standard: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters to set: the standard ones that the notebook declares, and all that are `given`."""
    declared = papermill.inspect_notebook(str(notebook).replace("{", "{{").replace("}", "}}"))
    for name in given:
        if name not in declared:
            close = difflib.get_close_matches(name, declared, n=1, cutoff=0.5)
            known = f"it has {', '.join(sorted(declared))}" if declared else "no cell of it is tagged 'parameters'"
            hint = f"did you mean {close[0]!r}?" if close else known
            message = f"{notebook.name} has no parameter {name!r}; {hint}"
            raise UsageError(message)
    return {name: value for name, value in standard.items() if name in declared} | dict(given)


@contextmanager
def _kernel(pool: KernelPool | None, config: Config) -> Iterator[Kernel]:
    own = KernelPool(0, imports=(), cwd=config.path.absolute().parent) if pool is None else nullcontext(pool)
    with own as kernels, kernels.kernel() as kernel:
        yield kernel


@contextmanager
def _deadline(kernel: Kernel, job: Job) -> Iterator[None]:
    reason = f"it ran longer than its timeout of {show_duration(job.timeout)} and was stopped"
    timer = threading.Timer(job.timeout.total_seconds(), kernel.kill, [reason])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def _as_job_error() -> Iterator[None]:
    """The seam to papermill, nbformat and the file system."""
    try:
        yield
    except PapermillExecutionError as error:
        message = error.evalue if error.ename == "KernelError" else f"{error.ename}: {error.evalue}"
        raise JobError(message) from error
    except (PapermillException, nbformat.ValidationError, OSError, ValueError) as error:
        message = f"{type(error).__name__}: {error}"
        raise JobError(message) from error


def _ended(run: Run, at: dt.datetime, output: Path, error: str | None = None) -> Run:
    notebook = str(output) if output.exists() else None
    return replace(run, ended_at=at, status="failed" if error else "ok", notebook=notebook, error=error)


def _close_abandoned(name: str, job: Job, ledger: Ledger, now: dt.datetime) -> None:
    """Runs whose process was killed stay marked as running; the next one says so."""
    for run in ledger.runs(job=name, limit=20):
        if run.status == "running" and run.started_at + job.timeout + _ABANDONED < now:
            ledger.save_run(replace(run, status="failed", ended_at=now, error="its process ended during the run"))


def _prune(folder: Path, keep: int) -> None:
    """Keep the newest `keep` executed notebooks; their names are their times."""
    for old in sorted(folder.glob("*.ipynb"))[:-keep]:
        with suppress(OSError):
            old.unlink()
