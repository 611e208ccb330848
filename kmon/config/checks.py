"""What no single section of ``kmon.yaml`` can see: unknown names, names for two things, odd times."""

from __future__ import annotations

import datetime as dt
import typing
from collections.abc import Iterator

from kmon.config.bins import RECENT, bin_for
from kmon.config.expressions import columns_of, comparisons, merge_function
from kmon.config.words import BUCKET, MINUTE, nearest, show_duration

if typing.TYPE_CHECKING:
    from kmon.config.models import Config

Loc = tuple[str | int, ...]
Names = typing.Sequence[str] | typing.Mapping[str, str | None]
"""By the index or the key at which they stand."""
PIPELINE = "pipeline"
"""The metric of incidents that are of the data itself and not of a partner."""
_HOUR, _DAY = dt.timedelta(hours=1), dt.timedelta(days=1)
_RESERVED = ("bucket", "set", "slot", "events_")
"""Columns of the store that no dimension or measure may take the name of."""


def inconsistencies(config: Config) -> Iterator[tuple[Loc, str]]:
    """What no single section can see: names that refer to nothing or to two things, and times that do not fit."""
    fields = config.events.fields
    derived = {config.enrich.browser, config.enrich.device} if config.enrich.user_agent else set()
    measures, dimensions, metrics = ("a measure", config.measures), ("a dimension", config.dimensions), config.metrics
    a_field = ("a field of the events", sorted({*fields, *derived}))
    time = fields.get(config.events.time)
    if time is None or time.type != "time":
        yield ("events", "time"), f"{config.events.time!r} is not a field of type time"
    if "event_time" in fields and config.events.time != "event_time":
        yield (
            ("events", "fields", "event_time"),
            "the name 'event_time' is taken: only the field of the event time may have it",
        )
    yield from _unknown(("events",), {"partition": config.events.partition}, a_field)
    named = {"user_agent": config.enrich.user_agent, "country": config.enrich.country}
    yield from _unknown(("enrich",), named, ("a field of the events", fields))
    if (money := config.enrich.money) is not None:
        named = {"amount": money.amount, "currency": money.currency}
        yield from _unknown(("enrich", "money"), named, ("a field of the events", fields))
        if money.amount in fields and fields[money.amount].type != "number":
            yield ("enrich", "money", "amount"), f"{money.amount!r} is not a field of type number"
    yield from _unknown(("dimensions",), config.dimensions, a_field)
    yield from _measure_errors(config, a_field)
    if PIPELINE in metrics:
        yield ("metrics", PIPELINE), f"the name {PIPELINE!r} is taken: incidents of the data itself have it"
    for name, metric in metrics.items():
        if metric.kind == "quantile":
            yield from _unknown(("metrics", name), {"quantile": metric.quantile}, ("a histogram", config.histograms))
            continue
        for part in metric.parts:
            yield from _unknown(("metrics", name), {metric.kind: part}, measures)
            yield from _no_sums(config, ("metrics", name), {metric.kind: part})
    for i, grouping in enumerate(config.watch):
        yield from _unknown(("watch", i), grouping, dimensions)
    yield from _model_errors(config)
    yield from _unknown(("incidents", "impact"), config.incidents.impact, measures)
    yield from _no_sums(config, ("incidents", "impact"), config.incidents.impact)
    if (loss := config.incidents.money) is not None:
        for key in ("measure", "of"):
            yield from _unknown(("incidents", "money"), {key: getattr(loss, key)}, measures)
            yield from _no_sums(config, ("incidents", "money"), {key: getattr(loss, key)})
    for i, route in enumerate(config.routes):
        yield from _unknown(("routes", i, "sinks"), route.sinks, ("a sink", config.sinks))
        told = ("a metric", [*metrics, PIPELINE])
        yield from _unknown(("routes", i, "match", "metric"), route.match.metric or (), told)
        scope = dict(zip(route.match.scope, route.match.scope, strict=True))
        yield from _unknown(("routes", i, "match", "scope"), scope, dimensions)
    yield from _calendar_errors(config, dimensions)
    yield from _repetitions(config)
    yield from _time_errors(config)
    yield from _keep_errors(config)


def _unknown(loc: Loc, names: Names, known: tuple[str, typing.Iterable[str]]) -> Iterator[tuple[Loc, str]]:
    """Those of `names`, by the key or the index at which they stand under `loc`, that are not `known`."""
    what, valid = known
    for key, name in _by_place(names):
        if name is not None and name not in valid:
            yield (*loc, key), f"{name!r} is not {what}; {nearest(name, valid)}"


def _no_sums(config: Config, loc: Loc, names: Names) -> Iterator[tuple[Loc, str]]:
    """Those of the measures `names` that are a smallest or largest value: detection adds up bins and monitors."""
    for key, name in _by_place(names):
        if name in config.measures and (merge := merge_function(config.measures[name])) != "sum":
            what = {"min": "smallest", "max": "largest"}[merge]
            yield (*loc, key), f"{name!r} is a {what} value, which does not add up: only counts and sums can be watched"


def _by_place(names: Names) -> Iterator[tuple[str | int, str | None]]:
    return iter(names.items() if isinstance(names, typing.Mapping) else enumerate(names))


def _calendar_errors(config: Config, dimensions: tuple[str, typing.Iterable[str]]) -> Iterator[tuple[Loc, str]]:
    for code in config.calendar.zones:
        yield from _no_country(("calendar", "zones", code), code)
    for i, event in enumerate(config.calendar.events):
        loc: Loc = ("calendar", "events", i, "scope")
        yield from _unknown(loc, dict(zip(event.scope, event.scope, strict=True)), dimensions)
        if config.enrich.country in event.scope:
            yield from _no_country((*loc, config.enrich.country or ""), event.scope[config.enrich.country or ""])
    for i, shift in enumerate(config.calendar.shifts):
        scope = dict(zip(shift.scope, shift.scope, strict=True))
        yield from _unknown(("calendar", "shifts", i, "scope"), scope, dimensions)


def _no_country(loc: Loc, code: str) -> Iterator[tuple[Loc, str]]:
    import pycountry

    codes = [country.alpha_2 for country in pycountry.countries]
    if code not in codes:
        yield loc, f"{code!r} is not a country; {nearest(code.upper(), codes, 'write its ISO 3166 code, such as DE')}"


def _measure_errors(config: Config, a_field: tuple[str, typing.Iterable[str]]) -> Iterator[tuple[Loc, str]]:
    for measure, expression in config.measures.items():
        yield from _expression_errors(config, ("measures", measure), expression, a_field)
    for name, histogram in config.histograms.items():
        field = config.events.fields.get(histogram.of)
        if field is not None and field.type not in ("number", "integer"):
            yield ("histograms", name, "of"), f"{histogram.of!r} is not a field of type number or integer"
        yield from _unknown(("histograms", name), {"of": histogram.of}, ("a field of the events", config.events.fields))
        if histogram.where is not None:
            counted = f"count(*) FILTER ({histogram.where})"
            yield from _expression_errors(config, ("histograms", name, "where"), counted, a_field)


def _expression_errors(
    config: Config, loc: Loc, expression: str, a_field: tuple[str, typing.Iterable[str]]
) -> Iterator[tuple[Loc, str]]:
    try:
        merge_function(expression)
    except ValueError as error:
        yield loc, str(error)
        return
    for column in columns_of(expression):
        for _, message in _unknown((), [column], a_field):
            yield loc, message
    for column, text in comparisons(expression):
        field = config.events.fields.get(column)
        if field is not None and field.values:  # an event with another value is rejected, so this counts nothing
            for _, message in _unknown((), [text], (f"a value of {column!r}", field.values)):
                yield loc, message


def _model_errors(config: Config) -> Iterator[tuple[Loc, str]]:
    models = config.models
    for i, scope in enumerate(models.monitors):
        loc = ("models", "monitors", i)
        yield from _unknown(loc, dict(zip(scope, scope, strict=True)), ("a dimension", config.dimensions))
        if not config.watches(scope):
            yield loc, f"no line of 'watch' is [{', '.join(scope)}]: only what is watched has use for a model"
    if models.history < 2 * _DAY:
        yield ("models", "history"), f"{show_duration(models.history)} is too short: at least 2d"
    for key in ("stale", "limit"):
        if not getattr(models, key):
            yield ("models", key), "0s is too short"


def _repetitions(config: Config) -> Iterator[tuple[Loc, str]]:
    taken = dict.fromkeys(_RESERVED, "kmon itself")
    columns = [(("dimensions", i), d, "a dimension") for i, d in enumerate(config.dimensions)]
    for loc, name, what in columns + [(("measures", m), m, "a measure") for m in config.measures]:
        if name.lower() in taken:  # names of columns do not tell upper from lower case
            yield loc, f"the name {name!r} is taken by {taken[name.lower()]}"
        taken[name.lower()] = what
    for name, histogram in config.histograms.items():
        for key, text in histogram.measures(name).items():
            if key.lower() in taken and config.measures.get(key) != text:
                yield ("histograms", name), f"its name for a bucket, {key!r}, is taken by {taken[key.lower()]}"
            taken[key.lower()] = f"the histogram {name!r}"
    seen: set[frozenset[str]] = set()
    for i, grouping in enumerate(config.watch):
        if len(set(grouping)) < len(grouping) or frozenset(grouping) in seen:
            yield ("watch", i), f"[{', '.join(grouping)}] is there twice"
        seen.add(frozenset(grouping))
    if len(set(config.windows)) < len(config.windows):
        yield ("windows",), "a window is there twice"


def _time_errors(config: Config) -> Iterator[tuple[Loc, str]]:
    for i, window in enumerate(config.windows):
        if not window or window % (BUCKET if window < MINUTE else MINUTE):
            yield ("windows", i), f"{show_duration(window)} is not a whole number of minutes, or of 10s below a minute"
    if config.every < BUCKET or config.every % BUCKET:
        yield ("every",), f"{show_duration(config.every)} is not a multiple of 10s"
    if config.every > max(config.windows):
        longest = f"the longest window, {show_duration(max(config.windows))}"
        yield ("every",), f"{show_duration(config.every)} is longer than {longest}: events between are never judged"
    for name, job in config.jobs.items():
        if not job.every or not job.timeout:
            yield ("jobs", name, "every" if not job.every else "timeout"), "0s is too short"


def _keep_errors(config: Config) -> Iterator[tuple[Loc, str]]:
    """Each tier is kept longer than the finer one, and as long as windows find their references in it."""
    keep, longest = config.keep, max(config.windows)
    least = -(-(_DAY + RECENT * bin_for(config.windows)) // _DAY) * _DAY
    if keep.minutes < least:
        words = f"{show_duration(keep.minutes)} is too short for the references of windows of {show_duration(longest)}"
        yield ("keep", "minutes"), f"{words}: at least {show_duration(least)}"
    if min(config.windows) < MINUTE and keep.ten_seconds < _HOUR:
        words = f"{show_duration(keep.ten_seconds)} is too short for windows of {show_duration(min(config.windows))}"
        yield ("keep", "ten_seconds"), f"{words}: at least 1h"
    if keep.minutes <= keep.ten_seconds:
        yield ("keep", "minutes"), f"it must be longer than ten_seconds, {show_duration(keep.ten_seconds)}"
    if keep.hours <= keep.minutes:
        yield ("keep", "hours"), f"it must be longer than minutes, {show_duration(keep.minutes)}"


class InconsistentError(ValueError):
    def __init__(self, loc: tuple[str | int, ...], message: str) -> None:
        super().__init__(message)
        self.loc = loc
