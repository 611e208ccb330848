"""All of what detection must reach: on public labelled series, on real root causes, on simulated traffic, in time."""

from __future__ import annotations

from kmon.bench import detect_rootcause, detect_series, detect_simulator, detect_speed
from kmon.bench.rows import Row
from kmon.bench.workplace import Options


def run(options: Options) -> list[Row]:
    """The quick parts first."""
    parts = (detect_rootcause, detect_series, detect_speed, detect_simulator)
    return [row for part in parts for row in part.run(options)]
