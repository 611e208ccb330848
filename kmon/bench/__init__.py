"""The benchmarks: what kmon must reach, measured against a limit or a rival in the same run.

``kmon bench NAME`` runs one; ``docs/benchmarks.md`` and ``docs/detection.md`` keep the last figures. Each works in a
temporary folder.
"""

from __future__ import annotations

from collections.abc import Callable

from kmon.bench import (
    detect,
    detect_models,
    detect_rootcause,
    detect_series,
    detect_simulator,
    detect_speed,
    ingest,
    latency,
    query,
    soak,
    storage,
)
from kmon.bench.rows import Row, markdown, print_rows
from kmon.bench.workplace import Options, machine

__all__ = ["BENCHES", "Options", "Row", "machine", "markdown", "print_rows"]

BENCHES: dict[str, Callable[[Options], list[Row]]] = {
    "ingest": ingest.run,
    "latency": latency.run,
    "query": query.run,
    "storage": storage.run,
    "soak": soak.run,
    "detect": detect.run,
    "detect-models": detect_models.run,
    "detect-rootcause": detect_rootcause.run,
    "detect-series": detect_series.run,
    "detect-simulator": detect_simulator.run,
    "detect-speed": detect_speed.run,
}
"""By name; each returns its rows, whether or not the limits are kept."""
