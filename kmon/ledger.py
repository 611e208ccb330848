"""The ledger: what people and jobs say about what happened. Incidents, labels, the outbox, sweeps, job runs and
fitted models.

SQLite in WAL mode beside the store by default, PostgreSQL by URL; many small transactions from many processes. All
times are timezone-aware UTC. One sweep is one transaction (`Ledger.record`), so a crash leaves no incident without its
alert and no alert without its incident.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, cast

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Dialect, RowMapping

from kmon import environment
from kmon.calibrate import LEVELS, Calibration, Key, Tail, Tails
from kmon.config import PIPELINE, Config
from kmon.errors import LedgerError

Status = Literal["firing", "acked", "snoozed", "resolved"]
Severity = Literal["critical", "warning", "info"]
SEVERITIES: tuple[Severity, ...] = ("info", "warning", "critical")
"""The least first."""
Direction = Literal["down", "up"]
Told = Literal["firing", "changed", "resolved"]
"""What an alert tells of an incident."""
Word = Literal["true", "false", "new-normal", "incident"]
WORDS: tuple[Word, ...] = ("true", "false", "new-normal")
"""What is said of an incident; ``incident`` is said of a stretch of time without one."""
SETTLING: tuple[Word, ...] = ("false", "new-normal")
"""After which an incident is over, and its minutes serve as references."""
LABELLED = "labelled "
"""How the reason of an incident begins that is over because of its label."""
DAY = dt.timedelta(days=1)
EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
FITS_KEPT = dt.timedelta(days=3)
"""Fits whose data ended so long before the newest one's are dropped."""
OPEN: tuple[Status, ...] = ("firing", "acked", "snoozed")


@dataclass(frozen=True)
class Incident:
    """Anomalies with one cause, as DESIGN 5.3 shows them, plus what the lifecycle needs."""

    id: str
    status: Status
    severity: Severity
    metric: str
    direction: Direction
    scope: dict[str, str]
    """The smallest set of dimension values that explains the change; empty for everything."""
    started_at: dt.datetime
    """The estimate of when it began."""
    detected_at: dt.datetime
    """Event time of the end of the data that first fired."""
    resolved_at: dt.datetime | None
    observed: float
    expected: float
    lower: float
    upper: float
    p_value: float
    impact: dict[str, float]
    """Observed minus expected since the start, by measure."""
    anomalies: int
    """Flagged monitors that this incident explained, over all its sweeps."""
    channel: str
    url: str
    window: dt.timedelta
    """Width of the window that showed it best."""
    evidence: float
    """Largest likelihood gain of its scope, in nats: a stronger one may change scope and metric."""
    seen_at: dt.datetime
    """The last sweep that flagged it."""
    quiet: int
    """Judged sweeps since then."""
    detector: str
    reason: str
    """Why it is in its state, in words."""

    def public(self) -> dict[str, Any]:
        """The JSON object of ``kmon incidents --format json``."""
        row = asdict(self)
        times = {key: show_time(row[key]) for key in ("started_at", "detected_at", "resolved_at")}
        keys = (
            "id status severity metric direction scope started_at detected_at resolved_at observed expected lower "
            "upper p_value impact anomalies channel url"
        )
        return {key: row[key] for key in keys.split()} | times


@dataclass(frozen=True)
class Label:
    """What a person says of an incident, or of a stretch of time that has none."""

    id: str
    word: Word
    """``true`` and ``false``: a real incident, a false alarm. ``new-normal``: it is the usual level from now on.
    ``incident``: one that was not found."""
    incident: str | None
    """The id of the incident; None of a stretch."""
    metric: str
    scope: dict[str, str]
    started_at: dt.datetime
    resolved_at: dt.datetime | None
    """None: it goes on."""
    known_at: dt.datetime
    """Event time of the last sweep before it was said: what was judged up to then did not know it."""
    said_at: dt.datetime
    """Wall clock."""
    said_by: str

    def public(self) -> dict[str, Any]:
        """The JSON object of ``kmon label --format json``."""
        return asdict(self) | {
            key: show_time(getattr(self, key)) for key in ("started_at", "resolved_at", "known_at", "said_at")
        }


@dataclass(frozen=True)
class Anomaly:
    """One monitor in one window that a sweep flagged, and the incident that explains it."""

    at: dt.datetime
    incident: str
    metric: str
    scope: dict[str, str]
    window: dt.timedelta
    direction: Direction
    observed: float
    expected: float
    p_value: float
    detector: str
    shadow: bool = False


@dataclass(frozen=True)
class Delivery:
    """An outbox row: one alert for one sink, kept until it is delivered."""

    id: str
    incident: str
    kind: Told
    sink: str
    channel: str
    created_at: dt.datetime
    status: Literal["pending", "sending", "sent", "failed"] = "pending"
    attempts: int = 0
    due_at: dt.datetime | None = None
    """Not before this (wall clock); None: at once."""
    receipt: dict[str, Any] = field(default_factory=dict)
    """What the far end answered so far: a retry goes on from here instead of sending twice."""
    error: str | None = None
    sent_at: dt.datetime | None = None
    scope: dict[str, str] | None = None
    """The incident's when this was written, as is `severity`; None in rows of an earlier kmon."""
    severity: Severity | None = None
    change: str | None = None
    """What a `changed` one tells, in words."""


@dataclass(frozen=True)
class SweepRecord:
    """What one sweep cost and found."""

    at: dt.datetime
    ran_at: dt.datetime
    seconds: float
    monitors: int
    tests: int
    anomalies: int
    cutoff: float
    """The largest p-value that was flagged, 0 where none was."""


@dataclass(frozen=True)
class Run:
    """One run of a scheduled notebook."""

    id: str
    job: str
    started_at: dt.datetime
    ended_at: dt.datetime | None
    status: Literal["running", "ok", "failed"]
    notebook: str | None
    """Path of the executed notebook, also of a failed one."""
    error: str | None


@dataclass(frozen=True)
class Fit:
    """A model fitted to one measure of one monitor, or the attempt."""

    scope: dict[str, str]
    measure: str
    fitted_at: dt.datetime
    """Wall clock."""
    data_from: dt.datetime
    data_to: dt.datetime
    """The end of the data that it knows; its forecast begins there."""
    method: str | None = None
    """None where no model could be fitted."""
    score: float | None = None
    """Mean deviance of a step of the last day, which the model did not know when it was tried; less is better."""
    yesterday: float | None = None
    """The same of the day before that, taken as the forecast."""
    tried: dict[str, str] = field(default_factory=dict)
    """By method: its score, or why it could not be fitted."""
    forecast: list[float] = field(default_factory=list)
    """Expected counts in steps of 5 minutes."""
    seconds: float = 0.0
    error: str | None = None
    """Why there is no model, in a sentence."""

    @property
    def series(self) -> str:
        """Names monitor and measure, whatever the order of the dimensions."""
        return f"{self.measure} {json.dumps(self.scope, sort_keys=True, ensure_ascii=False)}"


def new_id(prefix: str) -> str:
    """``inc_...``: unique, and in order of creation."""
    now = dt.datetime.now(dt.UTC)
    return f"{prefix}_{int(now.timestamp() * 1000):011x}{uuid.uuid4().hex[:8]}"


def show_time(value: dt.datetime | None) -> str | None:
    """RFC 3339 in UTC with a ``Z``; None stays None."""
    return value.astimezone(dt.UTC).isoformat().replace("+00:00", "Z") if value else None


def ledger_file(store: str | Path) -> Path:
    """Where the ledger of a store file lies: ``x.duckdb`` has ``x.ledger.sqlite``."""
    return Path(store).with_suffix(".ledger.sqlite")


def open_ledger(config: Config, store: str | None = None, *, must_exist: bool = False) -> Ledger:
    """The ledger: KMON_LEDGER_URL, else the configured one, else the SQLite file beside the store.

    With `must_exist` a missing file is an error instead of an empty ledger.
    """
    url = environment.ledger_url() or config.ledger
    if url:
        return Ledger.open(url)
    own = store is not None and not store.startswith("quack:")
    path = Path(store) if own and store else config.resolve(config.store)
    file = ledger_file(path)
    if must_exist and not file.exists():
        message = f"{file} does not exist: nothing was judged yet, start with 'kmon up' or 'kmon replay'"
        raise LedgerError(message)
    if not os.access(file.parent, os.W_OK):  # SQLite writes there also to read
        wrong = "cannot be written" if file.parent.exists() else "does not exist"
        message = f"the ledger {file} cannot be opened: the folder {file.parent} {wrong}"
        raise LedgerError(message)
    return Ledger.open(f"sqlite:///{file}")


class _Time(sa.TypeDecorator[dt.datetime]):
    """Aware datetimes, stored as UTC without an offset so that text sorts as time."""

    impl = sa.DateTime
    cache_ok = True

    def process_bind_param(self, value: dt.datetime | None, dialect: Dialect) -> dt.datetime | None:
        return value and value.astimezone(dt.UTC).replace(tzinfo=None)

    def process_result_value(self, value: dt.datetime | None, dialect: Dialect) -> dt.datetime | None:
        return value and value.replace(tzinfo=dt.UTC)


class _Seconds(sa.TypeDecorator[dt.timedelta]):
    """Durations, stored as seconds."""

    impl = sa.Float
    cache_ok = True

    def process_bind_param(self, value: dt.timedelta | None, dialect: Dialect) -> float | None:
        return None if value is None else value.total_seconds()

    def process_result_value(self, value: float | None, dialect: Dialect) -> dt.timedelta | None:
        return None if value is None else dt.timedelta(seconds=value)


_metadata = sa.MetaData()
_text, _float, _int, _json = sa.Text, sa.Float, sa.Integer, sa.JSON


def _column(name: str, kind: Any, **options: Any) -> sa.Column[Any]:
    return sa.Column(name, kind, nullable=options.pop("nullable", False), **options)


incidents_table = sa.Table(
    "incidents",
    _metadata,
    _column("id", _text, primary_key=True),
    _column("status", _text, index=True),
    *(_column(name, _text) for name in ("severity", "metric", "direction")),
    _column("scope", _json),
    _column("started_at", _Time),
    _column("detected_at", _Time, index=True),
    _column("resolved_at", _Time, nullable=True),
    *(_column(name, _float) for name in ("observed", "expected", "lower", "upper", "p_value")),
    _column("impact", _json),
    _column("anomalies", _int),
    *(_column(name, _text) for name in ("channel", "url")),
    _column("window", _Seconds),
    _column("evidence", _float),
    _column("seen_at", _Time),
    _column("quiet", _int),
    *(_column(name, _text) for name in ("detector", "reason")),
)
anomalies_table = sa.Table(
    "anomalies",
    _metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    _column("at", _Time, index=True),
    _column("incident", _text, index=True),
    _column("metric", _text),
    _column("scope", _json),
    _column("window", _Seconds),
    _column("direction", _text),
    *(_column(name, _float) for name in ("observed", "expected", "p_value")),
    _column("detector", _text),
    _column("shadow", sa.Boolean),
)
labels_table = sa.Table(
    "labels",
    _metadata,
    _column("id", _text, primary_key=True),
    _column("word", _text),
    _column("incident", _text, nullable=True, unique=True),
    _column("metric", _text),
    _column("scope", _json),
    _column("started_at", _Time),
    _column("resolved_at", _Time, nullable=True),
    *(_column(name, _Time) for name in ("known_at", "said_at")),
    _column("said_by", _text),
)
outbox_table = sa.Table(
    "outbox",
    _metadata,
    _column("id", _text, primary_key=True),
    _column("incident", _text, index=True),
    *(_column(name, _text) for name in ("kind", "sink", "channel")),
    _column("created_at", _Time),
    _column("status", _text, index=True),
    _column("attempts", _int),
    _column("due_at", _Time, nullable=True),
    _column("receipt", _json),
    _column("error", _text, nullable=True),
    _column("sent_at", _Time, nullable=True),
    sa.Column("scope", sa.JSON(none_as_null=True), nullable=True),
    *(_column(name, _text, nullable=True) for name in ("severity", "change")),
)
sweeps_table = sa.Table(
    "sweeps",
    _metadata,
    _column("at", _Time, primary_key=True),
    _column("ran_at", _Time),
    _column("seconds", _float),
    *(_column(name, _int) for name in ("monitors", "tests", "anomalies")),
    _column("cutoff", _float),
)
tails_table = sa.Table(
    "tails",
    _metadata,
    _column("hour", _Time, primary_key=True),
    _column("metric", _text, primary_key=True),
    _column("window", _Seconds, primary_key=True),
    _column("tests", _int),
    *(_column(f"beyond_{i}", _int) for i in range(len(LEVELS))),
)
calibrations_table = sa.Table(
    "calibrations",
    _metadata,
    _column("hour", _Time, primary_key=True),
    _column("usual", _json),
)
"""What `tails_table` tells in an hour, made once: each sweep has to know it, and is a process of its own."""
_NEWEST = sa.select(sa.func.max(sweeps_table.c.ran_at).label("ran_at"))
runs_table = sa.Table(
    "runs",
    _metadata,
    _column("id", _text, primary_key=True),
    _column("job", _text, index=True),
    _column("started_at", _Time, index=True),
    _column("ended_at", _Time, nullable=True),
    _column("status", _text),
    _column("notebook", _text, nullable=True),
    _column("error", _text, nullable=True),
)
fits_table = sa.Table(
    "fits",
    _metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    _column("series", _text, index=True),
    _column("scope", _json),
    _column("measure", _text),
    *(_column(name, _Time) for name in ("fitted_at", "data_from")),
    _column("data_to", _Time, index=True),
    _column("method", _text, nullable=True),
    *(_column(name, _float, nullable=True) for name in ("score", "yesterday")),
    *(_column(name, _json) for name in ("tried", "forecast")),
    _column("seconds", _float),
    _column("error", _text, nullable=True),
)


class Ledger:
    """Incidents, labels, outbox, sweeps, runs and fits in one relational database.

    >>> with Ledger.open("sqlite://") as ledger:
    ...     ledger.incidents()
    []
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    @classmethod
    def open(cls, url: str) -> Ledger:
        """Open, and create where it does not exist; LedgerError where that fails."""
        try:
            parsed = sa.make_url(url)
            options: dict[str, Any] = {"json_serializer": lambda value: json.dumps(value, ensure_ascii=False)}
            if parsed.get_backend_name() == "sqlite" and parsed.database in (None, "", ":memory:"):
                options["poolclass"] = sa.StaticPool
            engine = sa.create_engine(parsed, **options)
            if parsed.get_backend_name() == "sqlite":
                _prepare_sqlite(engine)
            with engine.execution_options(write=True).begin() as connection:
                _metadata.create_all(connection)
                _add_columns(connection, outbox_table)
        except (sa.exc.SQLAlchemyError, ImportError, ValueError) as error:
            reason = str(getattr(error, "orig", None) or error).splitlines()[0]
            shown = url.split("://", maxsplit=1)[0] + "://..." if "@" in url else url
            message = f"the ledger {shown} cannot be opened ({reason}): check the path, its permissions and the disk"
            raise LedgerError(message) from error
        return cls(engine)

    @classmethod
    def beside(cls, store: str | Path) -> Ledger:
        """The SQLite ledger that lies beside a store file."""
        return cls.open(f"sqlite:///{ledger_file(store)}")

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._engine.dispose()

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        try:
            with self._engine.execution_options(write=True).begin() as connection:
                yield connection
        except sa.exc.DBAPIError as error:
            message = f"the ledger cannot be written ({error.orig}): check the disk and its permissions"
            raise LedgerError(message) from error

    def _rows(self, statement: sa.Select[Any]) -> Sequence[RowMapping]:
        try:
            with self._engine.connect() as connection:
                return connection.execute(statement).mappings().all()
        except sa.exc.DBAPIError as error:
            message = f"the ledger cannot be read ({error.orig})"
            raise LedgerError(message) from error

    # ---- incidents ---------------------------------------------------------------------------------------------

    def incidents(
        self, *, status: Sequence[str] = (), since: dt.datetime | None = None, until: dt.datetime | None = None
    ) -> list[Incident]:
        """Incidents detected in [since, until), oldest first."""
        t = incidents_table
        statement = sa.select(t).order_by(t.c.detected_at, t.c.id)
        if status:
            statement = statement.where(t.c.status.in_(status))
        if since:
            statement = statement.where(t.c.detected_at >= since)
        if until:
            statement = statement.where(t.c.detected_at < until)
        return [Incident(**row) for row in self._rows(statement)]

    def open_incidents(self) -> list[Incident]:
        """Those that are not resolved, oldest first."""
        return self.incidents(status=OPEN)

    def overlapping(self, start: dt.datetime, end: dt.datetime) -> list[Incident]:
        """Incidents, open or not, that touch [start, end): their minutes are no clean references."""
        t = incidents_table
        within = sa.and_(t.c.started_at < end, sa.or_(t.c.resolved_at.is_(None), t.c.resolved_at > start))
        return [Incident(**row) for row in self._rows(sa.select(t).where(within).order_by(t.c.detected_at, t.c.id))]

    def incident(self, id: str) -> Incident | None:
        t = incidents_table
        row = next(iter(self._rows(sa.select(t).where(t.c.id == id))), None)
        return Incident(**row) if row else None

    # ---- labels ------------------------------------------------------------------------------------------------

    def labels(self) -> list[Label]:
        """What was said, oldest first."""
        t = labels_table
        return [Label(**row) for row in self._rows(sa.select(t).order_by(t.c.said_at, t.c.id))]

    def save_label(self, label: Label, ended: Incident | None = None, outbox: Sequence[Delivery] = ()) -> None:
        """Write a label instead of the one that its incident had, and the incident that it ends, in one transaction."""
        t = labels_table
        with self._write() as connection:
            if label.incident is not None:
                connection.execute(sa.delete(t).where(t.c.incident == label.incident))
            connection.execute(sa.insert(t), [_row(label)])
            if ended is not None:
                _upsert(connection, incidents_table, [_row(ended)], "id")
            if outbox:
                connection.execute(sa.insert(outbox_table), [_row(row) for row in outbox])

    def remove_label(self, id: str) -> bool:
        """Take a label back; False where there is none of that name."""
        with self._write() as connection:
            return connection.execute(sa.delete(labels_table).where(labels_table.c.id == id)).rowcount > 0

    # ---- sweeps ------------------------------------------------------------------------------------------------

    def record_pipeline(self, incident: Incident, outbox: Sequence[Delivery], known: str | None) -> None:
        """Write what became of the pipeline's incident between two sweeps, in one transaction.

        `known` is the id of the open one when it was decided: LedgerError, having changed nothing, where it is another
        by now.
        """
        t = incidents_table
        open_ = sa.select(t.c.id).where(t.c.metric == PIPELINE, t.c.status.in_(OPEN)).order_by(t.c.id)
        with self._write() as connection:
            if connection.scalar(open_) != known:
                message = (
                    "another process judged at the same time: its pipeline incident was recorded, this one was not"
                )
                raise LedgerError(message)
            _upsert(connection, incidents_table, [_row(incident)], "id")
            if outbox:
                connection.execute(sa.insert(outbox_table), [_row(row) for row in outbox])

    def record(
        self,
        sweep: SweepRecord,
        incidents: Sequence[Incident],
        anomalies: Sequence[Anomaly] = (),
        outbox: Sequence[Delivery] = (),
        *,
        tails: Tails | None = None,
        seen: dt.datetime | None = None,
    ) -> None:
        """Write one sweep's outcome in one transaction; writing the same sweep again replaces its record.

        `seen` is what `newest_record` was when the incidents were read: LedgerError, having changed nothing, where
        another process has recorded a sweep since then, which may have told the same incidents.
        """
        with self._write() as connection:
            if seen is not None and (connection.scalar(_NEWEST) or EPOCH) != seen:
                message = "another process judged at the same time: its sweep was recorded, this one was not"
                raise LedgerError(message)
            same = sa.select(sa.literal(1)).where(sweeps_table.c.at == sweep.at)
            first = connection.scalar(same) is None  # what is judged again does not count again
            _upsert(connection, sweeps_table, [_row(sweep)], "at")
            over = _settled(connection)  # labelled while the sweep was on its way
            told = [_row(incident) for incident in incidents if incident.id not in over]
            _upsert(connection, incidents_table, told, "id")
            outbox = [delivery for delivery in outbox if delivery.incident not in over]
            for table, rows in ((anomalies_table, anomalies), (outbox_table, outbox)):
                if rows:
                    connection.execute(sa.insert(table), [_row(row) for row in rows])
            if first:
                _add_tails(connection, sweep.at, tails or {})

    def calibrations(self, at: dt.datetime) -> dict[Key, Calibration]:
        """What the whole hours of the day before `at` tell of the p-values of normal monitors."""
        t = calibrations_table
        made = self._rows(sa.select(t.c.usual).where(t.c.hour == _hour(at)))
        usual = made[0]["usual"] if made else _usual(self._rows(_tails_before(at)))
        return {
            (metric, seconds): Calibration(tuple(levels), tuple(shares)) for metric, seconds, levels, shares in usual
        }

    def anomalies(self, incident: str) -> list[Anomaly]:
        """What one incident explained, in time order."""
        t = anomalies_table
        statement = sa.select(*(t.c[f.name] for f in fields(Anomaly))).where(t.c.incident == incident)
        return [Anomaly(**row) for row in self._rows(statement.order_by(t.c.number))]

    def last_sweep(self, upto: dt.datetime | None = None) -> SweepRecord | None:
        """The one of the newest data, or of the newest up to an instant."""
        t = sweeps_table
        newest = sa.select(t).order_by(t.c.at.desc()).limit(1)
        row = next(iter(self._rows(newest if upto is None else newest.where(t.c.at <= upto))), None)
        return SweepRecord(**row) if row else None

    def first_sweep(self) -> SweepRecord | None:
        t = sweeps_table
        row = next(iter(self._rows(sa.select(t).order_by(t.c.at).limit(1))), None)
        return SweepRecord(**row) if row else None

    def pauses(self, since: dt.datetime) -> list[dt.timedelta]:
        """The times (wall clock) from one sweep to the next since then, the longest first."""
        t = sweeps_table
        ran = [row["ran_at"] for row in self._rows(sa.select(t.c.ran_at).where(t.c.ran_at >= since))]
        ran.sort()
        return sorted((b - a for a, b in pairwise(ran)), reverse=True)

    def least_lag(self, since: dt.datetime, start: dt.datetime) -> dt.timedelta | None:
        """How little the data of a sweep was behind the clock since then; of the last one since `start` if none was."""
        t = sweeps_table
        newest = sa.select(t.c.at, t.c.ran_at).where(t.c.ran_at >= start).order_by(t.c.ran_at.desc())
        rows = self._rows(newest.where(t.c.ran_at >= since)) or self._rows(newest.limit(1))
        return min((row["ran_at"] - row["at"] for row in rows), default=None)

    def newest_record(self) -> dt.datetime:
        """When the latest sweep was recorded (wall clock); 1970 where none was."""
        return cast(dt.datetime | None, self._rows(_NEWEST)[0]["ran_at"]) or EPOCH

    # ---- outbox ------------------------------------------------------------------------------------------------

    def deliveries(self, *, incident: str | None = None, status: Sequence[str] = ()) -> list[Delivery]:
        """Outbox rows, oldest first."""
        t = outbox_table
        statement = sa.select(t).order_by(t.c.created_at, t.c.id)
        if incident:
            statement = statement.where(t.c.incident == incident)
        if status:
            statement = statement.where(t.c.status.in_(status))
        return [Delivery(**row) for row in self._rows(statement)]

    def claim(self, now: dt.datetime) -> Delivery | None:
        """The oldest delivery that is due, marked as being sent; None where nothing is.

        A delivery that was being sent when its notifier died stays ``sending``: `stranded` lists those.
        """
        t = outbox_table
        due = sa.and_(t.c.status == "pending", sa.or_(t.c.due_at.is_(None), t.c.due_at <= now))
        with self._write() as connection:
            query = sa.select(t).where(due).order_by(t.c.created_at, t.c.id).limit(1)
            row = connection.execute(query.with_for_update(skip_locked=True)).mappings().first()
            if row is None:
                return None
            claimed = replace(Delivery(**row), status="sending", attempts=row["attempts"] + 1)
            self._put(connection, claimed)
            return claimed

    def stranded(self) -> list[Delivery]:
        """Deliveries whose notifier died while sending."""
        return self.deliveries(status=["sending"])

    def update(self, delivery: Delivery) -> None:
        """Store what became of a delivery."""
        with self._write() as connection:
            self._put(connection, delivery)

    @staticmethod
    def _put(connection: Connection, delivery: Delivery) -> None:
        connection.execute(sa.update(outbox_table).where(outbox_table.c.id == delivery.id).values(_row(delivery)))

    # ---- job runs ----------------------------------------------------------------------------------------------

    def save_run(self, run: Run) -> None:
        """Insert or update one run."""
        with self._write() as connection:
            _upsert(connection, runs_table, [_row(run)], "id")

    def runs(self, *, job: str | None = None, limit: int = 50) -> list[Run]:
        """The latest runs, newest first."""
        t = runs_table
        statement = sa.select(t).order_by(t.c.started_at.desc(), t.c.id.desc()).limit(limit)
        if job:
            statement = statement.where(t.c.job == job)
        return [Run(**row) for row in self._rows(statement)]

    # ---- fitted models -----------------------------------------------------------------------------------------

    def save_fits(self, fits: Sequence[Fit]) -> None:
        """Add fits, of which failed ones too are told; drops those that are FITS_KEPT older."""
        if not fits:
            return
        t = fits_table
        with self._write() as connection:
            connection.execute(sa.insert(t), [{**_row(fit), "series": fit.series} for fit in fits])
            newest = max(fit.data_to for fit in fits)
            connection.execute(sa.delete(t).where(t.c.data_to < newest - FITS_KEPT))

    def fits(self, at: dt.datetime | None = None) -> list[Fit]:
        """Of each series the newest model and the newest failure, if any, in the order in which they were tried.

        With `at` those that knew no data from after it.
        """
        t = fits_table
        failed = sa.case((t.c.method.is_(None), 1), else_=0)
        newest = sa.select(sa.func.max(t.c.number)).group_by(t.c.series, failed)
        if at is not None:
            newest = newest.where(t.c.data_to <= at)
        columns = [t.c[f.name] for f in fields(Fit)]
        statement = sa.select(*columns).where(t.c.number.in_(newest)).order_by(t.c.number)
        return [Fit(**row) for row in self._rows(statement)]


def _row(record: Any) -> dict[str, Any]:
    return {f.name: getattr(record, f.name) for f in fields(record)}


_BEYOND = [f"beyond_{i}" for i in range(len(LEVELS))]


def _hour(at: dt.datetime) -> dt.datetime:
    return at.replace(minute=0, second=0, microsecond=0)


def _settled(connection: Connection) -> set[str]:
    """The incidents that are over because of their label."""
    t = labels_table
    rows = connection.execute(sa.select(t.c.incident).where(t.c.word.in_(SETTLING), t.c.incident.is_not(None)))
    return set(rows.scalars())


def _add_tails(connection: Connection, at: dt.datetime, tails: Tails) -> None:
    """Count those of one sweep in with their hour's; two days of them are kept."""
    t = tails_table
    connection.execute(sa.delete(t).where(t.c.hour < _hour(at) - 2 * DAY))
    for (metric, seconds), tail in tails.items():
        key = {"hour": _hour(at), "metric": metric, "window": dt.timedelta(seconds=seconds)}
        counts = {"tests": tail.tests, **dict(zip(_BEYOND, tail.beyond, strict=True))}
        same = sa.and_(*(t.c[name] == value for name, value in key.items()))
        more = {name: t.c[name] + count for name, count in counts.items()}
        if not connection.execute(sa.update(t).where(same).values(more)).rowcount:
            connection.execute(sa.insert(t), [key | counts])
    _calibrate(connection, at)


def _calibrate(connection: Connection, at: dt.datetime) -> None:
    """Make what the hours before tell, once an hour; what later hours had made of this one does not hold any more."""
    t, hour = calibrations_table, _hour(at)
    connection.execute(sa.delete(t).where(sa.or_(t.c.hour > hour, t.c.hour < hour - DAY)))
    if connection.scalar(sa.select(t.c.hour).where(t.c.hour == hour)) is None:
        usual = _usual(connection.execute(_tails_before(at)).mappings().all())
        connection.execute(sa.insert(t), [{"hour": hour, "usual": usual}])


def _tails_before(at: dt.datetime) -> sa.Select[Any]:
    """Those of the whole hours of the day before."""
    t, end = tails_table, _hour(at)
    return sa.select(t).where(t.c.hour < end, t.c.hour >= end - DAY).order_by(t.c.hour)


def _usual(rows: Sequence[RowMapping]) -> list[tuple[str, float, tuple[float, ...], tuple[float, ...]]]:
    """(metric, seconds, levels, shares) of each calibration."""
    hours: dict[Key, list[Tail]] = {}
    for row in rows:
        tail = Tail(row["tests"], tuple(row[name] for name in _BEYOND))
        hours.setdefault((row["metric"], row["window"].total_seconds()), []).append(tail)
    made = {key: Calibration.of(tails) for key, tails in hours.items()}
    return [(metric, seconds, one.levels, one.shares) for (metric, seconds), one in made.items()]


def _upsert(connection: Connection, table: sa.Table, rows: Sequence[Mapping[str, Any]], key: str) -> None:
    if not rows:
        return
    connection.execute(sa.delete(table).where(table.c[key].in_([row[key] for row in rows])))
    connection.execute(sa.insert(table), list(rows))


def _add_columns(connection: Connection, table: sa.Table) -> None:
    """Those that the table of an earlier kmon does not have; they may be empty."""
    there = {column["name"] for column in sa.inspect(connection).get_columns(table.name)}
    for column in table.columns:
        if column.name not in there:
            kind = column.type.compile(connection.dialect)
            connection.execute(sa.text(f"ALTER TABLE {table.name} ADD COLUMN {column.name} {kind}"))


def _prepare_sqlite(engine: sa.Engine) -> None:
    """WAL, patience with other writers, and write transactions that take the lock when they begin."""

    @sa.event.listens_for(engine, "connect")
    def _on_connect(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # pysqlite must not begin transactions by itself
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=15000"):
            connection.execute(f"PRAGMA {pragma}")

    @sa.event.listens_for(engine, "begin")
    def _on_begin(connection: Connection) -> None:
        write = connection.get_execution_options().get("write")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
