"""The pool: warm, replaced, and gone when it is closed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from papermill.iorw import load_notebook_node

from kmon.errors import JobError
from kmon.jobs import KernelPool
from kmon.jobs.kernels import execute

NOTEBOOKS = Path(__file__).parent / "notebooks"


def test_the_second_run_gets_the_kernel_that_was_warmed_meanwhile() -> None:
    with KernelPool(1, imports=()) as pool:
        (first,) = pool.ready()
        with pool.kernel() as kernel:
            assert kernel.pid == first
        (second,) = pool.ready()
        assert second != first
        with pool.kernel() as kernel:
            assert kernel.pid == second
            assert kernel.alive


def test_a_killed_warm_kernel_is_replaced_and_never_used() -> None:
    with KernelPool(1, imports=()) as pool:
        (victim,) = pool.ready()
        os.kill(victim, signal.SIGKILL)
        psutil.wait_procs([psutil.Process(victim)], timeout=5)
        assert pool.ready() == []
        with pool.kernel() as kernel:
            assert kernel.alive
            assert kernel.pid != victim
        assert len(pool.ready()) == 1


def test_imports_are_done_ahead_and_leave_no_names(tmp_path: Path) -> None:
    output = tmp_path / "out.ipynb"
    with KernelPool(1, imports=("colorsys", "no_such_module")) as pool, pool.kernel() as kernel:
        execute(kernel, NOTEBOOKS / "imported.ipynb", output, {})
    (cell,) = load_notebook_node(str(output)).cells
    assert cell.outputs[0].data["text/plain"] == "[True, False]"
    assert cell.execution_count == 1


def test_closing_kills_kernels_that_are_idle_in_use_and_starting() -> None:
    pool = KernelPool(2, imports=())
    idle = pool.ready()
    with pool.kernel() as used, pool.kernel():
        pool.close("the test is over")
        assert used.death == "the test is over"
        assert not any(map(psutil.pid_exists, idle))
    with pytest.raises(JobError, match="the test is over"), pool.kernel():
        pass


def test_a_pool_may_be_closed_while_it_warms_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "endless.py").write_text("open('pipe', 'w').close()\nimport threading\nthreading.Event().wait()")
    with KernelPool(1, imports=["endless"], cwd=tmp_path) as pool:
        (tmp_path / "pipe").read_text()  # returns when the kernel is in the midst of its import
    assert pool.ready() == []
    assert [p for p in psutil.process_iter(["cwd"]) if p.info["cwd"] == str(tmp_path)] == []


def test_kernels_end_when_their_parent_is_killed() -> None:
    code = "from kmon.jobs import KernelPool\nprint(*KernelPool(1, imports=()).ready(), flush=True)\ninput()"
    parent = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert parent.stdout
    kernel = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.communicate()
    gone, _ = psutil.wait_procs([kernel], timeout=10)
    assert gone == [kernel]
