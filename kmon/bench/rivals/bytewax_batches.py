"""Bytewax with a batch as the item: each is decoded and rolled up by itself, then merged into one state.

Epochs last an hour, and nothing is on disk. The state is not emitted window by window but at the end.
"""

import datetime as dt
import time

import bytewax.operators as op
import orjson
from bytewax.dataflow import Dataflow
from bytewax.inputs import DynamicSource, StatelessSourcePartition
from bytewax.testing import TestingSink, run_main
from task import MEASURES, add, arguments, batches, key, measures, say


class Batches(DynamicSource):
    def __init__(self, path, size):
        self.path, self.size = path, size

    def build(self, step_id, worker_index, worker_count):
        return _Part(batches(self.path, self.size))


class _Part(StatelessSourcePartition):
    def __init__(self, all_batches):
        self.all_batches = all_batches

    def next_batch(self):
        return [next(self.all_batches)]  # StopIteration is how a source ends


def rolled_up(lines):
    cells = {}
    for line in lines:
        event = orjson.loads(line)
        cell, mine = key(event), measures(event)
        known = cells.get(cell)
        cells[cell] = mine if known is None else add(known, mine)
    return cells


def merge(state, cells):
    for cell, mine in cells.items():
        known = state.get(cell)
        state[cell] = mine if known is None else add(known, mine)
    return state


def main():
    given = arguments()
    found = []
    flow = Dataflow("rollup")
    lines = op.input("batches", flow, Batches(given.file, given.batch))
    parts = op.map("roll up", lines, rolled_up)
    keyed = op.key_on("all", parts, lambda _: "all")
    op.output("out", op.fold_final("merge", keyed, dict, merge), TestingSink(found))
    begun = time.perf_counter()
    run_main(flow, epoch_interval=dt.timedelta(hours=1))
    seconds = time.perf_counter() - begun
    totals = (0,) * len(MEASURES)
    for _, state in found:
        for cell in state.values():
            totals = add(totals, cell)
    say(seconds, totals)


main()
