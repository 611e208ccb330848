"""What a run leaves behind, whether it ends well or not."""

from __future__ import annotations

import ast
import datetime as dt
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from papermill.iorw import load_notebook_node

from kmon.config import Config
from kmon.errors import JobError, UsageError
from kmon.jobs import KernelPool, run_job
from kmon.ledger import Ledger, Run

Configure = Callable[..., Config]


def run(name: str, config: Config, ledger: Ledger, pool: KernelPool | None, **options: Any) -> Run:
    return run_job(name, config.jobs[name], config, ledger, pool, **options)


def said(run: Run) -> dict[str, Any]:
    """What ok.ipynb says it was given, from its executed notebook."""
    assert run.notebook
    cell = load_notebook_node(str(run.notebook)).cells[-1]
    result: dict[str, Any] = json.loads(ast.literal_eval(cell.outputs[0].data["text/plain"]))
    return result


def errors(notebook: str) -> list[str]:
    cells = load_notebook_node(str(notebook)).cells
    return [o.evalue for cell in cells for o in cell.get("outputs", []) if o.output_type == "error"]


def test_a_good_run_is_kept_and_recorded(
    configure: Configure, ledger: Ledger, pool: KernelPool, tmp_path: Path
) -> None:
    config = configure(ok={"notebook": "ok.ipynb", "params": {"partner": "p7"}})
    done = run("ok", config, ledger, pool)
    assert ledger.runs() == [done]
    assert (done.job, done.status, done.error) == ("ok", "ok", None)
    assert done.ended_at
    assert done.ended_at > done.started_at
    assert Path(done.notebook or "").parent == tmp_path / "runs" / "ok"
    given = said(done)
    assert (given["partner"], given["config_path"]) == ("p7", str(tmp_path / "kmon.yaml"))
    assert given["store"] == str(tmp_path / "kmon.duckdb")
    assert given["python"] == sys.executable


def test_without_a_pool_a_run_starts_a_kernel_of_its_own(configure: Configure, ledger: Ledger) -> None:
    config = configure(ok={"notebook": "ok.ipynb"})
    assert said(run("ok", config, ledger, None, store="quack:localhost:1"))["store"] == "quack:localhost:1"


def test_parameters_arrive_literally(configure: Configure, ledger: Ledger, pool: KernelPool) -> None:
    partner = "\"it's\" {pm}\n\\n <!channel> $x$ 🙂'; DROP TABLE runs; --"
    config = configure(ok={"notebook": "ok.ipynb", "params": {"partner": "overridden"}})
    assert said(run("ok", config, ledger, pool, params={"partner": partner}))["partner"] == partner


def test_a_folder_with_braces_is_a_folder(
    configure: Configure, ledger: Ledger, pool: KernelPool, tmp_path: Path
) -> None:
    config = configure(ok={"notebook": "ok.ipynb"})
    store = tmp_path / "{partner}" / "kmon.duckdb"
    done = run("ok", config, ledger, pool, store=str(store))
    assert Path(done.notebook or "").parent == store.parent / "runs" / "ok"


@pytest.mark.parametrize(
    ("notebook", "error"),
    [
        ("fails.ipynb", "ValueError: no data for <b>*p1*</b>"),
        ("dies.ipynb", "the kernel died with signal SIGKILL, as when memory runs out"),
        ("slow.ipynb", "it ran longer than its timeout of 1s and was stopped"),
    ],
)
def test_a_failed_run_keeps_its_evidence_and_raises(
    configure: Configure, ledger: Ledger, pool: KernelPool, notebook: str, error: str
) -> None:
    config = configure(job={"notebook": notebook, "timeout": "1s"})
    with pytest.raises(JobError, match="the job job failed") as raised:
        run("job", config, ledger, pool)
    failed = ledger.runs(job="job")[0]
    assert (failed.status, failed.error) == ("failed", error)
    assert failed.ended_at
    assert failed.notebook
    assert failed.notebook in str(raised.value)
    assert [" ".join(text.split()) for text in errors(failed.notebook)] == [error.removeprefix("ValueError: ")]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"partnr": 1}, "ok.ipynb has no parameter 'partnr'; did you mean 'partner'?"),
        ({"zzz": 1}, "ok.ipynb has no parameter 'zzz'; it has config_path, partner, store"),
    ],
)
def test_an_unknown_parameter_is_an_error_before_anything_runs(
    configure: Configure, ledger: Ledger, pool: KernelPool, params: dict[str, int], message: str
) -> None:
    config = configure(ok={"notebook": "ok.ipynb"})
    with pytest.raises(UsageError) as raised:
        run("ok", config, ledger, pool, params=params)
    assert str(raised.value) == message
    assert (ledger.runs()[0].error, ledger.runs()[0].notebook) == (message, None)


def test_a_missing_or_broken_notebook_is_a_failed_run(configure: Configure, ledger: Ledger, tmp_path: Path) -> None:
    (tmp_path / "broken.ipynb").write_text("{", encoding="utf-8")
    broken = str(tmp_path / "broken.ipynb")
    config = configure(missing={"notebook": "missing.ipynb"}, broken={"notebook": broken})
    for name, text in (("missing", r"missing.ipynb does not exist: .*'jobs.missing.notebook'"), ("broken", "JSON")):
        with pytest.raises(JobError, match=text):
            run(name, config, ledger, None)
        assert ledger.runs(job=name)[0].status == "failed"


def test_only_the_newest_notebooks_are_kept(configure: Configure, ledger: Ledger, pool: KernelPool) -> None:
    config = configure(ok={"notebook": "ok.ipynb", "keep": 2})
    folder = config.beside("runs") / "ok"
    folder.mkdir(parents=True)
    for day in ("2026-01-02", "2026-01-01", "2026-01-03"):
        (folder / f"{day}T00-00-00.000000Z.ipynb").touch()
    done = run("ok", config, ledger, pool)
    assert sorted(folder.iterdir()) == [folder / "2026-01-03T00-00-00.000000Z.ipynb", Path(done.notebook or "")]


def test_a_run_whose_process_was_killed_is_closed_by_the_next(
    configure: Configure, ledger: Ledger, pool: KernelPool
) -> None:
    config = configure(ok={"notebook": "ok.ipynb", "timeout": "1m"})
    now = dt.datetime.now(dt.UTC)
    alive = Run("run_alive", "ok", now, None, "running", None, None)
    ledger.save_run(alive)
    ledger.save_run(replace(alive, id="run_lost", started_at=now - dt.timedelta(hours=1)))
    run("ok", config, ledger, pool)
    status = {r.id: r.status for r in ledger.runs()}
    assert (status["run_lost"], status["run_alive"]) == ("failed", "running")


def test_nothing_is_printed_and_the_run_after_a_failed_one_is_fine(
    configure: Configure, ledger: Ledger, pool: KernelPool, capfd: pytest.CaptureFixture[str]
) -> None:
    config = configure(dies={"notebook": "dies.ipynb"}, ok={"notebook": "ok.ipynb"})
    with pytest.raises(JobError):
        run("dies", config, ledger, pool)
    assert run("ok", config, ledger, pool).status == "ok"
    assert capfd.readouterr() == ("", "")
