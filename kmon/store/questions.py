"""Questions about one metric, in values and names instead of numbers: what apps, jobs and researchers ask.

Each verb picks the tiers that can answer and has a ``*_sql`` twin. `metric` is the name of a metric or of a measure;
`where` keeps dimension values, one or any of several; results are polars frames, or what `to` names: ``arrow``,
``pandas``. Times in results are UTC without a zone. UsageError where a name is unknown, with the nearest valid one.
"""

from __future__ import annotations

import datetime as dt
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args, overload

import polars as pl
import pyarrow as pa

from kmon.config.words import nearest
from kmon.errors import UsageError
from kmon.store import sql
from kmon.store.cells import EPOCH, MINUTE, interval, scan_sql
from kmon.store.schema import RAW, TIERS, Parts, Quantile, Schema
from kmon.store.sql import Where

To = Literal["polars", "arrow", "pandas"]
Against = Literal["yesterday", "previous"]
HOUR, DAY = dt.timedelta(hours=1), dt.timedelta(days=1)
SHORT = 2 * DAY
"""A longer series is shown by the hour unless told otherwise."""
FINEST = next(iter(TIERS.values()))


class Questions(ABC):
    """The verbs of a store that ask about one metric."""

    schema: Schema

    @abstractmethod
    def arrow(self, text: str) -> pa.Table:
        """The result of one SELECT."""

    @abstractmethod
    def _frame(self, text: str) -> pl.DataFrame:
        """The result of one SELECT as a frame."""

    @abstractmethod
    def condition(self, where: Where) -> str:
        """`where` as a condition on numbered dimensions."""

    @abstractmethod
    def begins(self, tier: str) -> dt.datetime | None:
        """What is older has moved out of a tier, or is moving; None where nothing has."""

    @abstractmethod
    def refresh(self) -> None:
        """Take notice of a schema that a reload has changed."""

    @overload
    def sql(self, text: str) -> pl.DataFrame: ...

    @overload
    def sql(self, text: str, *, to: To) -> Any: ...

    def sql(self, text: str, *, to: To = "polars") -> Any:
        """The result of one SELECT; timestamps are UTC without a zone."""
        if _one_of("to", to, To) == "arrow":
            return self.arrow(text)
        frame = self._frame(text)
        return frame if to == "polars" else frame.to_pandas()

    # ---- over time ---------------------------------------------------------------------------------------------------

    def series(
        self,
        metric: str,
        where: Where,
        start: dt.datetime,
        end: dt.datetime,
        by: str | Sequence[str] = (),
        grain: dt.timedelta | None = None,
        *,
        to: To = "polars",
    ) -> Any:
        """A metric over time: `bucket`, the dimensions `by`, `value`, `numerator`, `denominator`.

        A quantile has no numerator, and its denominator are the events of its histogram.

        Buckets are multiples of `grain`, the first is the one in which `start` lies. Without `grain` they are minutes,
        or hours where the range is longer than two days or its minutes are not kept any more. There is no row where
        nothing was, or where history is kept in coarser buckets only.
        """
        return self.sql(self.series_sql(metric, where, start, end, by, grain), to=to)

    def series_sql(
        self,
        metric: str,
        where: Where,
        start: dt.datetime,
        end: dt.datetime,
        by: str | Sequence[str] = (),
        grain: dt.timedelta | None = None,
    ) -> str:
        parts, names = self.parts(metric), self._listed(by)
        width = grain or self._grain(start, end)
        _check_width("grain", width)
        first = EPOCH + (start - EPOCH) // width * width
        dimensions = [sql.name(d) for d in names]
        cells = self.merged_sql(dimensions, _measures(parts), first, end, self._kept(where), width)
        bucket = f"time_bucket({interval(width)}, bucket, {sql.time(first)}) AS bucket"
        grouped = ", ".join([bucket, *dimensions, *self._sums(parts)])
        shown = ", ".join(
            ["bucket", *_names(names), f"{_value(parts)} AS value", *_both(parts, numerator=parts.quantile is None)]
        )
        order = ", ".join(str(i + 1) for i in range(1 + len(names)))
        return f"SELECT {shown} FROM (SELECT {grouped} FROM ({cells}) GROUP BY ALL) g{_joins(names)} ORDER BY {order}"

    def merged_sql(
        self,
        dimensions: Sequence[str],
        measures: Sequence[str],
        start: dt.datetime,
        end: dt.datetime,
        condition: str,
        width: dt.timedelta,
    ) -> str:
        """The cells for buckets of `width`, merged by their tiers' own buckets and (quoted) `dimensions`.

        What is left has few rows: to compute the wider bucket of every cell would take twice the time of all the rest.
        """
        keys = ", ".join(["bucket", *dimensions])
        cells = scan_sql(", ".join([keys, *map(sql.name, measures)]), start, end, condition, width)
        return f"SELECT {keys}, {self.schema.merged(measures)} FROM ({cells}) GROUP BY ALL"

    def _grain(self, start: dt.datetime, end: dt.datetime) -> dt.timedelta:
        if end - start > SHORT:
            return HOUR
        begins = self.begins("rollup_1m")
        return HOUR if begins and start < begins else MINUTE

    # ---- one window against another ----------------------------------------------------------------------------------

    def breakdown(
        self,
        metric: str,
        by: str,
        where: Where,
        at: dt.datetime,
        window: dt.timedelta,
        *,
        against: Against = "yesterday",
        limit: int = 100,
        to: To = "polars",
    ) -> Any:
        """A metric by the values of one dimension in the window that ends at `at`, those with most volume first.

        Columns: the dimension (null: an event without one), `now`, `before` (the window before), `yesterday`, `change`
        (relative to the window that `against` names), `share` (of the volume now), `numerator`, `denominator`. A count
        is 0 where it could have been, and null where nothing at all matched in that window. A quantile has no
        numerator, and its denominator are the events of its histogram.
        """
        return self.sql(self.breakdown_sql(metric, by, where, at, window, against, limit), to=to)

    def breakdown_sql(
        self,
        metric: str,
        by: str,
        where: Where,
        at: dt.datetime,
        window: dt.timedelta,
        against: Against = "yesterday",
        limit: int = 100,
    ) -> str:
        _check_width("window", window)
        parts = self.parts(metric)
        reference = {"yesterday": 2, "previous": 1}[_one_of("against", against, Against)]
        starts = [at - window, at - 2 * window, at - window - DAY]
        compared = self._compared_sql(parts, [self._known(by)], where, starts, window)
        now, before, yesterday = (_value(parts, str(i)) for i in range(3))
        volume = "d0" if parts.denominator else "n0"
        share = f"{volume} / nullif(sum({volume}) OVER (), 0)" if self._adds_up(parts) else "NULL::DOUBLE"
        change = f"{now} / nullif({(now, before, yesterday)[reference]}, 0) - 1"
        return (
            f"SELECT {', '.join(_names([by]))}, {now} AS now, {before} AS before, {yesterday} AS yesterday,"
            f" {change} AS change, {share} AS share, {', '.join(_both(parts, '0', numerator=parts.quantile is None))}"
            f" FROM ({compared}) g{_joins([by])}"
            f" ORDER BY {volume} DESC NULLS LAST, 1 LIMIT {limit}"
        )

    def top_movers(
        self,
        metric: str,
        by: str | Sequence[str],
        where: Where,
        at: dt.datetime,
        window: dt.timedelta,
        *,
        limit: int = 20,
        against: Against = "yesterday",
        least: float = 20,
        to: To = "polars",
    ) -> Any:
        """The values of one dimension, or of several together, whose metric moved most against another window.

        Those with at least `least` volume (counts; of a rate or mean its denominator) in one of the two windows, the
        least likely move first: `evidence` is in standard deviations of counts by chance. Columns: the dimensions,
        `now`, `before`, `change` (relative), `impact` (in units of the numerator), `evidence`, `numerator`,
        `denominator`, `numerator_before`, `denominator_before`. The numerators of a quantile are the events above what
        the quantile was before, the denominators all of its histogram.
        """
        return self.sql(self.top_movers_sql(metric, by, where, at, window, limit, against, least), to=to)

    def top_movers_sql(
        self,
        metric: str,
        by: str | Sequence[str],
        where: Where,
        at: dt.datetime,
        window: dt.timedelta,
        limit: int = 20,
        against: Against = "yesterday",
        least: float = 20,
    ) -> str:
        _check_width("window", window)
        parts, names = self.parts(metric), self._listed(by)
        if not self._adds_up(parts):
            message = f"{metric!r} is a smallest or largest value: how far it moved by chance cannot be told"
            raise UsageError(message)
        shift = {"yesterday": DAY, "previous": window}[_one_of("against", against, Against)]
        compared = self._compared_sql(parts, names, where, [at - window, at - window - shift], window)
        present = " AND ".join(f"{sql.name(d)} > 0" for d in names) or "true"
        impact = "n0 - n1" if parts.denominator is None else "n0 - d0 * n1 / nullif(d1, 0)"
        now, before = _value(parts, "0"), _value(parts, "1")
        if parts.quantile is not None:
            placed = f"SELECT *, {_position(parts.quantile, '1')} AS place FROM ({compared})"
            above = ", ".join(f"{_beyond(parts.quantile, str(i), 'place')} AS n{i}" for i in range(2))
            compared = f"SELECT * REPLACE ({above}) FROM ({placed})"
        volume = "d" if parts.denominator else "n"
        moved = (
            f"SELECT *, {now} AS now, {before} AS before, {impact} AS impact, {_EVIDENCE[parts.kind]} AS evidence"
            f" FROM ({compared}) WHERE {present} AND greatest({volume}0, {volume}1) >= {float(least)}"
        )
        shown = [*_names(names), "now", "before", "now / nullif(before, 0) - 1 AS change", "impact", "evidence"]
        shown += [*_both(parts, "0"), *_both(parts, "1", "_before")]
        order = ", ".join(["abs(evidence) DESC", *(str(i + 1) for i in range(len(names)))])
        return (
            f"SELECT {', '.join(shown)} FROM ({moved}) g{_joins(names)} WHERE abs(evidence) > 0"
            f" ORDER BY {order} LIMIT {limit}"
        )

    def _compared_sql(
        self, parts: Parts, by: Sequence[str], where: Where, starts: Sequence[dt.datetime], window: dt.timedelta
    ) -> str:
        """By the numbers of `by`: numerator and denominator n0, d0, n1, ... of the windows that begin at `starts`.

        Of a quantile also t0, t1, ...: the lists of how many events lie above each edge.
        """
        dimensions = [sql.name(d) for d in by]
        kept, columns = self._kept(where), [*dimensions, *map(sql.name, _measures(parts))]
        scans = [
            scan_sql(", ".join([f"{i} AS span", *columns]), start, start + window, kept, window)
            for i, start in enumerate(starts)
        ]
        sums, shown = [], []
        for i in range(len(starts)):
            here = f" FILTER (span = {i})"
            sums += [f"{text} AS {name}{i}" for name, text in self._merged(parts, here).items()]
            sums.append(f"count(*){here} AS rows{i}")
            for name in self._merged(parts):
                value = f"coalesce({name}{i}, 0)" if self._adds_up(parts) and name != "t" else f"{name}{i}"
                shown.append(f"CASE WHEN sum(rows{i}) OVER () > 0 THEN {value} END AS {name}{i}")
        return (
            f"SELECT {', '.join([*dimensions, *shown])} FROM (SELECT {', '.join([*dimensions, *sums])}"
            f" FROM ({' UNION ALL '.join(scans)}) GROUP BY ALL)"
        )

    # ---- whole events ------------------------------------------------------------------------------------------------

    def sample_events(
        self,
        where: Where,
        start: dt.datetime | None = None,
        end: dt.datetime | None = None,
        limit: int = 20,
        only: Mapping[str, str | Sequence[str]] | None = None,
        *,
        to: To = "polars",
    ) -> Any:
        """The newest whole events in [start, end): `event_time`, the dimensions, where from, the `document` as text.

        `only` keeps events by other fields of the document, nested ones with dots: ``{"status": "error"}``. Events are
        kept for as long as `keep.raw` says.
        """
        return self.sql(self.sample_events_sql(where, start, end, limit, only), to=to)

    def sample_events_sql(
        self,
        where: Where,
        start: dt.datetime | None = None,
        end: dt.datetime | None = None,
        limit: int = 20,
        only: Mapping[str, str | Sequence[str]] | None = None,
    ) -> str:
        clauses = [self._kept(where)]
        clauses += [f"event_time >= {sql.time(start)}"] if start else []
        clauses += [f"event_time < {sql.time(end)}"] if end else []
        for field, values in (only or {}).items():
            path = "$" + "".join(f'."{name}"' for name in field.replace('"', "").split("."))
            listed = ", ".join(sql.text(v) for v in ([values] if isinstance(values, str) else values)) or "NULL"
            found = f"json_extract_string(document, {sql.text(path)})"
            clauses.append(f"CASE WHEN json_valid(document) THEN {found} IN ({listed}) ELSE false END")
        names = list(self.schema.dimensions)
        shown = ", ".join(["event_time", *_names(names), "source", "partition", "position", "document"])
        newest = f"SELECT * FROM {RAW} WHERE {' AND '.join(clauses)} ORDER BY event_time DESC LIMIT {limit}"
        return f"SELECT {shown} FROM ({newest}) g{_joins(names)} ORDER BY event_time DESC, position DESC"

    # ---- names -------------------------------------------------------------------------------------------------------

    def parts(self, metric: str) -> Parts:
        """What a metric, or a measure taken as a count, is made of."""
        self.refresh()
        if metric in self.schema.metrics:
            return self.schema.metrics[metric]
        if metric in self.schema.measures:
            return Parts("count", metric)
        message = (
            f"{metric!r} is not a metric or measure; {nearest(metric, [*self.schema.metrics, *self.schema.plain])}"
        )
        raise UsageError(message)

    def check(self, where: Where) -> None:
        """UsageError where it names a dimension that the store does not have."""
        for dimension in where:
            self._known(dimension)

    def _known(self, dimension: str) -> str:
        self.refresh()
        if dimension not in self.schema.dimensions:
            message = f"{dimension!r} is not a dimension; {nearest(dimension, self.schema.dimensions)}"
            raise UsageError(message)
        return dimension

    def _listed(self, by: str | Sequence[str]) -> list[str]:
        return [self._known(d) for d in dict.fromkeys([by] if isinstance(by, str) else by)]

    def _kept(self, where: Where) -> str:
        self.check(where)
        return self.condition(where)

    def _merged(self, parts: Parts, here: str = "") -> dict[str, str]:
        """The aggregates that merge a metric's parts: numerator ``n``, denominator ``d``, and a quantile's tails ``t``.

        `here` is a FILTER for all of them.
        """

        def merged(measure: str) -> str:
            return f"{self.schema.measures[measure].merge}({sql.name(measure)}){here}"

        found = {key: merged(m) for key, m in (("n", parts.numerator), ("d", parts.denominator)) if m}
        if parts.quantile is not None:
            counts = [f"coalesce({merged(m)}, 0)" for m in parts.quantile.buckets]
            found["t"] = f"[{', '.join(' + '.join(counts[i:]) for i in range(len(counts)))}]"
        return found

    def _sums(self, parts: Parts) -> list[str]:
        return [f"{text} AS {key}" for key, text in self._merged(parts).items()]

    def _adds_up(self, parts: Parts) -> bool:
        return self.schema.measures[parts.numerator].merge == "sum"


_ROUGH = "greatest(1 / nullif(d0, 0) + 1 / nullif(d1, 0), 0)"
_SHARE = "(n0 + n1) / nullif(d0 + d1, 0)"
_OF_SHARES = (
    f"(n0 / nullif(d0, 0) - n1 / nullif(d1, 0)) / sqrt(nullif(greatest({_SHARE} * (1 - {_SHARE}), 0) * {_ROUGH}, 0))"
)
_EVIDENCE = {
    "count": "(n0 - n1) / sqrt(nullif(abs(n0 + n1), 0))",
    "rate": _OF_SHARES,
    "quantile": _OF_SHARES,
    "mean": f"(n0 / nullif(d0, 0) - n1 / nullif(d1, 0)) / nullif(abs({_SHARE}) * sqrt({_ROUGH}), 0)",
}
"""Standard deviations: of a difference of Poisson counts, of shares, of means that vary as much as they are large."""


def _measures(parts: Parts) -> list[str]:
    buckets = parts.quantile.buckets if parts.quantile else ()
    return [m for m in dict.fromkeys([parts.numerator, parts.denominator, *buckets]) if m]


def _value(parts: Parts, number: str = "") -> str:
    """A metric by its parts with this number; null where nothing was."""
    if parts.quantile is not None:
        return f"({parts.quantile.low!r} * pow({parts.quantile.ratio!r}, {_position(parts.quantile, number)}))"
    return f"n{number}" if parts.denominator is None else f"(n{number} / nullif(d{number}, 0))"


def _position(quantile: Quantile, number: str) -> str:
    """Where the tails have come down to 1 - q of all events, in buckets above the lowest edge."""
    tails, last = f"t{number}", len(quantile.buckets)
    target = f"{1 - quantile.q!r} * nullif(d{number}, 0)"
    reached = f"len(list_filter({tails}, lambda x: x > {target}))"
    inside = f"{reached} - 1 + ({tails}[{reached}] - {target}) / ({tails}[{reached}] - {tails}[{reached} + 1])"
    return (
        f"CASE WHEN d{number} > 0 THEN CASE {reached} WHEN 0 THEN 0 WHEN {last} THEN {last - 1} ELSE {inside} END END"
    )


def _beyond(quantile: Quantile, number: str, place: str) -> str:
    """How many events lie above a position, those of its own bucket in part."""
    tails, edge = f"t{number}", f"least(floor({place}), {len(quantile.buckets) - 2})::INTEGER + 1"
    return f"({tails}[{edge}] + ({place} + 1 - ({edge})) * ({tails}[{edge} + 1] - {tails}[{edge}]))"


def _both(parts: Parts, number: str = "", suffix: str = "", *, numerator: bool = True) -> list[str]:
    value = f"n{number}" if numerator else "NULL::DOUBLE"
    denominator = f"d{number}" if parts.denominator else "NULL::DOUBLE"
    return [f"{value} AS numerator{suffix}", f"{denominator} AS denominator{suffix}"]


def _names(dimensions: Sequence[str]) -> list[str]:
    return [f"{sql.dictionary(d)}.value AS {sql.name(d)}" for d in dimensions]


def _joins(dimensions: Sequence[str]) -> str:
    """Names for the numbers of the subquery ``g``."""
    return "".join(f" LEFT JOIN {sql.dictionary(d)} ON {sql.dictionary(d)}.id = g.{sql.name(d)}" for d in dimensions)


def _check_width(what: str, width: dt.timedelta) -> None:
    if width < FINEST or width % FINEST:
        message = f"a {what} of {width} is not a multiple of 10 seconds"
        raise UsageError(message)


def _one_of(what: str, value: str, choices: Any) -> str:
    if value not in get_args(choices):
        message = f"{value!r} is not a value of {what!r}; {nearest(str(value), get_args(choices))}"
        raise UsageError(message)
    return value
