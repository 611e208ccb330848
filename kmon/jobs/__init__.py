"""Scheduled notebooks: papermill in warm kernels, on a schedule, with a history in the ledger.

`runner.run_job` is one run, from its parameters to its record; `kernels.KernelPool` keeps kernels ready;
`scheduler.Scheduler` runs the jobs of ``kmon.yaml`` when they are due. papermill takes seconds to import: so do these.
"""

from __future__ import annotations

from kmon.jobs.kernels import Kernel, KernelPool
from kmon.jobs.runner import run_job
from kmon.jobs.scheduler import Scheduler

__all__ = ["Kernel", "KernelPool", "Scheduler", "run_job"]
