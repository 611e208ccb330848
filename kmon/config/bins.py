"""How far back windows look for their references, and in how wide steps."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

RECENT = 24
"""Bins before the end of the window, today and of each day."""
BIN = dt.timedelta(minutes=5)
"""The least width of a bin, of which all are multiples."""


def bin_for(windows: Sequence[dt.timedelta]) -> dt.timedelta:
    """The width of a bin: the shortest window's, but half of the recent ones are as long as the longest window."""
    least = max(BIN, min(windows), -(-max(windows) // (RECENT // 2)))
    return -(-least // BIN) * BIN
