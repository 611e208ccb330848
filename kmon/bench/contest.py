"""Contestants that do the same work in turn, so that a slow minute of the machine is everybody's."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from kmon import environment
from kmon.bench.workplace import Say
from kmon.errors import KmonError

RIVALS = Path(__file__).with_name("rivals")
HOW = "not installed: 'make rivals' installs it"
_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Result:
    """One run."""

    seconds: float
    totals: Mapping[str, float]
    """Of the measures; empty where nothing is counted."""


@dataclass(frozen=True)
class Contestant:
    """Somebody who takes up `events` events."""

    name: str
    events: int
    run: Callable[[], Result]


@dataclass(frozen=True)
class Standing:
    """How a contestant did."""

    rate: float | None
    """Events a second in the best run; None where it did not finish, and `problem` says why."""
    problem: str = ""


def hold(
    contestants: Sequence[Contestant], expected: Mapping[int, Mapping[str, float]], repeats: int, say: Say
) -> dict[str, Standing]:
    """Run all in turn, `repeats` times; who counts other than `expected` (by number of events) has no rate."""
    standings: dict[str, Standing] = {}
    for number in range(repeats):
        for one in contestants:
            if standings.get(one.name, Standing(0)).rate is None:
                continue
            say(f"{one.name} ({number + 1} of {repeats})")
            standings[one.name] = _better(standings.get(one.name), _once(one, expected))
    return standings


def _once(one: Contestant, expected: Mapping[int, Mapping[str, float]]) -> Standing:
    try:
        result = one.run()
    except KmonError as error:
        return Standing(None, str(error))
    wrong = [
        f"counted {result.totals[name]:g} {name} instead of {value:g}"
        for name, value in expected[one.events].items()
        if result.totals and abs(result.totals[name] - value) > _TOLERANCE * max(1.0, abs(value))
    ]
    return Standing(None, "; ".join(wrong)) if wrong else Standing(one.events / result.seconds)


def _better(before: Standing | None, now: Standing) -> Standing:
    if before is None or before.rate is None or now.rate is None:
        return now
    return max(before, now, key=lambda standing: standing.rate or 0.0)


# ---- rivals ----------------------------------------------------------------------------------------------------------


def interpreter(package: str) -> str | None:
    """A Python that has the rival's package: of 'make rivals' in a checkout, or this one."""
    made = Path(__file__).parents[2] / ".cache" / "rivals" / "bin" / "python"
    test = f"import importlib.util as u, sys; sys.exit(u.find_spec({package!r}) is None)"
    for python in (str(made), sys.executable):
        if Path(python).exists() and subprocess.run([python, "-c", test], check=False).returncode == 0:
            return python
    return None


def rival(script: str, package: str, *options: str | Path) -> Result:
    """One run of ``rivals/<script>.py``; KmonError where the rival is not installed or fails."""
    python = interpreter(package)
    if python is None:
        raise KmonError(HOW)
    with TemporaryDirectory(prefix="kmon-bench-rival-", ignore_cleanup_errors=True) as folder:
        command = [python, "-W", "ignore", RIVALS / f"{script}.py", "--folder", folder, *options]
        try:
            done = subprocess.run(
                command, env=environment.for_rival(), capture_output=True, check=False, timeout=900, text=True
            )
        except subprocess.TimeoutExpired as error:
            message = "did not finish in 15 minutes"
            raise KmonError(message) from error
    lines = done.stdout.strip().splitlines()
    try:
        said = json.loads(lines[-1] if lines else "")
    except ValueError as error:
        last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
        message = f"failed: {last[:200]}"
        raise KmonError(message) from error
    return Result(said["seconds"], said["totals"])
