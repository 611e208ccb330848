"""The tables of the store, made from the configuration.

dim_<dimension>(id, value)                     numbers a dimension's values; 0 stands for a missing one
rollup_10s(bucket, <dimensions>, events_, <measures>)   deltas as they were committed; readers sum them
rollup_1m, rollup_1h (the same columns)        closed hours and old days, merged and sorted; a cell is in one tier only
tiers(tier, begins)                            what is older than `begins` has been, or is being, moved out of the tier
cells                                          a view: all tiers, dimensions as numbers
rollup                                         a view: all tiers, dimensions as text, for people; without the buckets
                                               of histograms
raw_events(event_time, source, partition, position, size, <dimensions>, document)   the youngest events as they came
offsets(source, partition, position)           the next position to read; moved with the rows, in one transaction
clocks(partition, newest, late, unread)        by partition of the stream: the newest event time, how many events were
                                               late, how many the source still has to be read
dead_letters(source, partition, position, received_at, reason, size, raw)
rejected(reason, records)                      how many dead letters there ever were, by kind of reason
intake(minute, partition, reason, records, heard)   how many records came, by minute of event time (`kmon.store.intake`)
meta(key, value)                               this schema, as JSON, so that readers need no configuration; `id`, which
                                               store it is
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import duckdb

from kmon.config import Config, EventField, Metric, error_at, histogram_of, is_count, merge_function
from kmon.errors import ConfigError
from kmon.store import sql
from kmon.store.intake import create_intake_sql

TIERS = {
    "rollup_10s": dt.timedelta(seconds=10),
    "rollup_1m": dt.timedelta(minutes=1),
    "rollup_1h": dt.timedelta(hours=1),
}
"""The width of a bucket by tier, in the order in which rows move down."""
RAW = "raw_events"
LAYOUT = 3
"""Counts up when tables change that do not depend on the configuration."""
ID = "id"
"""What is noted under it no other store has: one that was made anew in the same place is another one."""
EVENTS = "events_"
"""The built-in measure: the number of events in a cell."""


@dataclass(frozen=True)
class Measure:
    """A column of the rollups."""

    expression: str
    """SQL over the event."""
    merge: str
    """The aggregate that merges two cells: sum, min or max."""
    type: str
    """DuckDB type of the column."""

    def type_in(self, tier: str) -> str:
        """Type of the column in a tier: deltas are many, and none counts billions of events in ten seconds."""
        return "UINTEGER" if tier == next(iter(TIERS)) and is_count(self.expression) else self.type


@dataclass(frozen=True)
class Quantile:
    """How a quantile is read from the measures of its histogram."""

    q: float
    low: float
    """The lowest edge; each next one is `ratio` times as much."""
    ratio: float
    buckets: tuple[str, ...]
    """The measures of the events above the lowest edge, by bucket."""


@dataclass(frozen=True)
class Parts:
    """What a metric is made of."""

    kind: str
    """count, rate, mean or quantile"""
    numerator: str
    """A measure."""
    denominator: str | None = None
    """A measure; None of a count."""
    quantile: Quantile | None = None

    @classmethod
    def of(cls, metric: Metric) -> Parts:
        numerator, denominator = metric.parts
        if metric.q is None:
            return cls(metric.kind, numerator, denominator)
        own = metric.histogram
        return cls(metric.kind, numerator, denominator, Quantile(metric.q, own.low, own.ratio, metric.measures[1:]))

    @classmethod
    def loads(cls, value: dict[str, Any]) -> Parts:
        """Of what `dataclasses.asdict` and JSON have made of it."""
        told = value.get("quantile")
        own = Quantile(**{**told, "buckets": tuple(told["buckets"])}) if told else None
        return cls(**{**value, "quantile": own})


@dataclass(frozen=True)
class Schema:
    """Which dimensions and measures the rollups have, and which metrics are made of them."""

    dimensions: tuple[str, ...]
    measures: dict[str, Measure]
    metrics: dict[str, Parts] = field(default_factory=dict)
    layout: int = LAYOUT
    since: dict[str, str] = field(default_factory=dict, compare=False)
    """By dimension and measure that came later than the first event: the event time (RFC 3339) since when it counts."""

    @classmethod
    def of(cls, config: Config) -> Schema:
        """The schema that a configuration asks for."""
        columns = ", ".join(f"NULL::{_SQL_TYPES[field.type]} AS {sql.name(key)}" for key, field in _columns(config))
        where = f"{config.path}: measures"
        with duckdb.connect() as connection:
            measures = {
                key: Measure(text, merge_function(text), _type(connection, f"{where}.{key}", text, columns))
                for key, text in {EVENTS: "count(*)", **config.measures}.items()
            }
        metrics = {key: Parts.of(metric) for key, metric in config.metrics.items()}
        return cls(tuple(config.dimensions), measures, metrics)

    @classmethod
    def loads(cls, text: str) -> Schema:
        data = json.loads(text)
        measures = {key: Measure(**value) for key, value in data["measures"].items()}
        metrics = {key: Parts.loads(value) for key, value in data.get("metrics", {}).items()}
        return cls(tuple(data["dimensions"]), measures, metrics, data.get("layout", 1), data.get("since", {}))

    def dumps(self) -> str:
        def known(items: list[tuple[str, Any]]) -> dict[str, Any]:
            return {key: value for key, value in items if value is not None}

        return json.dumps(asdict(self, dict_factory=known))

    def merged(self, names: Sequence[str] | None = None) -> str:
        """The select list that merges measures: ``sum("orders")::BIGINT AS "orders", ...``."""
        return ", ".join(
            f"{self.measures[m].merge}({sql.name(m)})::{self.measures[m].type} AS {sql.name(m)}"
            for m in (names or list(self.measures))
        )

    def columns(self) -> str:
        """The columns of a tier, in the order of this schema, which need not be the tables'."""
        return ", ".join(sql.name(c) for c in ("bucket", *self.dimensions, *self.measures))

    def create_sql(self) -> list[str]:
        """The statements that make an empty store."""
        return [
            *(f"CREATE TABLE {tier}({self._cell_columns(tier)})" for tier in ("rollup_10s", "rollup_1m")),
            *(self._dictionary_sql(d) for d in self.dimensions),
            "CREATE TABLE offsets(source VARCHAR, partition INTEGER, position BIGINT, PRIMARY KEY (source, partition))",
            "CREATE TABLE clocks(partition VARCHAR PRIMARY KEY, newest TIMESTAMP)",
            (
                "CREATE TABLE dead_letters(source VARCHAR, partition INTEGER, position BIGINT, received_at TIMESTAMP, "
                "reason VARCHAR, size BIGINT, raw BLOB)"
            ),
            "CREATE TABLE meta(key VARCHAR PRIMARY KEY, value VARCHAR)",
            *self._second_layout_sql(),
            create_intake_sql(),  # came with the third layout
            *self.view_sql(),
        ]

    def _second_layout_sql(self) -> list[str]:
        """What came with the second layout."""
        return [
            f"CREATE TABLE rollup_1h({self._cell_columns('rollup_1h')})",
            "CREATE TABLE tiers(tier VARCHAR PRIMARY KEY, begins TIMESTAMP NOT NULL)",
            "ALTER TABLE clocks ADD COLUMN late BIGINT DEFAULT 0",
            "ALTER TABLE clocks ADD COLUMN unread BIGINT DEFAULT 0",
            "CREATE TABLE rejected(reason VARCHAR PRIMARY KEY, records BIGINT NOT NULL)",
            f"INSERT INTO rejected {rejected_sql('dead_letters')}",
            (
                f"CREATE TABLE {RAW}(event_time TIMESTAMP NOT NULL, source VARCHAR, partition INTEGER, position BIGINT,"
                f" size UINTEGER{self._dimension_columns()}, document VARCHAR)"
            ),
        ]

    def _cell_columns(self, tier: str) -> str:
        measures = "".join(f", {sql.name(key)} {m.type_in(tier)}" for key, m in self.measures.items())
        return f"bucket TIMESTAMP NOT NULL{self._dimension_columns()}{measures}"

    def _dimension_columns(self) -> str:
        return "".join(f", {sql.name(d)} UINTEGER NOT NULL DEFAULT 0" for d in self.dimensions)

    def view_sql(self) -> list[str]:
        """The statements that (re)make the read views."""
        union = " UNION ALL ".join(f"SELECT {self.columns()} FROM {tier}" for tier in TIERS)
        shown = "".join(f", {sql.dictionary(d)}.value AS {sql.name(d)}" for d in self.dimensions)
        joins = "".join(
            f" LEFT JOIN {sql.dictionary(d)} ON {sql.dictionary(d)}.id = cells.{sql.name(d)}" for d in self.dimensions
        )
        measures = ", ".join(f"cells.{sql.name(m)}" for m in self.plain)
        return [
            f"CREATE OR REPLACE VIEW cells AS {union}",
            f"CREATE OR REPLACE VIEW rollup AS SELECT cells.bucket{shown}, {measures} FROM cells{joins}",
        ]

    def change_sql(self, stored: Schema, config: Config) -> list[str]:
        """The statements that bring a store with the schema `stored` to this one, which is that of `config`.

        New dimensions and measures are added, older rows having none of them. What was removed or redefined is dropped
        where `config.forget` names it, and ConfigError elsewhere: history would mean something else.
        """
        self._check_change(stored, config)
        statements = stored._second_layout_sql() if stored.layout < 2 else []
        statements += [create_intake_sql()] if stored.layout < LAYOUT else []
        gone = self.gone(stored)
        for name in gone:
            tables = (*TIERS, RAW) if name in stored.dimensions else TIERS
            statements += [f"ALTER TABLE {table} DROP COLUMN {sql.name(name)}" for table in tables]
            if name in stored.dimensions:
                statements.append(f"DROP TABLE {sql.dictionary(name)}")
        for dimension in self.dimensions:
            if dimension not in stored.dimensions:
                column = f"{sql.name(dimension)} UINTEGER DEFAULT 0"
                statements += [f"ALTER TABLE {table} ADD COLUMN {column}" for table in (*TIERS, RAW)]
                statements.append(self._dictionary_sql(dimension))
        for key, measure in self.measures.items():
            if key not in stored.measures or key in gone:
                statements += [f"ALTER TABLE {t} ADD COLUMN {sql.name(key)} {measure.type_in(t)}" for t in TIERS]
        return [*statements, *self.view_sql()] if statements else []

    def gone(self, stored: Schema) -> list[str]:
        """The dimensions and measures of `stored` that this schema has no more, or defines otherwise.

        The measures of a histogram are gone together: what was counted in some of its buckets only was never there.
        """
        dimensions = [d for d in stored.dimensions if d not in self.dimensions]
        measures = [m for m, old in stored.plain.items() if self.measures.get(m) != old]
        buckets = [m for h, old in stored.histograms.items() if self.histograms.get(h) != old for m in old]
        return dimensions + measures + buckets

    @property
    def plain(self) -> dict[str, Measure]:
        """The measures but for those that are a part of a histogram."""
        return {name: measure for name, measure in self.measures.items() if histogram_of(name) is None}

    @property
    def histograms(self) -> dict[str, dict[str, Measure]]:
        """The other measures, by histogram."""
        found: dict[str, dict[str, Measure]] = {}
        for name, measure in self.measures.items():
            if (histogram := histogram_of(name)) is not None:
                found.setdefault(histogram, {})[name] = measure
        return found

    def changes(self, stored: Schema) -> list[str]:
        """How this schema differs from `stored`, in words."""
        found = []
        for what, old, new in (
            ("dimension", dict.fromkeys(stored.dimensions), dict.fromkeys(self.dimensions)),
            ("measure", stored.plain, self.plain),
            ("histogram", stored.histograms, self.histograms),
            ("metric", stored.metrics, self.metrics),
        ):
            found += [f"{what} {name} added" for name in new if name not in old]
            found += [f"{what} {name} removed" for name in old if name not in new]
            found += [f"{what} {name} redefined" for name in new if name in old and new[name] != old[name]]
        return found

    def began(self, stored: Schema, at: dt.datetime | None) -> Schema:
        """This schema, knowing since when each column is counted that the store got after its first event.

        `at` is the newest event time of the store when it is brought from `stored` to this schema.
        """
        gone = self.gone(stored)
        kept = {name for name in (*stored.dimensions, *stored.measures) if name not in gone}
        names = [*self.dimensions, *self.measures]
        since = {name: stored.since[name] for name in names if name in kept and name in stored.since}
        added = {} if at is None else {name: at.isoformat() for name in names if name not in kept}
        return replace(self, since={**since, **added})

    def known_from(self, *names: str) -> dt.datetime | None:
        """Since when (aware) all of these dimensions and measures are counted; None: since there are events."""
        return max((dt.datetime.fromisoformat(self.since[name]) for name in names if name in self.since), default=None)

    def _check_change(self, stored: Schema, config: Config) -> None:
        for column in self.gone(stored):
            name = histogram_of(column) or column
            if name in config.forget or column in config.forget:
                continue
            if name in config.histograms:
                message = f"{name!r} is redefined, and older rows were counted in other buckets:"
                way = "give it another name"
            elif name in self.measures and name in stored.measures:
                message = f"{name!r} is redefined, and older rows were counted as {stored.measures[name].expression!r}:"
                way = "give it another name"
            else:
                message = f"{name!r} is gone, and the store has history of it:"
                way = "put it back"
            section = "dimensions" if name in stored.dimensions else "measures" if name == column else "histograms"
            loc = (section, name) if name in (*config.measures, *config.histograms) else (section,)
            message += f" {way}, or write 'forget: [{', '.join([*config.forget, name])}]' to drop that history"
            raise error_at(config.path, loc, message)

    @staticmethod
    def _dictionary_sql(dimension: str) -> str:
        return f"CREATE TABLE {sql.dictionary(dimension)}(id UINTEGER NOT NULL, value VARCHAR NOT NULL)"


_KIND = (  # the rest of such a reason is the record's own
    "CASE WHEN starts_with(reason, 'unknown ') OR starts_with(reason, 'too long') THEN split_part(reason, ':', 1)"
    " ELSE reason END"
)

_SQL_TYPES = {
    "string": "VARCHAR",
    "integer": "BIGINT",
    "number": "DOUBLE",
    "boolean": "BOOLEAN",
    "time": "TIMESTAMP",
}


def _columns(config: Config) -> list[tuple[str, EventField]]:
    derived = {config.enrich.browser, config.enrich.device} - config.events.fields.keys()
    return [*config.events.fields.items(), *((key, EventField()) for key in sorted(derived))]


def _type(connection: duckdb.DuckDBPyConnection, where: str, expression: str, columns: str) -> str:
    """The type of a measure's column; ConfigError where its expression means nothing, or no number."""
    try:
        row = connection.execute(f"SELECT typeof({expression}) FROM (SELECT {columns}) GROUP BY ALL").fetchone()
    except duckdb.Error as error:
        message = f"{where}: {expression!r} is not valid SQL: {sql.first_line(error)}"
        raise ConfigError(message) from error
    found = str(row[0]) if row else "DOUBLE"
    if not found.startswith(_NUMBERS):
        message = f"{where}: {expression!r} is a {found}, and a measure is a number"
        raise ConfigError(message)
    if found == "HUGEINT":  # DOUBLE does not overflow, which would stop ingestion, and is exact up to 2**53
        return "DOUBLE" if "SUM(" in expression.upper() else "BIGINT"
    return found


_NUMBERS = ("BIGINT", "INTEGER", "HUGEINT", "DOUBLE", "FLOAT", "DECIMAL", "SMALLINT", "TINYINT", "UBIGINT", "UINTEGER")


def rejected_sql(letters: str) -> str:
    """Counts the dead letters in a table by kind of reason: `reason`, `records`."""
    return f"SELECT {_KIND} AS reason, count(*) AS records FROM {letters} GROUP BY 1"
