"""All of what detection must reach: on simulated traffic, on public labelled series and on real root causes."""

from __future__ import annotations

from kmon.bench import detect_rootcause, detect_series, detect_simulator
from kmon.bench.rows import Row
from kmon.bench.workplace import Options


def run(options: Options) -> list[Row]:
    """The quick parts first."""
    return [*detect_rootcause.run(options), *detect_series.run(options), *detect_simulator.run(options)]
