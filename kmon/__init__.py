"""kmon: real-time anomaly monitoring of business metrics, from notebooks.

>>> import kmon
>>> config = kmon.load_config("kmon/templates/kmon.yaml")
>>> sorted(config.metrics)[:3]
['approval', 'authorizations', 'conversion']

Names are imported when they are first used, so that the command line answers at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kmon.config import Config, load_config
    from kmon.detect import detector, expected_series, series_detector, sweep
    from kmon.errors import KmonError
    from kmon.ledger import Incident, Ledger, open_ledger
    from kmon.reasons import Why, why
    from kmon.store import Store, connect, open, open_for_reading

__all__ = [
    "Config",
    "Incident",
    "KmonError",
    "Ledger",
    "Store",
    "Why",
    "connect",
    "detector",
    "expected_series",
    "load_config",
    "open",
    "open_for_reading",
    "open_ledger",
    "series_detector",
    "sweep",
    "why",
]

_HOMES = {
    "kmon.config": ("Config", "load_config"),
    "kmon.detect": ("detector", "expected_series", "series_detector", "sweep"),
    "kmon.errors": ("KmonError",),
    "kmon.ledger": ("Incident", "Ledger", "open_ledger"),
    "kmon.reasons": ("Why", "why"),
    "kmon.store": ("Store", "connect", "open", "open_for_reading"),
}


def __getattr__(name: str) -> Any:
    home = next((module for module, names in _HOMES.items() if name in names), None)
    if home is None:
        message = f"module 'kmon' has no attribute {name!r}"
        raise AttributeError(message)
    return getattr(importlib.import_module(home), name)
