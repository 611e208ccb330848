"""A process that produces events at a rate: ``python -m kmon.bench.producer ADDRESS RATE SECONDS``.

Every 50 ms it adds a marker, an event that is produced only to be looked for, and says on standard output: the
marker's number, when it was produced (the machine's monotonic clock), events so far, seconds behind schedule.
"""

from __future__ import annotations

import datetime as dt
import json
import queue
import sys
import threading
import time

from kmon.bench.stream import MARKER, TOPIC, flush, producer, send
from kmon.bench.traffic import Traffic

_CHUNK = 20_000
_TICK = 0.01
_MARKERS = 20.0
"""A second."""
_AHEAD = 2.0
"""Seconds until the first event, while events are made."""


def produce(address: str, rate: float, seconds: float) -> None:
    """Every tick, what is due by the clock; the events' own times are those at which they are produced."""
    begins = time.time() + _AHEAD
    ready: queue.Queue[list[bytes]] = queue.Queue(3)
    total = round(seconds * rate)
    traffic = Traffic(dt.datetime.fromtimestamp(begins, dt.UTC), rate)
    threading.Thread(target=_make, args=(traffic, total, ready), daemon=True).start()
    client = producer(address, linger=5)
    waiting = ready.get()
    time.sleep(max(0.0, begins - time.time()))
    begun, sent, marked = time.monotonic(), 0, 0
    while sent < total:
        now = time.monotonic() - begun
        due = min(total, int(now * rate))
        behind = max(0.0, now - (sent + 1) / rate) if due > sent else 0.0
        for _ in range(due - sent):
            waiting = waiting or ready.get()
            send(client, TOPIC, waiting.pop())
        sent = due
        if int(now * _MARKERS) > marked:
            marked = int(now * _MARKERS)
            when = time.monotonic()
            send(client, TOPIC, _marker(marked))
            print(marked, when, sent, round(behind, 4), flush=True)
        client.poll(0)
        time.sleep(max(0.0, _TICK - (time.monotonic() - begun - now)))
    flush(client)


def _make(traffic: Traffic, total: int, ready: queue.Queue[list[bytes]]) -> None:
    for first in range(0, total, _CHUNK):
        ready.put(traffic.lines(first, min(_CHUNK, total - first)).splitlines()[::-1])


def _marker(number: int) -> bytes:
    event = {
        "event_id": f"{MARKER}{number}",
        "ts": dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds"),
        "operation": "session",
        "status": "ok",
        "partner": f"{MARKER}{number:09d}",
        "country": "SE",
        "payment_method": "card",
        "browser": "chrome",
        "device": "mobile",
        "channel": "direct",
    }
    return json.dumps(event).encode()


if __name__ == "__main__":
    produce(sys.argv[1], float(sys.argv[2]), float(sys.argv[3]))
