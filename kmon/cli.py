"""The command line. Each command is a line of work; what it does lives in the module it calls.

Imports are inside the commands, so that ``kmon --help`` answers at once.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import importlib.metadata
import logging
import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional

import typer
from typer.exceptions import TyperException

from kmon import show
from kmon.errors import KmonError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.text import Text

    from kmon.config import Config, Metric
    from kmon.ledger import Incident
    from kmon.windows import Window

app = typer.Typer(name="kmon", no_args_is_help=True, add_completion=False, rich_markup_mode=None)
jobs_app = typer.Typer(invoke_without_command=True)
app.add_typer(jobs_app, name="jobs", help="What scheduled notebooks did; 'jobs run NAME' runs one.")

ConfigPath = Annotated[Path, typer.Option("--config", "-c", help="The configuration.")]
StorePath = Annotated[
    Optional[str], typer.Option("--store", "-s", help="A path or quack: address; default from the configuration.")
]
Output = Annotated[Literal["table", "json"], typer.Option("--format", "-f", help="A table for people, or JSON.")]
TIME = "RFC 3339 time; UTC where it names no offset."
Moment = Annotated[Optional[str], typer.Option(help=TIME)]
Wheres = Annotated[
    Optional[list[str]], typer.Option("--where", "-w", metavar="K=V", help="A dimension's value; may be repeated.")
]
Standby = Annotated[
    bool, typer.Option("--standby", help="Where another process owns the store, wait and take over when it ends.")
]
DEFAULT = Path("kmon.yaml")


def _version(*, wanted: bool) -> None:
    if wanted:
        show.out.print(f"kmon {importlib.metadata.version('kmon')}")
        raise typer.Exit


@app.callback()
def _root(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and debug logs.")] = False,
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=lambda on: _version(wanted=on), is_eager=True),
    ] = False,
) -> None:
    """Real-time anomaly monitoring of business metrics."""
    from kmon import logs

    logs.configure(logging.DEBUG if debug else logging.INFO if sys.stderr.isatty() else logging.WARNING)


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR")] = Path(),
    example: Annotated[Optional[str], typer.Option(help="Start from an example: online_retail.")] = None,
) -> None:
    """Write a commented kmon.yaml and the notebooks."""
    from kmon.config import counted
    from kmon.resources import scaffold

    written = scaffold(folder, example)
    show.out.print(
        f"wrote {counted(len(written), 'file')} into {folder.absolute()}: edit kmon.yaml, then 'kmon up'"
        if written
        else "everything is there already"
    )


@app.command()
def demo(folder: Annotated[Path, typer.Argument(metavar="DIR")] = Path("demo")) -> None:
    """Everything, on simulated traffic, until Ctrl-C."""
    from kmon import demo as demo_
    from kmon import parts
    from kmon.supervise import Supervisor

    with parts.until_told_to_stop() as stop:
        config = demo_.prepare(folder)
        with show.progress("two days of history") as (bar, task):
            demo_.load_history(
                config, stop, lambda n, total: bar.update(task, completed=n, total=max(n, total), note=f"{n:,} events")
            )
        if not stop.is_set():
            show.out.print(f"starting; incidents appear below, alerts with charts in {config.resolve('alerts')}")
            Supervisor(config).run(
                stop, on_ready=lambda now: show.out.print(f"open {now.apps.base_url}/partner   (Ctrl-C stops)")
            )
    show.out.print("stopped")


@app.command()
def up(
    config: ConfigPath = DEFAULT,
    store: StorePath = None,
    part: Annotated[
        Optional[Literal["source", "jobs", "apps", "notifier"]], typer.Option(help="Run only this part.")
    ] = None,
    standby: Standby = False,
) -> None:
    """Run source, store, jobs, apps and notifier, supervised."""
    from kmon import parts
    from kmon.supervise import Supervisor

    loaded = _load(config)
    with parts.until_told_to_stop() as stop:
        if part is not None:
            parts.run_part(part, loaded, stop, store, standby=standby)
        else:
            supervisor = Supervisor(loaded, store, standby=standby)
            supervisor.run(stop, on_ready=lambda now: show.out.print(_up(now)))


def _up(config: Config) -> str:
    return f"up: {config.apps.base_url}/partner, store at {config.serve}   (Ctrl-C stops)"


@app.command()
def reload(config: ConfigPath = DEFAULT, store: StorePath = None, format: Output = "table") -> None:
    """Have a running kmon take over an edited kmon.yaml.

    Says what has changed.
    """
    from kmon import parts
    from kmon import reload as reload_
    from kmon.doctor import check_named

    loaded = _load(config)
    check_named(loaded)
    with show.waiting("waiting for the running kmon"):
        changes = reload_.ask(loaded, parts.store_path(loaded, store))
    if format == "json":
        show.print_json({"changes": changes})
    else:
        show.out.print("taken over: " + (", ".join(changes) or "nothing that kmon reads has changed"), highlight=False)


@app.command()
def simulate(
    out: Annotated[Path, typer.Option(help="The folder to write to.")],
    partners: Annotated[int, typer.Option(min=1)] = 2000,
    rate: Annotated[float, typer.Option(min=0.01, help="Events a second on average.")] = 20.0,
    days: Annotated[float, typer.Option(min=0.01)] = 2.0,
    incidents: Annotated[int, typer.Option(min=0, help="Labelled incidents that should be found.")] = 8,
    seed: int = 1,
    format: Output = "table",
) -> None:
    """Write made-up events with labelled incidents.

    They are in events-*.ndjson.zst, the labels in truth.json, and the partners in partners.csv.
    """
    from kmon.sources.simulate import write

    with show.progress("simulating") as (bar, task):
        summary = write(
            out,
            partners=partners,
            rate=rate,
            days=days,
            incidents=incidents,
            seed=seed,
            progress=lambda done, chunks: bar.update(task, completed=done, total=chunks),
        )
    _summary(summary, format)


@app.command()
def ingest(
    files: Annotated[
        Optional[list[Path]],
        typer.Argument(metavar="[FILE]...", help="Files to read once; default the configured source."),
    ] = None,
    config: ConfigPath = DEFAULT,
    store: StorePath = None,
    standby: Standby = False,
    format: Output = "table",
) -> None:
    """Bring the source, or files, into the store."""
    from kmon import parts
    from kmon.ingest import Ingestion
    from kmon.sources.files import FilesSource
    from kmon.store import EmbeddedStore

    if files and standby:
        message = "--standby is for the configured source, which goes on for ever: leave out the files"
        raise UsageError(message)
    loaded = _load(config)
    with parts.until_told_to_stop() as stop, show.progress("ingesting") as (bar, task):
        note = lambda p: bar.update(task, note=f"{p.events:,} events")  # noqa: E731
        if files:
            with EmbeddedStore(parts.store_path(loaded, store), loaded) as owned:
                done = Ingestion(loaded, owned, on_batch=note).run(FilesSource(files), stop)
        else:
            with parts.told_to_reload(stop) as pause:
                done = parts.run_source(loaded, stop, store, on_batch=note, pause=pause, standby=standby)
        stopped = bool(files) and stop.is_set()  # the configured source never ends by itself
    _summary({"events": done.events, "dead_letters": done.dead_letters, "late": done.late}, format)
    _say_if_interrupted(stopped)


@app.command()
def replay(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="In order of arrival.")],
    config: ConfigPath = DEFAULT,
    store: StorePath = None,
    detect_from: Annotated[Optional[str], typer.Option(help=f"Judge from this event time on. {TIME}")] = None,
    every: Annotated[
        Optional[str], typer.Option(help="Time between two sweeps; default from the configuration.")
    ] = None,
    deliver: Annotated[bool, typer.Option(help="Send the alerts too.")] = False,
    format: Output = "table",
) -> None:
    """Judge recorded events as if they were live.

    They go through the same pipeline, with a sweep at each step.
    """
    from kmon import arguments, parts
    from kmon.config import counted
    from kmon.detect import Shelf
    from kmon.ledger import open_ledger
    from kmon.replay import replay as run
    from kmon.store import EmbeddedStore
    from kmon.watch import CUBES

    loaded = _load(config)
    if every:
        loaded = loaded.model_copy(update={"every": arguments.duration(every)})
    path = parts.store_path(loaded, store)
    with (
        parts.until_told_to_stop() as stop,
        show.progress("replaying") as (bar, task),
        EmbeddedStore(path, loaded) as owned,
        open_ledger(loaded, path) as ledger,
    ):
        others = {source for source, _ in owned.positions()} - {str(file.resolve()) for file in files}
        note = ""
        if others:
            had = f"{path} had events of {counted(len(others), 'other source')}"
            note = f"{had}: these were added, and what is newer was judged"
        summary = run(
            loaded,
            owned,
            ledger,
            files,
            every=loaded.every,
            detect_from=arguments.moment(detect_from),
            deliver=deliver,
            on_progress=lambda done, at: bar.update(
                task, note=f"{done.events:,} events" + (f", judged up to {at:%Y-%m-%d %H:%M}" if at else "")
            ),
            stop=stop,
            shelf=Shelf.of(loaded.beside(CUBES, path), owned, loaded),
        )
        if deliver:
            bar.update(task, description="delivering")
            with contextlib.redirect_stdout(sys.stderr if format == "json" else sys.stdout):
                waiting = parts.notifier(loaded, owned, ledger).finish(stop)
            if waiting:
                show.err.print(f"{counted(waiting, 'alert')} could not be delivered yet: 'kmon up' goes on trying")
        stopped = stop.is_set()
    if note:
        show.err.print(note)
    _summary(summary.public(), format)
    _say_if_interrupted(stopped)


@app.command()
def detect(at: Moment = None, config: ConfigPath = DEFAULT, store: StorePath = None, format: Output = "table") -> None:
    """One sweep now, or at an earlier time."""
    from kmon import arguments
    from kmon.watch import run

    loaded, instant = _load(config), arguments.moment(at)
    with show.waiting("judging"):
        outcome = run(loaded, store=store, at=instant)
    if format == "json":
        show.print_json(outcome.public())
        return
    show.out.print(str(outcome))
    rows = [
        (d.action, d.incident.severity, d.incident.metric, d.incident.direction, show.scope(d.incident.scope), d.reason)
        for d in outcome.told_and_untold
    ]
    if rows:
        show.table(["", "severity", "metric", "direction", "where", "why"], rows)


@app.command()
def incidents(
    status: Annotated[
        Optional[list[str]], typer.Option(help="firing, acked, snoozed or resolved; may be repeated.")
    ] = None,
    since: Moment = None,
    config: ConfigPath = DEFAULT,
    store: StorePath = None,
    format: Output = "table",
) -> None:
    """The incidents, oldest first."""
    from kmon import arguments
    from kmon.ledger import OPEN, open_ledger

    for one in status or ():
        arguments.known("status", one, (*OPEN, "resolved"))
    loaded = _load(config)
    with open_ledger(loaded, store, must_exist=True) as ledger:
        found = ledger.incidents(status=status or (), since=arguments.moment(since))
        said = {label.incident: label.word for label in ledger.labels()}
    if format == "json":
        show.print_json([incident.public() for incident in found])
        return
    rows = [
        (
            i.id,
            i.status,
            i.severity,
            f"{i.metric} {i.direction}",
            show.scope(i.scope),
            show.clock(i.started_at),
            show.clock(i.detected_at),
            show.clock(i.resolved_at),
            *_figures(i, loaded),
            said.get(i.id, ""),
        )
        for i in found
    ]
    times = ("since (UTC)", "detected", "resolved")
    columns = ["id", "status", "severity", "what", "where", *times, "observed", "expected", "label"]
    show.table(columns, rows, empty="no incidents")


def _figures(incident: Incident, config: Config) -> tuple[Text, Text]:
    """What was observed and what was expected, as alerts have it."""
    from kmon.alerts import operators
    from kmon.alerts.message import metric_of, quantity
    from kmon.config import PIPELINE

    if incident.metric == PIPELINE:
        observed, expected = operators.figures(incident)
    else:
        observed, expected = (quantity(metric_of(incident, config), v) for v in (incident.observed, incident.expected))
    return show.right(observed), show.right(expected)


@app.command()
def hit(
    incident: str,
    by: Annotated[Optional[str], typer.Option(metavar="DIMENSION", help="Whose values; default partners.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many are listed.")] = 20,
    config: ConfigPath = DEFAULT,
    store: StorePath = None,
    format: Output = "table",
) -> None:
    """Whom an incident hit most, by loss.

    The partners, or values of another dimension, that its scope leaves open: those that lost more than by chance.
    """
    from kmon import arguments
    from kmon.alerts.message import estimate, quantity
    from kmon.hit import hit_of, open_dimension
    from kmon.ledger import open_ledger
    from kmon.store import open_for_reading

    loaded = _load(config)
    dimension = by or open_dimension(loaded)
    arguments.known("dimension", dimension, loaded.dimensions)
    with (
        show.waiting("asking whom it hit"),
        open_for_reading(loaded, store) as opened,
        open_ledger(loaded, store, must_exist=True) as ledger,
    ):
        found = hit_of(opened, ledger, loaded, incident, by=dimension, most=limit)
    if format == "json":
        show.print_json({"incident": incident, **found.public()})
        return
    measures, metric = list(found.worst[0].impact) if found.worst else [], loaded.metrics[found.metric]
    rows = [
        (
            one.value,
            *("-" if v is None else show.right(quantity(metric, v)) for v in (one.observed, one.expected)),
            *(show.right(f"{'-' if v < 0 else '+'}{estimate(v)}") for v in one.impact.values()),
        )
        for one in found.worst
    ]
    columns = [dimension, "observed", "expected", *(f"{m} (observed - expected)" for m in measures)]
    title = f"{found.count:,} hit from {show.clock(found.start)} to {show.clock(found.end)} (UTC), by {found.measure}"
    show.table(columns, rows, title=title, empty="nobody was hit by more than chance")


@app.command()
def label(
    what: Annotated[
        Optional[list[str]],
        typer.Argument(
            metavar="[INCIDENT] [WORD]",
            help="An incident and true, false or new-normal; or the word incident.",
        ),
    ] = None,
    metric: Annotated[Optional[str], typer.Option(help="Of the incident that was not found.")] = None,
    where: Wheres = None,
    start: Annotated[Optional[str], typer.Option("--from", help=f"When it began. {TIME}")] = None,
    end: Annotated[Optional[str], typer.Option("--to", help=f"When it ended. {TIME}")] = None,
    remove: Annotated[Optional[str], typer.Option(metavar="LABEL", help="Take a label back.")] = None,
    by: Annotated[Optional[str], typer.Option(help="Who says so; default the user.")] = None,
    config: ConfigPath = DEFAULT,
    store: StorePath = None,
    format: Output = "table",
) -> None:
    """Say what an incident was.

    'kmon label INCIDENT true' that it was real, 'false' a false alarm, 'new-normal' a level that stays.

    'kmon label incident --metric M --where K=V --from T --to T' that there was one that kmon did not find.

    'kmon label' alone lists what was said.
    """
    from kmon import arguments, environment, labels
    from kmon.ledger import open_ledger

    loaded, words = _load(config), what or []
    scope, who = arguments.scope(loaded, where), by or environment.user()
    if words != ["incident"] and (metric, where, start, end) != (None,) * 4:
        message = "--metric, --where, --from and --to tell of one that was not found: write 'kmon label incident ...'"
        raise UsageError(message)
    stretch = arguments.stretch(loaded, metric, start, end) if words == ["incident"] else None
    with open_ledger(loaded, store, must_exist=stretch is None) as ledger:
        if remove is not None:
            labels.remove(ledger, remove)
            _summary({"removed": remove}, format)
            return
        if stretch is not None:
            found = [labels.mark(ledger, stretch, scope, by=who)]
        elif words:
            found = [labels.say(loaded, ledger, *arguments.verdict(words), by=who)]
        else:
            found = ledger.labels()
    if format == "json":
        shown = [one.public() for one in found]
        show.print_json(shown[0] if words else shown)
        return
    rows = [
        (
            one.id,
            one.word,
            one.incident or "-",
            one.metric,
            show.scope(one.scope),
            show.clock(one.started_at),
            show.clock(one.resolved_at),
            show.clock(one.said_at),
            one.said_by,
        )
        for one in found
    ]
    columns = ["id", "label", "incident", "metric", "where", "from (UTC)", "to", "said", "by"]
    show.table(columns, rows, empty="no labels")


@app.command()
def series(
    metric: str,
    where: Wheres = None,
    start: Annotated[Optional[str], typer.Option("--from", help=f"{TIME} Default three hours before the end.")] = None,
    end: Annotated[Optional[str], typer.Option("--to", help=f"{TIME} Default the newest complete minute.")] = None,
    grain: Annotated[str, typer.Option(help="Width of a bucket.")] = "1m",
    config: ConfigPath = DEFAULT,
    store: StorePath = None,
    format: Output = "table",
) -> None:
    """A monitor's series with its expected band."""
    from kmon import arguments
    from kmon.clock import floor
    from kmon.config import MINUTE
    from kmon.detect import expected_series
    from kmon.fits import outlooks
    from kmon.ledger import open_ledger
    from kmon.references import MONTH, References
    from kmon.store import open_for_reading

    loaded = _load(config)
    scope = arguments.scope(loaded, where)
    arguments.known("metric", metric, loaded.metrics)
    width = arguments.duration(grain)
    with show.waiting("reading the series"), open_for_reading(loaded, store) as opened:
        newest = opened.watermark(loaded.events.lateness, loaded.events.idle) or dt.datetime.now(dt.UTC)
        until = arguments.moment(end) or floor(newest, MINUTE)
        begin = arguments.moment(start) or until - dt.timedelta(hours=3)
        if width >= MINUTE and begin != floor(begin, MINUTE):
            begin = floor(begin, MINUTE)
            show.err.print(f"buckets of {grain} begin at whole minutes: this is from {show.clock(begin)} UTC")
        if end is None:
            until -= max(until - begin, dt.timedelta()) % width  # the last bucket is complete
        with open_ledger(loaded, store) as ledger:
            told = References.of(ledger, loaded, begin - MONTH, until)
            models = outlooks(ledger, told.config, until)
        options: Any = {"grain": width, "masks": told.masks, "outlooks": models}
        data = expected_series(opened, told.config, metric, scope, begin, until, **options)
        for dimension, value in scope.items():
            if opened.number(dimension, value) is None:
                show.err.print(f"no event with {dimension}={show.visible(value)} was ever seen")
    show.frame(data, format)


@app.command()
def why(
    metric: str,
    where: Wheres = None,
    at: Annotated[Optional[str], typer.Option(help=f"{TIME} Default the newest complete instant.")] = None,
    config: ConfigPath = DEFAULT,
    store: StorePath = None,
    format: Output = "table",
) -> None:
    """Why a monitor fired, or did not."""
    from kmon import arguments
    from kmon.ledger import open_ledger
    from kmon.reasons import why as answer
    from kmon.store import open_for_reading
    from kmon.windows import days_unused

    loaded = _load(config)
    scope, instant = arguments.scope(loaded, where), arguments.moment(at)
    with (
        show.waiting("judging it again"),
        open_for_reading(loaded, store) as opened,
        open_ledger(loaded, store) as ledger,
    ):
        found = answer(loaded, opened, ledger, metric, scope, instant)
    if format == "json":
        show.print_json(found.public())
        return
    show.out.print(show.visible(found.sentence), markup=False)
    if found.windows:
        show.table(*_windows(loaded.metrics[metric], found.windows))
    for model in found.models:
        show.out.print(show.visible(model.sentence), markup=False)
    for line in dict.fromkeys(line for w in found.windows for line in days_unused(w)):
        show.out.print(show.visible(line), markup=False)
    masks = [(i.id, show.scope(i.scope), show.clock(i.started_at), show.clock(i.resolved_at)) for i in found.masked]
    if masks:
        show.table(["no reference: incident", "where", "from (UTC)", "to"], masks)


def _windows(metric: Metric, windows: Sequence[Window]) -> tuple[list[str], list[list[object]]]:
    """Columns and rows of what is told of a monitor; p-values before their calibration where that changed one."""
    from kmon.alerts.message import quantity
    from kmon.config import counted, show_duration

    def figure(value: float | None) -> str:
        return "-" if value is None else quantity(metric, value)

    def normal(w: Window) -> str:
        return "-" if w.lower is None else f"{figure(w.lower)} to {figure(w.upper)}"

    def level(w: Window) -> str:
        said = next((figure(r.expected) for r in w.references if r.name == "recent"), "-")
        return f"{said} ({counted(w.recent_bins, 'bin')})"

    def shape(w: Window) -> str:
        days = [r for r in w.references if r.weight]
        return ", ".join(f"{r.name} {figure(r.expected)} ({r.weight:.0%})" for r in days) or "-"

    def spread(w: Window) -> str:
        drift = "" if w.drift_relative_variance is None else f"±{w.drift_relative_variance**0.5:.0%}"
        return " ".join(["" if w.noise_times_chance is None else f"{w.noise_times_chance:.2g}x", drift]).strip() or "-"

    columns: dict[str, Callable[[Window], object]] = {
        "window": lambda w: show_duration(w.width),
        "detector": lambda w: w.detector,
        "verdict": lambda w: w.outcome,
        "seen": lambda w: figure(w.value if w.observed is None and metric.kind == "count" else w.observed),
        "expected": lambda w: figure(w.expected),
        "normal": normal,
        "p-value": lambda w: w.p_value,
        "uncalibrated": lambda w: w.raw_p_value,
        "cut-off": lambda w: w.cutoff,
        "last hours say": level,
        "other days say": shape,
        "noise": spread,
        "": lambda w: w.reason,
    }
    if all(w.raw_p_value == w.p_value for w in windows):
        del columns["uncalibrated"]
    return list(columns), [[cell(w) for cell in columns.values()] for w in windows]


@app.command()
def query(sql: str, config: ConfigPath = DEFAULT, store: StorePath = None, format: Output = "table") -> None:
    """Ad-hoc SQL, read-only; the view 'rollup' has everything."""
    from kmon.store import open_for_reading

    loaded = _load(config)
    with show.waiting("asking the store"), open_for_reading(loaded, store) as opened:
        found = opened.sql(sql)
    show.frame(found, format)


@jobs_app.callback()
def jobs(
    context: typer.Context,
    job: Annotated[Optional[str], typer.Option(help="Only this job's runs.")] = None,
    limit: Annotated[int, typer.Option(min=1)] = 20,
    config: ConfigPath = DEFAULT,
    store: StorePath = None,
    format: Output = "table",
) -> None:
    """What scheduled notebooks did; 'jobs run NAME' runs one."""
    from kmon.ledger import open_ledger

    if context.invoked_subcommand:
        return
    with open_ledger(_load(config), store, must_exist=True) as ledger:
        runs = ledger.runs(job=job, limit=limit)
    if format == "json":
        show.print_json([vars(run) for run in runs])
        return
    rows = [
        (
            r.job,
            r.status,
            show.clock(r.started_at),
            (r.ended_at - r.started_at).total_seconds() if r.ended_at else None,
            r.error or r.notebook or "",
        )
        for r in runs
    ]
    show.table(["job", "status", "started (UTC)", "seconds", "notebook or error"], rows, empty="nothing has run yet")


@jobs_app.command("run")
def jobs_run(
    name: str,
    parameter: Annotated[
        Optional[list[str]], typer.Option("--parameter", "-p", metavar="K=V", help="A parameter of the notebook.")
    ] = None,
    config: ConfigPath = DEFAULT,
    store: StorePath = None,
    format: Output = "table",
) -> None:
    """Run one job now."""
    from kmon import arguments
    from kmon.jobs.runner import run_job
    from kmon.ledger import open_ledger

    loaded = _load(config)
    arguments.known("job", name, loaded.jobs)
    with show.waiting(f"running {name}"), open_ledger(loaded, store) as ledger:
        run = run_job(name, loaded.jobs[name], loaded, ledger, store=store, params=arguments.pairs(parameter))
    _summary({"job": run.job, "status": run.status, "notebook": run.notebook}, format)


_OF_A_DAY = ("alerts", "labelled_false", "labelled_right", "unlabelled", "pipeline_incidents")


@app.command()
def status(config: ConfigPath = DEFAULT, store: StorePath = None, format: Output = "table") -> None:
    """How far the data is, and how kmon itself is."""
    from kmon.status import status as collect

    loaded = _load(config)
    with show.waiting("asking the store"):
        found = collect(loaded, store)
    if format == "json":
        show.print_json(found)
        return
    show.facts({key.replace("_", " "): value for key, value in found["summary"].items()})
    if found["alerts_by_day"]:
        week = [(show.clock(day["until"]), *(day[key] for key in _OF_A_DAY)) for day in found["alerts_by_day"]]
        show.table(["24 hours until (UTC)", *(key.replace("_", " ") for key in _OF_A_DAY)], week, title="\nalerts")
    tiers = [(t, v["rows"], v["events"], v["bytes"]) for t, v in found["tiers"].items()]
    raw = found["raw_events"]
    tiers.append(("raw_events", raw["rows"], raw["rows"], raw["bytes"]))
    show.table(["tier", "rows", "events", "bytes"], tiers, title="\nrollups and whole events")
    clocks = [(c["partition"], show.clock(c["newest"]), c["unread"], c["late"]) for c in found["clocks"]]
    show.table(["partition", "newest event (UTC)", "unread", "late"], clocks, title="\npartitions")
    offsets = [(o["source"], o["partition"], o["position"]) for o in found["offsets"]]
    show.table(["source", "partition", "position"], offsets, title="\noffsets")
    if found["dead_letters"]:
        title = "\ndead letters   (kmon query 'SELECT * FROM dead_letters')"
        show.table(["reason", "records"], list(found["dead_letters"].items()), title=title)


@app.command()
def doctor(config: ConfigPath = DEFAULT, store: StorePath = None, format: Output = "table") -> None:
    """Check installation, configuration, source and sinks."""
    from kmon.doctor import examine

    loaded = _load(config)
    with show.waiting("checking"):
        checks = list(examine(loaded, store))
    if format == "json":
        show.print_json([vars(check) for check in checks])
    else:
        show.table(["", "check", "finding"], [("ok" if c.ok else "FAILED", c.name, c.detail) for c in checks])
    if not all(check.ok for check in checks):
        raise typer.Exit(1)


@app.command()
def apps(
    port: Annotated[Optional[int], typer.Option(min=0, max=65535)] = None,
    config: ConfigPath = DEFAULT,
    store: StorePath = None,
    browser: Annotated[bool, typer.Option("--show", help="Open a browser.")] = False,
) -> None:
    """Serve the pages alone."""
    from kmon import parts

    loaded = _load(config)
    with parts.until_told_to_stop() as stop:
        parts.run_apps(loaded, stop, store, port=port, show=browser)


@app.command()
def lab(
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8888,
    config: ConfigPath = DEFAULT,
    store: StorePath = None,
    browser: Annotated[bool, typer.Option("--show/--no-show", help="Open a browser.")] = True,
) -> None:
    """JupyterLab on the notebooks."""
    from kmon.lab import run

    raise typer.Exit(run(_load(config), store, port=port, browser=browser))


@app.command()
def bench(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the benchmark.")],
    scale: Annotated[float, typer.Option(min=0.0001, max=10, help="Of the amount of data; 1 is Klarna's.")] = 1.0,
    minutes: Annotated[float, typer.Option(min=0.05, help="How long the soak takes; the long version is 60.")] = 2.0,
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each contestant; the best one counts.")] = 3,
    rivals: Annotated[bool, typer.Option(help="Compare with what 'make rivals' installed, too.")] = True,
    data: Annotated[
        Optional[Path],
        typer.Option(exists=True, file_okay=False, help="Folder of public data sets; default KMON_DATA."),
    ] = None,
    reference_days: Annotated[
        Optional[list[int]],
        typer.Option("--reference-day", min=1, max=28, help="With history so many days ago, for detect-speed; repeat."),
    ] = None,
    format: Annotated[
        Literal["table", "json", "markdown"], typer.Option("--format", "-f", help="For people, programs or docs.")
    ] = "table",
) -> None:
    """Measure kmon against its limits and others.

    NAME is ingest, latency, query, storage or soak; detect, or one of its parts detect-rootcause, detect-series,
    detect-speed and detect-simulator; or detect-models.
    """
    from kmon import arguments
    from kmon import bench as bench_

    arguments.known("benchmark", name, bench_.BENCHES)
    with show.progress(f"bench {name}") as (bar, task):
        days = tuple(sorted(set(reference_days or [1])))
        options = bench_.Options(scale, minutes, repeats, rivals, data, days, lambda text: bar.update(task, note=text))
        rows = bench_.BENCHES[name](options)
    bench_.print_rows(rows, format, f"kmon bench {name}: {bench_.machine()}")


def main() -> None:
    """The entry point: errors become one sentence on standard error and an exit code."""
    arguments = [a for a in sys.argv[1:] if a != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    try:
        code = app(args=["--debug", *arguments] if debug else arguments, standalone_mode=False)
        sys.stdout.flush()
        sys.exit(code if isinstance(code, int) else 0)
    except TyperException as error:
        sys.exit(_usage(error, debug=debug))
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)
    except KmonError as error:
        sys.exit(_fail(str(error), error, error.exit_code, debug=debug))
    except BrokenPipeError:  # the reader of a pipe left early, as 'head' does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename else f"{error.strerror or error}"
        sys.exit(_fail(what, error, 1, debug=debug))
    except SystemExit:
        raise
    except BaseException as error:  # a panic of polars is no Exception
        if isinstance(error.__cause__, KeyboardInterrupt | SystemExit):  # DuckDB makes an error of a signal
            sys.exit(130 if isinstance(error.__cause__, KeyboardInterrupt) else error.__cause__.code)
        text = f"unexpected {type(error).__name__}: {error}; this is a bug in kmon, 'kmon --debug ...' shows where"
        sys.exit(_fail(text, error, 1, debug=debug))


def _usage(error: TyperException, *, debug: bool) -> int:
    """Tell a wrong command line; asked for nothing, show the help."""
    text = getattr(error, "format_message", lambda: str(error))().replace("Value error, ", "")
    if type(error).__name__ == "NoArgsIsHelpError":
        show.err.print(text)
        return 2
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "kmon"
    return _fail(f"{text.rstrip('.')}: see '{command} --help'", error, 2, debug=debug)


def _fail(text: str, error: BaseException, code: int, *, debug: bool) -> int:
    if debug:
        traceback.print_exception(error)
    print(f"kmon: {show.visible(text)}", file=sys.stderr)
    return code


def _say_if_interrupted(stopped: bool) -> None:
    if stopped:
        show.err.print("interrupted: the same command goes on where this one stopped")
        raise typer.Exit(130)


def _load(path: Path) -> Config:
    from kmon.config import load_config

    return load_config(path)


def _summary(values: dict[str, Any], format: show.Format) -> None:
    if format == "json":
        show.print_json(values)
    else:
        show.facts(
            {
                key.replace("_", " "): value if not isinstance(value, list) else len(value)
                for key, value in values.items()
            }
        )
