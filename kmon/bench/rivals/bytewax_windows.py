"""Bytewax as its documentation shows it: a line is an item, and fold_window makes tumbling windows of ten seconds."""

import datetime as dt
import time

import bytewax.operators as op
import bytewax.operators.windowing as win
import orjson
from bytewax.connectors.files import FileSource
from bytewax.dataflow import Dataflow
from bytewax.testing import TestingSink, run_main
from task import MEASURES, add, arguments, key, measures, say


def main():
    given = arguments()
    clock = win.EventClock(
        ts_getter=lambda event: dt.datetime.fromisoformat(event["ts"]),
        wait_for_system_duration=dt.timedelta(seconds=30),
    )
    windower = win.TumblingWindower(length=dt.timedelta(seconds=10), align_to=dt.datetime(2026, 1, 1, tzinfo=dt.UTC))
    found = []
    flow = Dataflow("rollup")
    lines = op.input("lines", flow, FileSource(given.file, batch_size=given.batch))
    events = op.map("decode", lines, orjson.loads)
    keyed = op.key_on("cell", events, lambda event: "|".join(key(event)[1:]))
    folded = win.fold_window(
        "rollup",
        keyed,
        clock,
        windower,
        builder=lambda: (0,) * len(MEASURES),
        folder=lambda cell, event: add(cell, measures(event)),
        merger=add,
    )
    op.output("out", folded.down, TestingSink(found))
    begun = time.perf_counter()
    run_main(flow)
    seconds = time.perf_counter() - begun
    totals = (0,) * len(MEASURES)
    for _, (_, cell) in found:
        totals = add(totals, cell)
    say(seconds, totals)


main()
