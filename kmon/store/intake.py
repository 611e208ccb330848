"""What came in, minute by minute: the questions about the stream itself, from which trouble of the pipeline is told.

The table ``intake`` has rows for each minute of event time, partition of the stream and kind of reject: the number of
records. An accepted event has no reason. A reject, whose own time nobody can read, belongs to the minute of the event
that came before it, and to no partition. `INTAKE_KEPT` of it is kept.
"""

from __future__ import annotations

import datetime as dt
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from typing import Any

import polars as pl

from kmon.store import sql

MINUTE, DAY = dt.timedelta(minutes=1), dt.timedelta(days=1)
INTAKE_KEPT = 3 * DAY
"""Behind the watermark."""
MERGED, MERGED_EVERY = dt.timedelta(hours=1), dt.timedelta(minutes=10)
"""What the batches appended is merged so often, as far back as that."""
READING = "reading"
"""The note that says when reading began: wall clock and watermark (empty before the first event), as JSON."""
INTAKE: dict[str, pl.DataType] = {
    "minute": pl.Datetime("us"),
    "partition": pl.String(),
    "reason": pl.String(),
    "records": pl.Int64(),
    "heard": pl.Datetime("us"),
}
"""The columns of a batch's part of it; `heard` is the wall clock (UTC) when records last came."""


class Intake(ABC):
    """The verbs of a store that ask about the stream."""

    @abstractmethod
    def sql(self, text: str) -> Any:
        """The result of one SELECT."""

    def last_heard(self, at: dt.datetime) -> pl.DataFrame:
        """By partition with events in the day before `at`: `last`, the last minute with events that begins before it.

        And `next`, the first such minute from then on, null where there is none, and `newest`, its newest event of all.
        """
        return self._asked(self.last_heard_sql(at))

    @staticmethod
    def last_heard_sql(at: dt.datetime) -> str:
        return (
            f"SELECT partition, max(minute) FILTER (minute < {sql.time(at)}) AS last,"
            f" min(minute) FILTER (minute >= {sql.time(at)}) AS next, any_value(newest) AS newest"
            f" FROM intake LEFT JOIN clocks USING (partition) WHERE reason = '' AND minute >= {sql.time(at - DAY)}"
            " GROUP BY partition HAVING last IS NOT NULL ORDER BY partition"
        )

    def received(self, start: dt.datetime, end: dt.datetime, partitions: Collection[str]) -> tuple[int, int]:
        """The events of some `partitions` and those of all others, of the minutes that begin in [start, end)."""
        return self.sql(self.received_sql(start, end, partitions)).row(0)  # type: ignore[no-any-return]

    @staticmethod
    def received_sql(start: dt.datetime, end: dt.datetime, partitions: Collection[str]) -> str:
        mine = f"partition IN ({', '.join(map(sql.text, partitions)) or 'NULL'})"
        return (
            f"SELECT coalesce(sum(records) FILTER ({mine}), 0)::BIGINT AS mine,"
            f" (coalesce(sum(records), 0) - mine)::BIGINT AS others"
            f" FROM intake WHERE reason = '' AND minute >= {sql.time(start)} AND minute < {sql.time(end)}"
        )

    def received_by(self, start: dt.datetime, end: dt.datetime, step: dt.timedelta) -> dict[dt.datetime, int]:
        """The events of each step, a multiple of whole minutes from `start` on, with some in [start, end)."""
        return dict(self._asked(self.received_by_sql(start, end, step)).rows())

    @staticmethod
    def received_by_sql(start: dt.datetime, end: dt.datetime, step: dt.timedelta) -> str:
        return (
            f"SELECT time_bucket(to_seconds({step.total_seconds():.0f}), minute, {sql.time(start)}) AS start,"
            f" sum(records)::BIGINT AS records FROM intake WHERE reason = ''"
            f" AND minute >= {sql.time(start)} AND minute < {sql.time(end)} GROUP BY 1 ORDER BY 1"
        )

    def pauses(
        self, start: dt.datetime, end: dt.datetime, least: dt.timedelta, partitions: Sequence[str] = ()
    ) -> list[tuple[dt.datetime, dt.datetime]]:
        """The times [began, ended) of at least `least` without an event, between minutes with some in [start, end).

        Of each of the `partitions`; without any, of all together.
        """
        rows = self._asked(self.pauses_sql(start, end, least, partitions)).rows()
        return [(began, ended) for began, ended in rows]

    @staticmethod
    def pauses_sql(start: dt.datetime, end: dt.datetime, least: dt.timedelta, partitions: Sequence[str] = ()) -> str:
        who = "partition" if partitions else "1"
        kept = f" AND partition IN ({', '.join(map(sql.text, partitions))})" if partitions else ""
        minutes = (
            f"SELECT DISTINCT {who} AS who, minute FROM intake WHERE reason = ''"
            f" AND minute >= {sql.time(start)} AND minute < {sql.time(end)}{kept}"
        )
        before = "lag(minute) OVER (PARTITION BY who ORDER BY minute)"
        return (
            f"SELECT began, ended FROM (SELECT {before} + INTERVAL 1 MINUTE AS began, minute AS ended FROM ({minutes}))"
            f" WHERE ended - began >= to_seconds({least.total_seconds()}) ORDER BY ended"
        )

    def dense(self, start: dt.datetime, end: dt.datetime, partitions: Sequence[str] = ()) -> float:
        """The share of the minutes that begin in [start, end) in which some partitions, or any, have events."""
        return float(self.sql(self.dense_sql(start, end, partitions)).item()) / max((end - start) / MINUTE, 1.0)

    @staticmethod
    def dense_sql(start: dt.datetime, end: dt.datetime, partitions: Sequence[str] = ()) -> str:
        kept = f" AND partition IN ({', '.join(map(sql.text, partitions))})" if partitions else ""
        return (
            "SELECT count(DISTINCT minute) AS minutes FROM intake WHERE reason = ''"
            f" AND minute >= {sql.time(start)} AND minute < {sql.time(end)}{kept}"
        )

    def rejected(self, start: dt.datetime, middle: dt.datetime, end: dt.datetime) -> dict[str, Any]:
        """How many records there were, and how many of them were rejected, before and from `middle` on.

        A row: `records`, `rejected` of [middle, end), `records_before`, `rejected_before` of [start, middle), and the
        `reason` of most of the rejected ones; null where there are none.
        """
        return self.sql(self.rejected_sql(start, middle, end)).row(0, named=True)  # type: ignore[no-any-return]

    @staticmethod
    def rejected_sql(start: dt.datetime, middle: dt.datetime, end: dt.datetime) -> str:
        now, bad = f"minute >= {sql.time(middle)}", "reason <> ''"
        sums = {
            "records": now,
            "rejected": f"{now} AND {bad}",
            "records_before": f"NOT ({now})",
            "rejected_before": f"NOT ({now}) AND {bad}",
        }
        shown = ", ".join(f"coalesce(sum(records) FILTER ({where}), 0)::BIGINT AS {n}" for n, where in sums.items())
        of = f"FROM intake WHERE minute >= {sql.time(start)} AND minute < {sql.time(end)}"
        most = f"SELECT reason {of} AND {now} AND {bad} GROUP BY reason ORDER BY sum(records) DESC, reason LIMIT 1"
        return f"SELECT {shown}, ({most}) AS reason {of}"

    def first_rejected(self, start: dt.datetime, end: dt.datetime, share: float) -> dt.datetime | None:
        """The first minute in [start, end) of whose records more than this share was rejected."""
        return self._asked(self.first_rejected_sql(start, end, share)).row(0)[0]  # type: ignore[no-any-return]

    @staticmethod
    def first_rejected_sql(start: dt.datetime, end: dt.datetime, share: float) -> str:
        return (
            f"SELECT min(minute) AS first FROM (SELECT minute FROM intake WHERE minute >= {sql.time(start)}"
            f" AND minute < {sql.time(end)} GROUP BY minute"
            f" HAVING sum(records) FILTER (reason <> '') > {float(share)} * sum(records))"
        )

    def heard(self) -> dt.datetime | None:
        """The wall clock when an event last came; None where none ever did."""
        return self._asked(self.heard_sql()).row(0)[0]  # type: ignore[no-any-return]

    @staticmethod
    def heard_sql() -> str:
        return "SELECT max(heard) AS heard FROM intake WHERE reason = ''"

    def lagging(self) -> dict[str, int]:
        """The partitions that have records which were not read yet, and how many."""
        return dict(self.sql("SELECT partition, unread FROM clocks WHERE unread > 0 ORDER BY unread DESC").rows())

    def _asked(self, text: str) -> pl.DataFrame:
        """The answer with aware times."""
        found: pl.DataFrame = self.sql(text)
        times = [name for name, kind in found.schema.items() if isinstance(kind, pl.Datetime)]
        return found.with_columns(pl.col(times).dt.replace_time_zone("UTC"))


def create_intake_sql() -> str:
    return (
        "CREATE TABLE intake(minute TIMESTAMP NOT NULL, partition VARCHAR NOT NULL, reason VARCHAR NOT NULL,"
        " records BIGINT NOT NULL, heard TIMESTAMP NOT NULL)"
    )


def add_intake_sql() -> str:
    """Append the rows in ``given``: a key would take as long as all the rest of a commit."""
    return "INSERT INTO intake SELECT minute, partition, reason, records, heard FROM given"


def unmerged_sql(limit: dt.datetime) -> str:
    """What there is to merge in the hour before `limit`."""
    within = f"minute >= {sql.time(limit - MERGED)} AND minute < {sql.time(limit)}"
    return f"SELECT minute FROM intake WHERE {within} GROUP BY minute, partition, reason HAVING count(*) > 1"


def merge_intake_sql(limit: dt.datetime) -> list[str]:
    """Merge what the batches of the hour before `limit` appended into a row a minute, partition and reason."""
    within = f"minute >= {sql.time(limit - MERGED)} AND minute < {sql.time(limit)}"
    sums = "minute, partition, reason, sum(records)::BIGINT AS records, max(heard) AS heard"
    return [
        f"CREATE TEMP TABLE counting AS SELECT {sums} FROM intake WHERE {within} GROUP BY ALL",
        f"DELETE FROM intake WHERE {within}",
        "INSERT INTO intake SELECT * FROM counting ORDER BY ALL",
        "DROP TABLE counting",
    ]


def old_intake_sql(watermark: dt.datetime) -> str:
    """What is no longer kept, to select or delete from."""
    return f"FROM intake WHERE minute < {sql.time(watermark - INTAKE_KEPT)}"
