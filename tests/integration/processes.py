"""kmon's processes, as a person starts, watches and kills them."""

from __future__ import annotations

import json
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import psutil
import pytest

from tests.command import kmon


class Running:
    """A kmon process whose output and log can be waited for, line by line."""

    def __init__(self, process):
        self.process, self.log = process, []
        self._lines = {process.stdout: queue.Queue(), process.stderr: queue.Queue()}
        self.readers = [threading.Thread(target=self._read, args=[s], daemon=True) for s in self._lines]
        for reader in self.readers:
            reader.start()

    def _read(self, stream):
        for line in stream:
            self._lines[stream].put(line.rstrip("\n"))
            if stream is self.process.stderr:
                self.log.append(line)

    def line(self, pattern, seconds):
        """The first line on standard output that matches; fails with what was said instead."""
        return self._find(self.process.stdout, pattern, seconds)

    def logged(self, pattern, seconds):
        """The first line on standard error that matches; fails with what was said instead."""
        return self._find(self.process.stderr, pattern, seconds)

    def _find(self, stream, pattern, seconds):
        lines, said, deadline = self._lines[stream], [], time.monotonic() + seconds
        while time.monotonic() < deadline and (self.process.poll() is None or not lines.empty()):
            try:
                said.append(lines.get(timeout=0.2))
            except queue.Empty:
                continue
            if found := re.search(pattern, said[-1]):
                return found
        pytest.fail(f"no line like {pattern!r} in {seconds} s; said: {said} {self.log}; code {self.process.poll()}")

    def kill(self):
        """kill -9 of this process alone; returns its children."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        self.process.kill()
        self.process.wait(10)
        return children

    def part(self, name):
        """The process of one part."""
        return next(p for p in psutil.Process(self.process.pid).children(True) if ["--part", name] == p.cmdline()[4:6])


@contextmanager
def running(*arguments, cwd, code=0):
    """A kmon process that ends with exit code `code` on Ctrl-C, if it still runs, and leaves no child."""
    command = [sys.executable, "-m", "kmon", *map(str, arguments)]
    process = subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    started = Running(process)
    try:
        yield started
    finally:
        children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.send_signal(signal.SIGINT)
        ended = process.wait(timeout=60)
        alive = [child.name() for child in children if is_alive(child)]
        for reader in started.readers:
            reader.join(10)
            assert not reader.is_alive()
        process.stdout.close()
        process.stderr.close()
        assert (ended in (code, -signal.SIGKILL), alive) == (True, []), started.log


def is_alive(process):
    """Whether a process runs still; one that nobody waits for does not."""
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def wait_until(condition, seconds, what):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        threading.Event().wait(0.3)


def write(folder, count, **fields):
    """Append orders of now."""
    order = {"operation": "order", "status": "ok", "partner": "p1", **fields}
    with (folder / "in" / "a.ndjson").open("a", encoding="utf-8") as file:
        for _ in range(count):
            file.write(json.dumps({"ts": int(time.time() * 1000), **order}) + "\n")


def orders(folder):
    rows = kmon("query", "SELECT sum(orders)::INT AS n FROM rollup", "--format", "json", cwd=folder)
    return json.loads(rows.stdout)[0]["n"] if rows.returncode == 0 else None
