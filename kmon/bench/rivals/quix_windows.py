"""Quix Streams: tumbling windows of ten seconds over the topic, whose messages have their cell as key already.

So it needs no repartitioning; changelog topics are off, and offsets are committed every --batch messages.
"""

import logging
import time

from quixstreams import Application
from quixstreams.dataframe.windows import Count, Sum
from task import MEASURES, add, arguments, measures, say


def main():
    given = arguments()
    application = Application(
        broker_address=given.broker,
        consumer_group=f"quix-{time.time_ns()}",
        auto_offset_reset="earliest",
        commit_every=given.batch,
        commit_interval=3600,
        use_changelog_topics=False,
        state_dir=given.folder / "quix",
        loglevel=logging.ERROR,
    )
    topic = application.topic(given.topic, value_deserializer="json", config=None)
    frame = application.dataframe(topic)
    frame = frame.apply(lambda event: dict(zip(MEASURES, measures(event), strict=True)))
    sums = {name: Sum(name) for name in MEASURES[1:]}
    frame = frame.tumbling_window(10_000, grace_ms=60_000).agg(events=Count(), **sums).current()
    cells = {}

    def keep(value, key, timestamp, headers):
        cells[key, value["start"]] = [value[name] for name in MEASURES]

    frame.update(keep, metadata=True)
    begun = time.perf_counter()
    application.run(count=given.events, timeout=60)
    seconds = time.perf_counter() - begun
    totals = (0,) * len(MEASURES)
    for cell in cells.values():
        totals = add(totals, cell)
    say(seconds, totals)


main()
