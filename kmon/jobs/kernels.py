"""Kernels for papermill that are started ahead, with their imports done: a run then costs tenths of a second.

A kernel runs one notebook and is thrown away, so no run sees what another left behind. Kernels are the very Python
that runs kmon, whatever kernelspecs are installed, and end with the pool; where its process is killed, they notice
within a second (ipykernel's parent poller).
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self, TypeVar

import nbformat
import papermill
from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import KernelManager
from jupyter_core.utils import ensure_event_loop
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import Engine, NotebookExecutionManager, papermill_engines

from kmon.errors import JobError

IMPORTS = ("kmon", "kmon.watch")
"""What a warm kernel has imported already."""
START_TIMEOUT = 60
"""Seconds that a kernel may take to answer."""
IMPORT_TIMEOUT = 120
"""Seconds that the imports of a kernel may take."""
ENGINE = "kmon"
_LOG = logging.getLogger("kmon.jobs.kernels")
_LOG.addHandler(logging.NullHandler())  # nothing on stderr unless logging is configured: the run's record says it all
_T = TypeVar("_T")


class _Manager(KernelManager):
    """Starts this very Python, not what a kernelspec of the same name on this machine may point to."""

    @property
    def kernel_spec(self) -> KernelSpec:
        # Without frozen modules the debugger has nothing to warn of.
        argv = [sys.executable, "-Xfrozen_modules=off", "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=argv, display_name="kmon", language="python")


class Kernel:
    """One kernel process, for one notebook."""

    def __init__(self, folder: Path, cwd: Path | None = None) -> None:
        """Start the process; `folder` takes its connection file, `cwd` is where the notebook runs."""
        self.manager = _Manager(connection_file=str(folder / f"{uuid.uuid4().hex}.json"), log=_LOG)
        self.ended: str | None = None
        """Why kmon killed it, None where it did not."""
        self._closing, self._closed = threading.Lock(), False
        self.manager.start_kernel(
            cwd=cwd and str(cwd),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            extra_arguments=["--HistoryManager.hist_file=:memory:"],
        )
        self._process: subprocess.Popen[bytes] = self.manager.provisioner.process  # type: ignore[union-attr]

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def warm_up(self, imports: Sequence[str]) -> None:
        """Wait until it answers and import modules; one that fails to import is left for the notebook to report."""
        client = self.manager.client()
        client.start_channels()
        try:
            client.wait_for_ready(timeout=START_TIMEOUT)
            self._ask(client, "from kmon import logs as _logs; _logs.configure(); del _logs")
            for module in imports:
                reply = self._ask(client, f"__import__({module!r})")
                if reply["status"] != "ok":
                    _LOG.warning("%s could not be imported ahead: %s", module, reply.get("evalue"))
        finally:
            client.stop_channels()
        self.manager.client_factory = AsyncKernelClient  # what nbclient needs in order to notice a death

    def _ask(self, client: BlockingKernelClient, code: str) -> dict[str, Any]:
        """The reply to `code`, run silently: it leaves no name, no output and no execution count."""
        asked, deadline = client.execute(code, silent=True), time.monotonic() + IMPORT_TIMEOUT
        while self.alive and time.monotonic() < deadline:
            with suppress(queue.Empty):
                reply = client.get_shell_msg(timeout=0.5)
                if reply["parent_header"].get("msg_id") == asked:
                    content: dict[str, Any] = reply["content"]
                    return content
        message = f"no answer to {code}"
        raise RuntimeError(message)

    def kill(self, reason: str) -> None:
        """End it and all that it started at once, from any thread; the run that uses it fails with `reason`."""
        if self.alive:
            self.ended = self.ended or reason
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    def wait(self, seconds: float) -> None:
        """Until the process has ended, at most `seconds`."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)

    def close(self) -> None:
        """Ask it to end, unless it was killed, and remove what it left: processes and files."""
        with self._closing:  # its user and the pool may both want to
            if not self._closed:
                self._closed = True
                self.manager.shutdown_kernel(now=bool(self.ended))
                with suppress(ProcessLookupError, PermissionError):  # what the notebook started was not asked
                    os.killpg(self.pid, signal.SIGKILL)

    @property
    def death(self) -> str:
        """Why it is not alive, in a sentence."""
        code = self._process.poll()
        if code is None:
            return "the kernel does not answer"
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        hint = ", as when memory runs out" if code == -signal.SIGKILL else ""
        return self.ended or f"the kernel died with {how}{hint}"


class KernelPool:
    """`size` kernels kept warm; with 0 each run starts its own. A context manager: nothing outlives it."""

    def __init__(self, size: int = 1, *, imports: Sequence[str] = IMPORTS, cwd: Path | None = None) -> None:
        self._size, self._imports, self._cwd = size, tuple(imports), cwd
        self._folder = tempfile.TemporaryDirectory(prefix="kmon-kernels-", ignore_cleanup_errors=True)
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="kmon-kernels")
        self._lock = threading.RLock()
        self._slots: deque[Future[Kernel]] = deque()
        self._kernels: set[Kernel] = set()
        self._closed: str | None = None
        self._refill()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def kernel(self) -> Iterator[Kernel]:
        """A kernel for one run, warm where one is ready. Afterwards it is replaced, in the background."""
        kernel = self._take()
        try:
            yield kernel
        finally:
            self._refill()  # first: the next run waits for this, nobody for the other's end
            self._drop(kernel)

    def ready(self, timeout: float = START_TIMEOUT) -> list[int]:
        """The process ids of the warm kernels, after waiting at most `timeout` seconds for those being started."""
        with self._lock:
            slots = list(self._slots)
        done = wait(slots, timeout).done
        return [slot.result().pid for slot in slots if slot in done and not slot.exception() and slot.result().alive]

    def close(self, reason: str = "kmon was stopped during the run") -> None:
        """Kill all kernels, those in use too: their runs fail with `reason`."""
        with self._lock:
            if self._closed:
                return
            self._closed = reason
            kernels = list(self._kernels)
        for kernel in kernels:
            kernel.kill(reason)
        for kernel in kernels:
            self._threads.submit(_with_own_loop, kernel.close)
        self._threads.shutdown(wait=True)
        self._folder.cleanup()

    def _take(self) -> Kernel:
        while True:
            with self._lock:
                self._check_open()
                ahead = bool(self._slots)
                slot = self._slots.popleft() if ahead else self._threads.submit(_with_own_loop, self._start)
            try:
                kernel = slot.result()
            except (JobError, CancelledError):
                self._check_open()
                if not ahead:
                    raise
                continue  # what went wrong ahead may have passed: start one now
            if kernel.alive:
                return kernel
            self._drop(kernel)

    def _check_open(self) -> None:
        if self._closed:
            raise JobError(self._closed)

    def _refill(self) -> None:
        with self._lock:
            while not self._closed and len(self._slots) < self._size:
                self._slots.append(self._threads.submit(_with_own_loop, self._start))

    def _start(self) -> Kernel:
        try:
            with self._lock:  # closing waits for this moment, so that it knows every process
                self._check_open()
                kernel = Kernel(Path(self._folder.name), self._cwd)
                self._kernels.add(kernel)
        except OSError as error:
            message = f"no kernel can be started: {error}"
            raise JobError(message) from error
        try:
            kernel.warm_up(self._imports)
        except Exception as error:  # RuntimeError, queue.Empty, zmq's own: whatever it is, this kernel is no use
            message = f"no kernel can be started: {kernel.death}"
            kernel.kill(message)
            self._discard(kernel)
            raise JobError(message) from error
        return kernel

    def _drop(self, kernel: Kernel) -> None:
        with self._lock:
            if not self._closed:  # closing drops them all
                self._threads.submit(_with_own_loop, self._discard, kernel)

    def _discard(self, kernel: Kernel) -> None:
        kernel.close()
        with self._lock:
            self._kernels.discard(kernel)


class _KernelEngine(Engine):  # type: ignore[misc]
    """Runs a notebook in the kernel it is handed; where that one dies, the notebook says why."""

    @classmethod
    def execute_managed_notebook(
        cls, nb_man: NotebookExecutionManager, _kernel_name: str, *, kernel: Kernel, **_: Any
    ) -> None:
        client = PapermillNotebookClient(
            nb_man, km=kernel.manager, log=_LOG, startup_timeout=START_TIMEOUT, iopub_timeout=START_TIMEOUT
        )
        try:
            client.execute()
        except (RuntimeError, TimeoutError) as error:  # nbclient's DeadKernelError and CellTimeoutError
            kernel.wait(1)
            _keep_error(nb_man, kernel.death if not kernel.alive else str(error))
        finally:
            if client.kc:
                client.kc.stop_channels()


def _keep_error(nb_man: NotebookExecutionManager, reason: str) -> None:
    """Write the reason as an error into the cell that was running, as if the cell had raised it."""
    cells = [cell for cell in nb_man.nb.cells if cell.cell_type == "code"]
    if not cells:
        raise JobError(reason)
    cell = next((cell for cell in reversed(cells) if cell.metadata.papermill.get("start_time")), cells[0])
    error = {"output_type": "error", "ename": "KernelError", "evalue": reason, "traceback": [reason]}
    cell.outputs.append(nbformat.from_dict(error))  # type: ignore[no-untyped-call]
    nb_man.cell_exception(cell)


def execute(kernel: Kernel, notebook: Path, output: Path, parameters: dict[str, Any]) -> None:
    """papermill's execute_notebook in `kernel`, without its progress bar; raises what that raises."""
    papermill_engines.register(ENGINE, _KernelEngine)
    # papermill fills {placeholders} in paths: a brace in ours is a brace.
    paths = [str(path).replace("{", "{{").replace("}", "}}") for path in (notebook, output)]
    options = {"engine_name": ENGINE, "kernel_name": "python3", "language": "python", "progress_bar": False}
    with ThreadPoolExecutor(1, thread_name_prefix="kmon-run") as thread:
        work = thread.submit(
            _with_own_loop, lambda: papermill.execute_notebook(*paths, parameters, kernel=kernel, **options)
        )
        try:
            while not wait([work], 1).done:  # waking up now and then, or Ctrl-C is seen only at the end
                pass
            work.result()
        except KeyboardInterrupt:
            kernel.kill("interrupted")  # or leaving this block would wait for the notebook's end
            raise


def _with_own_loop(work: Callable[..., _T], *args: Any) -> _T:
    """`work` for a thread of its own: jupyter_client needs an event loop, and the caller's is not ours to use."""
    try:
        return work(*args)
    finally:
        ensure_event_loop().close()  # jupyter_client makes one per thread and leaves it open
