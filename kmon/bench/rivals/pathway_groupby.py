"""Pathway on both cores: the file is read as JSON lines, grouped by ten seconds and all dimensions, and not stored.

Pathway cuts its own batches. A second reduce sums the cells up for the check.
"""

import time

import pathway as pw
from task import DIMENSIONS, MEASURES, arguments, say


class Event(pw.Schema):
    ts: str
    operation: str
    status: str
    partner: str
    country: str
    payment_method: str
    browser: str
    device: str
    channel: str
    amount: float | None = pw.column_definition(default_value=None)


def counted(events):
    one = pw.cast(int, events.operation != "")
    authorization = events.operation == "authorization"
    ok = events.status == "ok"
    order = (events.operation == "order") & ok
    return events.select(
        *(events[name] for name in DIMENSIONS),
        bucket=events.ts.str.slice(0, 18),
        events=one,
        sessions=pw.cast(int, events.operation == "session"),
        authorizations=pw.cast(int, authorization),
        approved=pw.cast(int, authorization & ok),
        orders=pw.cast(int, order),
        errors=pw.cast(int, events.status == "error"),
        amount=pw.if_else(order, pw.coalesce(events.amount, 0.0), 0.0),
    )


def main():
    given = arguments()
    events = counted(pw.io.jsonlines.read(str(given.file), schema=Event, mode="static"))
    cells = events.groupby(events.bucket, *(events[name] for name in DIMENSIONS)).reduce(
        events.bucket,
        *(events[name] for name in DIMENSIONS),
        **{name: pw.reducers.sum(events[name]) for name in MEASURES},
    )
    pw.io.null.write(cells)
    totals = cells.reduce(**{name: pw.reducers.sum(cells[name]) for name in MEASURES})
    last = {}
    pw.io.subscribe(totals, on_change=lambda key, row, time, is_addition: last.update(row) if is_addition else None)
    begun = time.perf_counter()
    pw.run(monitoring_level=pw.MonitoringLevel.NONE)
    say(time.perf_counter() - begun, [last[name] for name in MEASURES])


main()
