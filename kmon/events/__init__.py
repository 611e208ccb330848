"""The event contract: raw records in, typed events and rejects out, a whole batch at a time.

`decoder` tells the way of a batch; `lines` reads JSON, `tables` csv and parquet.
"""

from __future__ import annotations

from kmon.events.decoder import Decoded, Decoder
from kmon.events.records import KEEP, RECORD, Reject

__all__ = ["KEEP", "RECORD", "Decoded", "Decoder", "Reject"]
