"""The read side of the store: one API, embedded or over the wire.

Each verb has a ``*_sql`` twin that returns the text it runs, so that the plan can be read and tested alone. All times
are aware UTC; intervals are half open, [start, end). Nothing above this package knows which database answers.
"""

from __future__ import annotations

import datetime as dt
from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, cast

import polars as pl
import pyarrow as pa

from kmon.errors import StoreError
from kmon.store import sql
from kmon.store.cells import interval, scan_sql
from kmon.store.intake import Intake
from kmon.store.questions import Questions
from kmon.store.schema import EVENTS, RAW, TIERS
from kmon.store.sql import Where

DAY_NS = 86_400_000_000_000
MANY = 64
"""A dimension with more values than this is screened before its combinations are counted."""


@dataclass(frozen=True)
class Span:
    """`count` windows of one width next to each other, the first one beginning at `start`."""

    name: str
    start: dt.datetime
    count: int
    width: dt.timedelta

    @property
    def end(self) -> dt.datetime:
        return self.start + self.count * self.width


class Store(Questions, Intake):
    """Rollups of events: what happened."""

    def __init__(self) -> None:
        self._oldest: dt.datetime | None = None
        self._number_of: dict[tuple[str, str], int] = {}
        self._name_of: dict[tuple[str, int], str] = {}

    @abstractmethod
    def arrow(self, text: str) -> pa.Table:
        """The result of one SELECT; StoreError with the database's own words where it fails."""

    def refresh(self) -> None:
        """Take notice of a schema that a reload has changed; each question that asks by a name does so first."""

    def _forget_numbers(self) -> None:
        """A dimension that was forgotten and came back is numbered anew."""
        self._number_of.clear()
        self._name_of.clear()

    @abstractmethod
    def close(self) -> None:
        """Let go of the store."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _frame(self, text: str) -> pl.DataFrame:
        if not text.strip():
            message = "the query is empty: write for example SELECT * FROM rollup LIMIT 10"
            raise StoreError(message)
        table = _readable(self.arrow(text))
        try:
            return cast(pl.DataFrame, pl.from_arrow(table))
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
            message = f"the result cannot be shown: {str(error).splitlines()[0]}"
            raise StoreError(message) from error

    def _one(self, text: str) -> tuple[Any, ...]:
        return self.sql(text).row(0)

    # ---- time ----------------------------------------------------------------------------------------------------

    def watermark(self, lateness: dt.timedelta, idle: dt.timedelta) -> dt.datetime | None:
        """The event time up to which the data is complete; None before the first event.

        The slowest partition's newest event less `lateness`; a partition more than `idle` behind is left out, unless
        it has records that were not read yet. None, too, while such a one was never heard of.
        """
        found = self._one(self.watermark_sql(lateness, idle))[0]
        return _aware(found)

    @staticmethod
    def watermark_sql(lateness: dt.timedelta, idle: dt.timedelta) -> str:
        return (
            "SELECT CASE WHEN count(*) = count(newest)"
            f" THEN min(newest) - to_milliseconds({lateness // dt.timedelta(milliseconds=1)}) END FROM clocks"
            f" WHERE unread > 0 OR newest >= (SELECT max(newest) FROM clocks) - to_seconds({idle.total_seconds()})"
        )

    def newest(self) -> dt.datetime | None:
        """The newest event time of any partition."""
        found = self._one("SELECT max(newest) FROM clocks")[0]
        return _aware(found)

    def late(self) -> int:
        """How many events came after the watermark had passed their time, so far."""
        return int(self._one("SELECT coalesce(sum(late), 0) FROM clocks")[0])

    def oldest(self) -> dt.datetime | None:
        """The first bucket with events when this was first asked; history does not begin earlier later on."""
        if self._oldest is None:
            self._oldest = _aware(self._one(self.oldest_sql())[0])
        return self._oldest

    @staticmethod
    def oldest_sql() -> str:
        """Tier by tier, which statistics answer without a scan."""
        return (
            f"SELECT min(bucket) FROM ({' UNION ALL '.join(f'SELECT min(bucket) AS bucket FROM {t}' for t in TIERS)})"
        )

    def begins(self, tier: str) -> dt.datetime | None:
        return _aware(self._one(f"SELECT max(begins) FROM tiers WHERE tier = {sql.text(tier)}")[0])

    def busy(self, step: dt.timedelta) -> list[dt.datetime]:
        """The starts of the steps, multiples of `step` since 1970, in which there are events."""
        return [start.replace(tzinfo=dt.UTC) for start in self.sql(self.busy_sql(step))["start"]]

    @staticmethod
    def busy_sql(step: dt.timedelta) -> str:
        width = interval(step)
        return f"SELECT DISTINCT time_bucket({width}, bucket, TIMESTAMP '1970-01-01') AS start FROM cells ORDER BY 1"

    # ---- drill down ----------------------------------------------------------------------------------------------

    def measures(
        self, where: Where, start: dt.datetime, end: dt.datetime, grain: dt.timedelta = dt.timedelta(minutes=1)
    ) -> pl.DataFrame:
        """All measures of one monitor over time: column `bucket` (UTC), then the measures; no row where nothing was.

        Buckets begin at `start` and are `grain` wide. Where history is kept in coarser buckets only there is no row.
        """
        self.refresh()
        return self.sql(self.measures_sql(where, start, end, grain))

    def measures_sql(self, where: Where, start: dt.datetime, end: dt.datetime, grain: dt.timedelta) -> str:
        cells = self.merged_sql([], list(self.schema.measures), start, end, self.condition(where), grain)
        return (
            f"SELECT time_bucket({interval(grain)}, bucket, {sql.time(start)}) AS bucket, {self.schema.merged()}"
            f" FROM ({cells}) GROUP BY 1 ORDER BY 1"
        )

    def totals(self, where: Where, start: dt.datetime, end: dt.datetime) -> dict[str, float]:
        """All measures of one monitor summed over [start, end); 0 where nothing was."""
        self.refresh()
        row = self.sql(self.totals_sql(where, start, end)).row(0, named=True)
        return {measure: value or 0 for measure, value in row.items()}

    def totals_sql(self, where: Where, start: dt.datetime, end: dt.datetime) -> str:
        cells = scan_sql(", ".join(map(sql.name, self.schema.measures)), start, end, self.condition(where))
        return f"SELECT {self.schema.merged()} FROM ({cells})"

    def values(self, dimension: str, where: Where, start: dt.datetime, end: dt.datetime, limit: int) -> pl.DataFrame:
        """The values of a dimension with most events: columns `value` and `events`, largest first."""
        return self.sql(self.values_sql(dimension, where, start, end, limit))

    def values_sql(self, dimension: str, where: Where, start: dt.datetime, end: dt.datetime, limit: int) -> str:
        column = sql.name(self._known(dimension))
        cells = scan_sql(f"{column}, {EVENTS}", start, end, self.condition(where))
        return (
            f"SELECT d.value, n::BIGINT AS events FROM (SELECT {column}, sum({EVENTS}) AS n FROM ({cells}) GROUP BY 1)"
            f" JOIN {sql.dictionary(dimension)} d ON d.id = {column} ORDER BY 2 DESC, 1 LIMIT {limit}"
        )

    def against(
        self,
        by: str,
        sums: Mapping[str, Sequence[str]],
        where: Where,
        now: tuple[dt.datetime, dt.datetime],
        before: Sequence[tuple[dt.datetime, dt.datetime]],
    ) -> pl.DataFrame:
        """Sums by the values of one dimension in the time `now`, and in all the times `before` together.

        Columns: the value's `number` (0 for events without one), and of each of `sums`, which names the measures that
        are added up, ``<name>`` and ``<name>_before``, 0 where nothing was.
        """
        self.refresh()
        column, kept = sql.name(self._known(by)), self.condition(where)
        names = [sql.name(m) for m in dict.fromkeys(m for measures in sums.values() for m in measures)]
        times = [("true", now), *(("false", span) for span in before)]
        cells = " UNION ALL ".join(
            scan_sql(", ".join([f"{is_now} AS now", column, *names]), *span, kept) for is_now, span in times
        )
        shown = [
            f"coalesce(sum({' + '.join(f'coalesce({sql.name(m)}, 0)' for m in measures)})"
            f" FILTER ({which}), 0)::DOUBLE AS {sql.name(name + suffix)}"
            for name, measures in sums.items()
            for suffix, which in (("", "now"), ("_before", "NOT now"))
        ]
        return self.sql(f"SELECT {column} AS number, {', '.join(shown)} FROM ({cells}) GROUP BY 1 ORDER BY 1")

    # ---- sweeps --------------------------------------------------------------------------------------------------

    def cells(
        self,
        spans: Sequence[Span],
        dimensions: Sequence[str],
        measures: Sequence[str],
        where: Where | None = None,
        without: Sequence[Where] = (),
        *,
        merged: bool = False,
    ) -> pl.DataFrame:
        """The rows of the base cuboid in the windows of `spans`, as they are stored: what a reader sums by itself.

        Columns: `slot` (0-based over all spans in their order), the dimensions as numbers (0 for an event without a
        value), the measures, in types as narrow as the store's. One window may have many rows of the same values,
        unless they are `merged`. Only those that match `where` and none of `without`, and in buckets that fit into
        their window (`kmon.store.cells`).
        """
        self.refresh()
        text = self.cells_sql(spans, dimensions, measures, where or {}, without)
        if merged:
            keys = ", ".join(["slot", *map(sql.name, dimensions)])
            text = f"SELECT {keys}, {self.schema.merged(measures)} FROM ({text}) GROUP BY ALL"
        return self.sql(text)

    def cells_sql(
        self,
        spans: Sequence[Span],
        dimensions: Sequence[str],
        measures: Sequence[str],
        where: Where,
        without: Sequence[Where],
    ) -> str:
        columns = [*map(sql.name, dimensions), *map(sql.name, measures)]
        kept = " AND ".join([self.condition(where), *(f"NOT ({self.condition(other)})" for other in without)])
        return self._slots_sql(spans, columns, kept)

    def windows(
        self,
        spans: Sequence[Span],
        sets: Sequence[Sequence[str]],
        where: Where | None = None,
        least: float = 1,
        measures: Collection[str] | None = None,
    ) -> pl.DataFrame:
        """The measures of every monitor of the grouping `sets` in every window of `spans`.

        Returns a row for each monitor and window that has events: `set` (index into `sets`), `slot` (0-based over all
        spans in their order), the dimensions as numbers (null where the set does not group by them), the measures.
        The values of a dimension that has many are left out where they have fewer than `least` events in all spans of
        each name, and so is the value that an event did not have. `measures` are the only ones, default all. A window
        has no events, too, where they are kept in buckets that do not fit into it (`kmon.store.cells`). Only events
        that match `where` count.
        """
        self.refresh()
        return self.sql(self.windows_sql(spans, sets, where or {}, least, measures))

    def windows_sql(
        self,
        spans: Sequence[Span],
        sets: Sequence[Sequence[str]],
        where: Where,
        least: float = 1,
        measures: Collection[str] | None = None,
    ) -> str:
        used = [d for d in self.schema.dimensions if any(d in grouping for grouping in sets)]
        many = [d for d in used if self.cardinality(d) > MANY]
        names = [m for m in self.schema.measures if measures is None or m in measures or m == EVENTS]
        parts = [
            part
            for screened in (None, *many)
            if (part := self._grouped_sql(screened, many, sets, used, names)) is not None
        ]
        columns = [sql.name(d) for d in used]
        cells = self._slots_sql(spans, [*columns, *map(sql.name, names)], self.condition(where))
        keys = ", ".join(["slot", *columns])
        ctes = [f"base AS MATERIALIZED (SELECT {keys}, {self.schema.merged(names)} FROM ({cells}) GROUP BY ALL)"]
        for dimension in many:
            column = sql.name(dimension)
            having = f" HAVING {_enough(spans, least)}" if least > 1 else ""  # a cell has an event at least
            ctes.append(
                f"{sql.name('kept_' + dimension)} AS"
                f" (SELECT {column} FROM base WHERE {column} > 0 GROUP BY {column}{having})"
            )
        return f"WITH {', '.join(ctes)} {' UNION ALL '.join(parts)}"

    def leaves(
        self,
        spans: Sequence[Span],
        where: Where,
        measures: Sequence[str],
        *,
        apart: Mapping[str, Collection[str]],
        most: int,
    ) -> pl.DataFrame:
        """The base cuboid in `spans` of one window each: a row for each combination of all dimensions, as numbers.

        Columns: the dimensions (0: an event without a value), and ``<measure>_<span>`` for each of both, 0 where
        nothing was. Of the dimensions in `apart` only those values are told apart, and all others are null, together.
        The `most` combinations with most events, the largest first; only events that match `where` count.
        """
        self.refresh()
        return self.sql(self.leaves_sql(spans, where, measures, apart=apart, most=most))

    def leaves_sql(
        self,
        spans: Sequence[Span],
        where: Where,
        measures: Sequence[str],
        *,
        apart: Mapping[str, Collection[str]],
        most: int,
    ) -> str:
        dimensions = list(self.schema.dimensions)
        columns = [
            f"CASE WHEN {self.condition({d: list(apart[d])})} THEN {sql.name(d)} END AS {sql.name(d)}"
            if d in apart
            else sql.name(d)
            for d in dimensions
        ]
        sums = [
            f"coalesce({self.schema.measures[m].merge}({sql.name(m)}) FILTER (slot = {slot}), 0)::DOUBLE"
            f" AS {sql.name(f'{m}_{span.name}')}"
            for m in measures
            for slot, span in enumerate(spans)
        ]
        order, kept = ", ".join(str(i + 1) for i in range(len(dimensions))), self.condition(where)
        shown = [*columns, *(sql.name(m) for m in dict.fromkeys([*measures, EVENTS]))]
        names = ", ".join(map(sql.name, dimensions))
        return (
            f"SELECT {', '.join([names, *sums])} FROM ({self._slots_sql(spans, shown, kept)}) GROUP BY {order}"
            f" ORDER BY sum({EVENTS}) DESC, {order} LIMIT {most}"
        )

    @staticmethod
    def _slots_sql(spans: Sequence[Span], columns: Sequence[str], kept: str) -> str:
        """The tiers cut to the windows: each span is a range scan of its own, which the zone maps prune."""
        scans, first = [], 0
        for span in spans:
            seconds = int(span.width.total_seconds())
            slot = f"({first} + epoch(bucket - {sql.time(span.start)})::BIGINT // {seconds})::INTEGER AS slot"
            scans.append(scan_sql(", ".join([slot, *columns]), span.start, span.end, kept, span.width))
            first += span.count
        return " UNION ALL ".join(scans)

    def _grouped_sql(
        self, screened: str | None, many: list[str], sets: Sequence[Sequence[str]], used: list[str], measures: list[str]
    ) -> str | None:
        """The sets whose most selective screen is `screened` (None: that have none), as one GROUPING SETS query."""
        mine = [i for i, g in enumerate(sets) if next((d for d in many if d in g), None) == screened]
        if not mine:
            return None
        groups = ", ".join(f"({', '.join(['slot', *map(sql.name, sets[i])])})" for i in mine)
        columns = [d for d in used if any(d in sets[i] for i in mine)]
        shown = ", ".join(f"{sql.name(d) if d in columns else 'NULL::UINTEGER'} AS {sql.name(d)}" for d in used)
        bits = {i: sum(1 << (len(columns) - 1 - columns.index(d)) for d in columns if d not in sets[i]) for i in mine}
        grouping = f"GROUPING_ID({', '.join(map(sql.name, columns))})" if columns else "0"
        number = f"CASE {grouping} {' '.join(f'WHEN {bits[i]} THEN {i}' for i in mine)} END::INTEGER"
        present = " AND ".join(f"({sql.name(d)} IS NULL OR {sql.name(d)} > 0)" for d in columns) or "true"
        source = (
            "base"
            if screened is None
            else f"base SEMI JOIN {sql.name('kept_' + screened)} USING ({sql.name(screened)})"
        )
        return (
            f"SELECT {number} AS set, slot{', ' + shown if shown else ''}, {self.schema.merged(measures)}"
            f" FROM {source} GROUP BY GROUPING SETS ({groups}) HAVING {present}"
        )

    def arrivals(self, span: Span, dimension: str, measure: str) -> pl.DataFrame:
        """How many came by value of a dimension in each window of `span`, by a measure that is a count.

        A row for each value that came: `slot` (0-based), its `number` (0: an event without one), `n`, and `minute` of
        the window in which it last came (0-based).
        """
        self.refresh()
        return self.sql(self.arrivals_sql(span, dimension, measure))

    def arrivals_sql(self, span: Span, dimension: str, measure: str) -> str:
        count = sql.name(measure)
        columns = [f"{sql.name(self._known(dimension))} AS number", f"{count} AS n", "bucket"]
        last = f"epoch(max(bucket) - {sql.time(span.start)})::BIGINT % {int(span.width.total_seconds())} // 60"
        return (
            f"SELECT slot, number, sum(n)::DOUBLE AS n, ({last})::UTINYINT AS minute"
            f" FROM ({self._slots_sql([span], columns, f'{count} > 0')}) GROUP BY slot, number"
        )

    def silent(
        self,
        by: Sequence[str],
        measure: str,
        at: dt.datetime,
        *,
        quiet: dt.timedelta,
        hours: int,
        lasting: int,
        least: float,
    ) -> pl.DataFrame:
        """Hourly counts before `at` of those who have had none of `measure` for `quiet`, and some in `lasting` hours.

        A row for each combination of values of `by` and hour with events, among the last `hours`: the numbers of `by`,
        `hour` (0 the one that ends at `at`), `n`, `newest` (the last bucket with events, UTC) and `tests`, how many
        combinations had events in `lasting` hours. Only those that in as many hours as they are silent had `least`
        yesterday and on the first of the days together. A row with null dimensions for each hour of everybody comes
        with them.
        """
        self.refresh()
        return self.sql(self.silent_sql(by, measure, at, quiet=quiet, hours=hours, lasting=lasting, least=least))

    def silent_sql(
        self,
        by: Sequence[str],
        measure: str,
        at: dt.datetime,
        *,
        quiet: dt.timedelta,
        hours: int,
        lasting: int,
        least: float,
    ) -> str:
        """Who is silent first, from a day; who might matter of them next; the hours of those alone at last."""
        keys, count = ", ".join(sql.name(self._known(d)) for d in by), sql.name(measure)
        hour = dt.timedelta(hours=1)
        first, since = at - hours * hour, at - quiet
        slot = f"({hours - 1} - (epoch_us(bucket) - epoch_us({sql.time(first)})) // 3600000000)::INTEGER"
        some = " AND ".join([f"{count} > 0", *(f"{sql.name(d)} > 0" for d in by)])
        none = ", ".join(f"NULL::UINTEGER AS {sql.name(d)}" for d in by)
        shown = f"{keys}, bucket, {count}"

        def scan(columns: str, start: dt.datetime, end: dt.datetime, condition: str = some) -> str:
            return f"({scan_sql(columns, start, end, condition, hour)})"

        days = [scan(shown, start, start + 24 * hour)[1:-1] for start in (at - 48 * hour, first)]
        return (
            f"WITH active AS MATERIALIZED (SELECT DISTINCT {keys} FROM ({scan_sql(keys, since, at, some)})),"
            f" gone AS MATERIALIZED (SELECT {keys}, {slot.replace('bucket', 'max(bucket)')} AS gap"
            f" FROM {scan(shown, at - lasting * hour, since)} ANTI JOIN active USING ({keys}) GROUP BY {keys}),"
            f" chosen AS MATERIALIZED (SELECT {keys}"
            f" FROM ({' UNION ALL '.join(dict.fromkeys(days))}) JOIN gone USING ({keys})"
            f" WHERE {slot} % 24 <= gap GROUP BY {keys} HAVING sum({count}) >= {least}),"
            f" tested AS (SELECT (SELECT count(*) FROM active) + (SELECT count(*) FROM gone) AS tests)"
            f" SELECT {keys}, hour, n, newest, tests FROM (SELECT {keys}, {slot} AS hour, sum({count})::DOUBLE AS n,"
            f" max(bucket) AS newest FROM {scan(shown, first, since)}"
            f" SEMI JOIN chosen USING ({keys}) GROUP BY {keys}, hour), tested"
            f" UNION ALL SELECT {none}, {slot} AS hour, sum(n)::DOUBLE, max(bucket), 0 FROM (SELECT bucket,"
            f" sum({count}) AS n FROM {scan(f'bucket, {count}', first, at, 'true')} GROUP BY bucket) GROUP BY hour"
        )

    def cardinality(self, dimension: str) -> int:
        """How many values of a dimension were ever seen."""
        return int(self._one(f"SELECT count(*) FROM {sql.dictionary(dimension)}")[0])

    def names(self, dimension: str, numbers: Sequence[int]) -> dict[int, str]:
        """The values behind a dimension's numbers, which never change."""
        missing = {int(n) for n in numbers if (dimension, n) not in self._name_of}
        if missing:
            listed = ", ".join(map(str, sorted(missing)))
            rows = self.sql(f"SELECT id, value FROM {sql.dictionary(dimension)} WHERE id IN ({listed})").rows()
            self._name_of.update({(dimension, n): value for n, value in rows})
        return {n: self._name_of[dimension, n] for n in numbers if (dimension, n) in self._name_of}

    def number(self, dimension: str, value: str) -> int | None:
        """The number behind a dimension's value, or None where it was never seen."""
        return self.numbers(dimension, [value]).get(value)

    def numbers(self, dimension: str, values: Sequence[str]) -> dict[str, int]:
        """The numbers behind those of a dimension's values that were ever seen."""
        if dimension not in self.schema.dimensions:
            return {}
        missing = [value for value in values if (dimension, value) not in self._number_of]
        if missing:
            listed = ", ".join(map(sql.text, missing))
            one_of = f"= {listed}" if len(missing) == 1 else f"IN ({listed})"  # twice as quick
            found = f"SELECT value, id FROM {sql.dictionary(dimension)} WHERE value {one_of}"
            rows = self.sql(f"{found} LIMIT {len(missing)}").rows()  # large partners are among the first
            self._number_of.update({(dimension, value): number for value, number in rows})
        return {v: self._number_of[dimension, v] for v in values if (dimension, v) in self._number_of}

    def condition(self, where: Where) -> str:
        """`where` as a condition on literal numbers, which zone maps prune by; an unknown value matches nothing.

        Nor does a value of a dimension that there is not any more, in the scope of an old incident.
        """
        clauses = []
        for dimension, values in where.items():
            wanted = [values] if isinstance(values, str) else list(values)
            numbers = sorted(self.numbers(dimension, wanted).values())
            column = sql.name(dimension)
            equal = f"{column} = {numbers[0]}" if numbers else "false"
            clauses.append(equal if len(numbers) < 2 else f"{column} IN ({', '.join(map(str, numbers))})")
        return " AND ".join(clauses) or "true"

    def noted(self, key: str) -> str | None:
        """A fact that the owner keeps about the store; None where there is none of that name."""
        found = self.sql(f"SELECT value FROM meta WHERE key = {sql.text(key)}")
        return str(found.item()) if found.height else None

    # ---- its own state -------------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """Offsets, clocks, rows, events and bytes a tier, dead letters by reason, bytes on disk (of the database)."""
        letters = "SELECT reason, records FROM rejected ORDER BY records DESC, reason"
        return {
            # partition -1 keeps which topic of a name the others are of
            "offsets": self.sql("SELECT * FROM offsets WHERE partition >= 0 ORDER BY ALL").to_dicts(),
            "clocks": self.sql("SELECT * FROM clocks ORDER BY ALL").to_dicts(),
            "tiers": {tier: self.sql(self.tier_sql(tier)).to_dicts()[0] for tier in TIERS},
            "raw_events": self.sql(f"SELECT count(*) AS rows, {_BYTES.format(RAW)} AS bytes FROM {RAW}").to_dicts()[0],
            "dead_letters": dict(self.sql(letters).rows()),
            "bytes": self.bytes(),
        }

    def bytes(self) -> int:
        """On disk, of the database without its log."""
        return int(self._one(_SIZE)[0])

    @staticmethod
    def tier_sql(tier: str) -> str:
        """Rows, events, and bytes: of the blocks of the file that the tier lies in, without what is in the log only."""
        return (
            f"SELECT count(*) AS rows, coalesce(sum({EVENTS}), 0)::BIGINT AS events, {_BYTES.format(tier)} AS bytes"
            f" FROM {tier}"
        )


def _enough(spans: Sequence[Span], least: float) -> str:
    """Whether there are `least` events in the spans of some name."""
    first, slots = 0, dict[str, list[str]]()
    for span in spans:
        slots.setdefault(span.name, []).append(f"slot BETWEEN {first} AND {first + span.count - 1}")
        first += span.count
    sums = [f"sum({EVENTS}) FILTER ({' OR '.join(parts)}) >= {least}" for parts in slots.values()]
    return " OR ".join(sums)


_SIZE = (
    "SELECT coalesce(sum(total_blocks * block_size), 0)::BIGINT FROM pragma_database_size()"
    " WHERE database_name = current_database()"
)
_BYTES = (
    "(SELECT count(DISTINCT block) * (SELECT block_size FROM pragma_database_size()"
    " WHERE database_name = current_database()) FROM (SELECT unnest([block_id] || additional_block_ids) AS block"
    " FROM pragma_storage_info('{}') WHERE persistent AND block_id >= 0))::BIGINT"
)


def _aware(time: dt.datetime | None) -> dt.datetime | None:
    return time.replace(tzinfo=dt.UTC) if time else None


def _readable(table: pa.Table) -> pa.Table:
    """The table in types that polars knows: intervals as durations, of 30 days a month as DuckDB compares them."""
    for number, field in enumerate(table.schema):
        if pa.types.is_interval(field.type):
            spans = (v and ((v.months * 30 + v.days) * DAY_NS + v.nanoseconds) for v in table[number].to_pylist())
            table = table.set_column(number, field.name, pa.array(spans, pa.duration("ns")))
        elif _is_unknown(field.type):
            message = f"the column {field.name!r} is of a type that cannot be shown: write {field.name}::VARCHAR"
            raise StoreError(message)
    return table


def _is_unknown(found: pa.DataType) -> bool:
    """Whether polars knows no such type, or one inside it."""
    if pa.types.is_interval(found) or pa.types.is_union(found):
        return True
    return any(_is_unknown(found.field(number).type) for number in range(found.num_fields))
