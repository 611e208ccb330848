"""The knobs: every one is declared once, here, with its meaning.

The notebooks, the apps and the command line read these models. Durations are written ``10s``, ``5m``, ``1h``, ``2d``;
times without an offset are UTC.
"""

from __future__ import annotations

import datetime as dt
import re
import zoneinfo
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    SecretStr,
    field_validator,
    model_validator,
)

from kmon.config.checks import InconsistentError, inconsistencies
from kmon.config.metrics import STRICT, Histogram, Metric
from kmon.config.words import MINUTE, Address, Duration, Name, Size, nearest


class Model(BaseModel):
    """A section of ``kmon.yaml``."""

    model_config = STRICT


class EventField(Model):
    """A field of an event."""

    type: Literal["string", "integer", "number", "boolean", "time"] = "string"
    path: str | None = None
    """Where it stands in the document, if not under its own name: ``geo.country`` for a nested object."""
    format: str = "auto"
    """Of a time: ``auto`` (RFC 3339 text or epoch milliseconds), ``epoch_s``, ``epoch_ms`` or a strftime pattern."""
    timezone: str = "UTC"
    """Of a time without an offset: an IANA name."""
    required: bool = False
    """A record without it goes to the dead letters."""
    values: tuple[str, ...] | None = None
    """The only values it may have; a record with another one goes to the dead letters."""

    @field_validator("path")
    @classmethod
    def _path(cls, value: str | None) -> str | None:
        if value is not None and not all(value.split(".")):
            message = (
                f"{value!r} is not a path: write the names of nested objects with dots between, such as geo.country"
            )
            raise ValueError(message)
        return value

    @field_validator("format")
    @classmethod
    def _format(cls, value: str) -> str:
        if value not in ("auto", "epoch_s", "epoch_ms") and "%" not in value:
            message = (
                f"{value!r} is not a time format: write auto, epoch_s, epoch_ms or a pattern such as %d/%m/%Y %H:%M"
            )
            raise ValueError(message)
        return value

    @field_validator("timezone")
    @classmethod
    def _timezone(cls, value: str) -> str:
        return _zone(value)


class Events(Model):
    """What an event looks like and when it is believable."""

    fields: dict[Name, EventField]
    time: Name = "ts"
    """The field with the event time."""
    partition: Name | None = None
    """The field that names the source partition in recorded files: a lagging one holds the watermark."""
    lateness: Duration = dt.timedelta(seconds=30)
    """The watermark stays this far behind the newest event time; what comes later still counts."""
    idle: Duration = dt.timedelta(minutes=10)
    """A partition without events for this long no longer holds the watermark."""
    max_ahead: Duration = dt.timedelta(hours=1)
    """An event further than this in the future, by the clock or by the events around it, is absurd."""
    oldest: dt.date = dt.date(2000, 1, 1)
    """An event before this day is absurd."""
    max_bytes: int = Field(default=1_048_576, gt=0)
    """A longer record goes to the dead letters."""


class Money(Model):
    """Amounts in one currency. An event in a currency without a rate counts, its amount does not."""

    amount: Name = "amount"
    """The field that is converted."""
    currency: Name = "currency"
    """The field with the amount's currency."""
    to: str = "EUR"
    """The common currency."""
    rates: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] | str
    """What one unit of a currency is worth in `to`; or a csv with the columns currency and rate, read as it changes."""


class Enrich(Model):
    """What the pipeline derives from an event's fields."""

    user_agent: Name | None = None
    """The field with a browser's user-agent text, from which missing `browser` and `device` are filled."""
    browser: Name = "browser"
    device: Name = "device"
    country: Name | None = None
    """The field with a country, which becomes its ISO 3166 alpha-2 code; what is no country stays as it is."""
    money: Money | None = None


def _setting(value: object) -> object:
    """The text that librdkafka takes for a number or a yes and no of YAML."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | float) else value


class FilesSource(Model):
    """Recorded events, read in the order of their names; new files and new lines are followed."""

    kind: Literal["files"]
    paths: tuple[str, ...] = Field(min_length=1)
    """Files or glob patterns, relative to kmon.yaml."""


class SimulatorSource(Model):
    """Made-up traffic with incidents, for trying things out."""

    kind: Literal["simulator"]
    partners: int = Field(default=2000, ge=1)
    rate: float = Field(default=20.0, gt=0)
    """Events a second on average."""
    history: Duration = dt.timedelta(days=2)
    """How much is loaded at the first start."""
    incident_every: Duration = dt.timedelta(minutes=6)
    seed: int = 1


_TAKEN = {
    "bootstrap.servers": "brokers",
    "metadata.broker.list": "brokers",
    "group.id": "group",
    "auto.offset.reset": "start",
    "enable.auto.commit": "the store",
    "enable.auto.offset.store": "the store",
    "enable.partition.eof": "kmon itself",
}
"""librdkafka's settings that are not for `KafkaSource.settings`, and what sets them."""


class KafkaSource(Model):
    """Topics of a Kafka cluster; the store keeps the positions."""

    kind: Literal["kafka"]
    brokers: tuple[str, ...] = Field(min_length=1)
    """``host:port`` of some brokers, from which the others are found."""
    topics: tuple[str, ...] = Field(min_length=1)
    """Names, or patterns that begin with ``^`` and match from the start of a name; new topics that match are read."""
    group: str = Field(default="kmon", min_length=1)
    """The consumer group that Kafka's own tools show the positions of; kmon itself never reads them there."""
    start: Literal["earliest", "latest"] = "earliest"
    """Where to begin with a topic of which the store has no position; what is added later is read from its start."""
    settings: dict[str, Annotated[SecretStr, BeforeValidator(_setting)]] = {}
    """Any of librdkafka's settings, such as ``security.protocol``; a value may be a secret, and none is ever shown."""
    linger: Duration = dt.timedelta(milliseconds=200)
    """A batch waits this long for more when there is little."""
    batch_records: int = Field(default=100_000, ge=1)
    """The most messages in a batch, when there is much."""
    batch_bytes: int = Field(default=32_000_000, ge=1)
    """The most bytes in a batch, as far as single messages are smaller."""

    @field_validator("topics")
    @classmethod
    def _topics(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for topic in value:
            try:
                re.compile(topic)
            except re.error as error:
                message = f"{topic!r} is not a pattern: {error}"
                raise ValueError(message) from None
            if not topic.startswith("^") and not re.fullmatch(r"[A-Za-z0-9._-]{1,249}", topic):
                message = f"{topic!r} is not the name of a topic; a pattern begins with ^"
                raise ValueError(message)
        return value

    @field_validator("settings")
    @classmethod
    def _settings(cls, value: dict[str, SecretStr]) -> dict[str, SecretStr]:
        for key in value.keys() & _TAKEN.keys():
            message = f"{key!r} is set by {_TAKEN[key]}"
            raise ValueError(message)
        return value


Source = Annotated[FilesSource | KafkaSource | SimulatorSource, Field(discriminator="kind")]


class Keep(Model):
    """How long what is kept, counted back from the watermark; rows that leave one tier move into the next."""

    raw: Duration = dt.timedelta(hours=2)
    """Whole events, for ad-hoc questions and samples; 0s keeps none."""
    raw_bytes: Size = 2_000_000_000
    """At most so many bytes of whole events, the oldest going first."""
    ten_seconds: Duration = dt.timedelta(hours=2)
    """Rollups in buckets of ten seconds, in whole hours; then they are merged into minutes."""
    minutes: Duration = dt.timedelta(days=35)
    """Rollups by the minute, in whole days; then they are merged into hours. Windows have no reference before."""
    hours: Duration = dt.timedelta(days=400)
    """Rollups by the hour, in whole days; then they are gone."""
    dead_letters: Duration = dt.timedelta(days=30)
    """Rejected records, by the clock; how many there were is kept for good."""


class DetectorUse(Model):
    """A detector and its parameters."""

    use: str
    """``compare``, ``silence``, ``kmon.detect:Surprise``, or one's own as ``module:Name``.

    A detector of single series, such as Surprise, judges the monitors that ``models`` chooses.
    """
    params: dict[str, Any] = {}
    shadow: bool = False
    """Score and record, never alert."""


class Loss(Model):
    """What an incident costs: the missing events of one measure, at what such an event was worth before."""

    measure: Name
    """What they are worth, such as the amount of orders."""
    of: Name
    """The measure that counts the events, such as orders."""
    critical: float = Field(default=1000.0, gt=0)
    """An incident that costs so much an hour is critical, a smaller one a warning, whatever its relative change."""


class Models(Model):
    """Statistical models whose forecasts serve as one more reference, for the monitors that deserve them.

    The job ``deep_scan`` fits them, as often as its `every` says.
    """

    largest: int = Field(default=0, ge=0)
    """So many of the monitors with most events on the last day; 0 is none."""
    monitors: tuple[dict[Name, str], ...] = ()
    """And these, by their dimension values: ``{partner: p1}``; ``{}`` is everything together."""
    history: Duration = dt.timedelta(days=28)
    """How far a fit looks back, as far as `keep.minutes` goes."""
    stale: Duration = dt.timedelta(hours=36)
    """A fit is used for so long, then the comparison judges alone until there is another."""
    limit: Duration = dt.timedelta(seconds=20)
    """What the models of one series may take; those that were not tried by then are left out."""

    @property
    def on(self) -> bool:
        """Whether anything is fitted and used."""
        return self.largest > 0 or bool(self.monitors)


class Incidents(Model):
    """How anomalies become incidents."""

    resolve_after: int = Field(default=3, ge=1)
    """Judged sweeps in a row without the anomaly, after which an incident is resolved."""
    lasting: Duration = dt.timedelta(hours=24)
    """An incident that has lasted this long is the new normal: it is resolved and its minutes serve as references."""
    impact: tuple[Name, ...] = ()
    """The measures in which the loss is told, observed minus expected since the start."""
    critical: float = Field(default=0.5, gt=0, le=1)
    """A relative change of at least this much in the bad direction is critical; a smaller one a warning."""
    money: Loss | None = None
    """Severity comes from what is lost, where it can be told; default from the relative change."""


class Pipeline(Model):
    """When the data itself is in trouble: the operators are told, and verdicts that it explains are held back."""

    channel: str | None = None
    """Where the operators are told, default the route's channel or `default_channel`."""
    missing: int = Field(default=50, ge=20)
    """So many events must be missing, or records rejected, before anybody is told."""
    quiet: Duration = Field(default=dt.timedelta(minutes=5), ge=MINUTE)
    """A source without any event for this long has gone quiet, where it usually has some at that time."""
    lag: Duration = Field(default=dt.timedelta(minutes=10), ge=MINUTE)
    """Data that falls so much further behind the clock than it was, while events come, is late."""
    rejects: float = Field(default=0.05, gt=0, lt=1)
    """A share of rejected records that is larger by this than it was in the day before is a fault of a producer."""


class Match(Model):
    """Which incidents a route takes; what is not named matches all."""

    metric: tuple[Name, ...] | None = None
    severity: tuple[Literal["critical", "warning", "info"], ...] | None = None
    scope: dict[Name, tuple[str, ...]] = {}
    """Dimension values, one of which the incident's scope must have."""


class Route(Model):
    """Which incidents go to which sinks; the first route that matches decides."""

    match: Match = Match()
    sinks: tuple[Name, ...]
    channel: str | None = None
    """Overrides the partner's own channel."""


class ConsoleSink(Model):
    """A line on the terminal that begins with ``incident``."""

    channels: ClassVar[bool] = False
    """Whether it tells one channel apart from another."""
    kind: Literal["console"]


class FolderSink(Model):
    """The message as text and JSON and the chart as PNG, a folder for each alert."""

    channels: ClassVar[bool] = False
    kind: Literal["folder"]
    path: str = "alerts"


class SlackSink(Model):
    """Slack, with the token in SLACK_BOT_TOKEN."""

    channels: ClassVar[bool] = True
    kind: Literal["slack"]


Sink = Annotated[ConsoleSink | FolderSink | SlackSink, Field(discriminator="kind")]


def _date(value: object) -> object:
    """A day as YAML or text has it; a time of day is none."""
    if isinstance(value, dt.date) and not isinstance(value, dt.datetime):
        return value
    try:
        return dt.date.fromisoformat(str(value))
    except ValueError:
        message = f"{str(value)!r} is not a date: write for example 2026-11-27"
        raise ValueError(message) from None


def _zone(value: str) -> str:
    """An IANA name; ValueError with the nearest one otherwise."""
    if value not in zoneinfo.available_timezones():
        hint = nearest(value, zoneinfo.available_timezones(), "write for example Europe/London")
        message = f"{value!r} is not a time zone; {hint}"
        raise ValueError(message)
    return value


def _utc(value: dt.datetime) -> dt.datetime:
    return value.replace(tzinfo=dt.UTC) if value.tzinfo is None else value.astimezone(dt.UTC)


Date = Annotated[dt.date, BeforeValidator(_date)]
Moment = Annotated[dt.datetime, AfterValidator(_utc)]
"""A time; UTC where it names no offset."""


class CalendarEvent(Model):
    """Days that are like no others: a sale, a match, a freeze. Days are those of a monitor's own time zone."""

    name: str = Field(min_length=1)
    """What people call it; days of events with one name are comparable with each other."""
    dates: tuple[Date, ...] = ()
    first: Date | None = Field(default=None, alias="from")
    """The first day of a longer event."""
    last: Date | None = Field(default=None, alias="to")
    """Its last day, included."""
    scope: dict[Name, str] = {}
    """Dimension values of the monitors that it concerns; default all."""

    @model_validator(mode="after")
    def _some_days(self) -> CalendarEvent:
        if (self.first is None) != (self.last is None) or bool(self.dates) == (self.first is not None):
            message = f"the event {self.name!r} has either dates, or from and to"
            raise ValueError(message)
        if self.first is not None and self.last is not None and self.last < self.first:
            message = f"the event {self.name!r} ends on {self.last}, before it begins on {self.first}"
            raise ValueError(message)
        return self

    def on(self, day: dt.date) -> bool:
        """Whether that day is one of the event's."""
        return day in self.dates or (
            self.first is not None and self.last is not None and self.first <= day <= self.last
        )


class Shift(Model):
    """A level that changed for good, such as a partner's with a new contract: what came before tells nothing of it."""

    name: str = Field(min_length=1)
    """What people call it."""
    at: Moment
    """When it changed."""
    scope: dict[Name, str] = {}
    """Dimension values of the monitors that it concerns, with those inside; default all."""


class Calendar(Model):
    """Which days are comparable, beyond the time of day; a list stands for its `events`."""

    holidays: bool = True
    """The public holidays of each country of `enrich.country`, from the holidays package, are days of another kind."""
    zones: dict[str, Annotated[str, AfterValidator(_zone)]] = {}
    """The time zone of a country that has several, by its alpha-2 code; default that of its largest city."""
    events: tuple[CalendarEvent, ...] = ()
    shifts: tuple[Shift, ...] = ()
    """Levels that changed for good; ``kmon label INCIDENT new-normal`` adds to them."""

    @model_validator(mode="before")
    @classmethod
    def _list(cls, value: object) -> object:
        return {"events": value} if isinstance(value, list | tuple) else value


class Job(Model):
    """A notebook that papermill runs on a schedule."""

    notebook: str
    """Relative to the notebooks folder."""
    every: Duration = dt.timedelta(minutes=1)
    timeout: Duration = dt.timedelta(minutes=5)
    keep: int = Field(default=100, ge=1)
    """Executed notebooks kept; failed ones count too."""
    params: dict[str, Any] = {}


class Apps(Model):
    """Where the pages are served."""

    host: str = "127.0.0.1"
    port: int = Field(default=5006, ge=0, le=65535)
    url: str | None = None
    """How people reach them, for links in alerts; default ``http://<host>:<port>``."""

    @property
    def base_url(self) -> str:
        return (self.url or f"http://{'localhost' if self.host == '127.0.0.1' else self.host}:{self.port}").rstrip("/")


class Queries(Model):
    """What the questions of readers may cost the owner of the store, so that ingestion never waits for them."""

    timeout: Duration = Field(default=dt.timedelta(seconds=10), gt=dt.timedelta(0))
    """A question that takes longer is cancelled, at the store."""
    memory: Size | None = Field(default=None, gt=0)
    """What the database may use in memory, its cache included; default half of the machine's."""
    disk: Size = Field(default=10_000_000_000, gt=0)
    """What sorting and joining may put on disk, beside the store, when the memory is used up."""


class Telemetry(Model):
    """Where Prometheus finds kmon's own metrics, under ``/metrics``."""

    host: str = "127.0.0.1"
    port: int = Field(default=9464, ge=1, le=65535)


class Config(Model):
    """The whole of ``kmon.yaml``."""

    name: str = "kmon"
    store: str = "kmon.duckdb"
    """The DuckDB file, relative to kmon.yaml, or the ``quack:`` address of a running one."""
    serve: Address = "quack:localhost:9494"
    """Where the owner of the store answers readers."""
    serve_beyond_localhost: bool = False
    """Answer readers of other machines too, at the host in `serve`: they get an unencrypted answer, so put a proxy
    with TLS in front, or trust the network."""
    queries: Queries = Queries()
    ledger: str | None = None
    """SQLAlchemy URL; default a SQLite file beside the store."""
    notebooks: str = "notebooks"
    partners: str | None = None
    """The partner reference (csv or parquet), joined at read time."""
    default_channel: str = "#kmon"
    """For incidents that belong to no partner with a channel of its own."""
    source: Source
    events: Events
    enrich: Enrich = Enrich()
    keep: Keep = Keep()
    dimensions: tuple[Name, ...]
    measures: dict[Name, str]
    """SQL aggregates by name; once the configuration is checked, those that the histograms stand for are among them."""
    histograms: dict[Name, Histogram] = {}
    metrics: dict[Name, Metric]
    forget: tuple[Name, ...] = ()
    """Dimensions, measures and histograms whose history may be dropped, as they were removed or redefined."""
    watch: tuple[tuple[Name, ...], ...]
    """The grouping sets: each combination of values of each set is a monitor of every metric."""
    windows: tuple[Duration, ...] = Field(
        default=(dt.timedelta(minutes=1), dt.timedelta(minutes=5), dt.timedelta(minutes=15)), min_length=1
    )
    every: Duration = MINUTE
    """The time between two sweeps."""
    false_alerts_per_day: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """For the whole fleet, in equal parts to the widths of `windows` and to the looks at them."""
    detectors: tuple[DetectorUse, ...] = (DetectorUse(use="compare"),)
    models: Models = Models()
    incidents: Incidents = Incidents()
    pipeline: Pipeline = Pipeline()
    sinks: dict[Name, Sink] = {}
    routes: tuple[Route, ...] = ()
    calendar: Calendar = Calendar()
    jobs: dict[Name, Job] = {}
    apps: Apps = Apps()
    telemetry: Telemetry | None = None
    """Default: nowhere."""

    path: Path = Path("kmon.yaml")
    """Where it was read from; not a key of the file."""
    copied: Path | None = None
    """The copy of it that a running kmon goes by, whatever becomes of `path` meanwhile; not a key of the file."""
    digest: str = ""
    """Of the text: two that are alike were read from the same; not a key of the file."""

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        for loc, message in inconsistencies(self):
            raise InconsistentError(loc, message)
        for name, histogram in self.histograms.items():
            self.measures.update(histogram.measures(name))
        for metric in self.metrics.values():
            metric.bind(self.histograms)
        return self

    def resolve(self, name: str) -> Path:
        """A path in the file, relative to the folder the file is in."""
        return (self.path.parent / name).expanduser()

    def watches(self, scope: Collection[str]) -> bool:
        """Whether a line of `watch` has these dimensions, and no others."""
        return any({*grouping} == {*scope} for grouping in self.watch)

    def beside(self, name: str, store: str | None = None) -> Path:
        """A folder for what kmon keeps for itself: beside the store's file, or beside kmon.yaml without a local one."""
        given = [Path(store)] if store and not store.startswith("quack:") else []
        own = [] if self.store.startswith("quack:") else [self.resolve(self.store)]
        return [*given, *own, self.path][0].absolute().parent / name

    @property
    def file(self) -> Path:
        """What a child process reads to get this configuration again."""
        return (self.copied or self.path).absolute()
