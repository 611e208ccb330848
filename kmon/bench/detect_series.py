"""How well the series detector finds what people labelled, on public series and beside what is usual.

Takes every parquet of the data folder that has the columns of labelled KPIs (series, ts, value, label, test) or of the
Numenta Anomaly Benchmark (file, timestamp, value; its windows lie beside it as NAME_windows.json). Whatever is
fitted is fitted on the half that `test` leaves out; the alarm of kmon's detector has a threshold that needs no labels.
The others have its rest, so that an event of theirs alarms once too.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from kmon import environment
from kmon.bench import nab
from kmon.bench.rows import Row, missing, reaching, told, under
from kmon.bench.segments import Found, Pool
from kmon.bench.workplace import Options
from kmon.detect.surprise import DAY, Surprise, onsets
from kmon.detect.surprise.oddities import before, level, same_time

Floats = npt.NDArray[np.float64]
KPI = {"series", "ts", "value", "label", "test"}
NAB = {"file", "timestamp", "value"}
POINT_F1 = {"kpi_dev": 0.863}
"""The best published or measured figure on these series; elsewhere it is the best of the others in the same run."""
EVENT_F1, FALSE_ALARMS, NAB_SCORE = 0.70, 0.15, 58.0


@dataclass(frozen=True)
class Series:
    """A labelled series at a regular step."""

    name: str
    times: Floats
    values: Floats
    labels: npt.NDArray[np.bool_]
    test: npt.NDArray[np.bool_]


Judged = Callable[[Floats, Floats], Floats]


def ewma(span: int) -> Judged:
    """The distance from the exponentially weighted mean, in its exponentially weighted standard deviations."""

    def scores(_: Floats, x: Floats) -> Floats:
        sd = before(pl.Series(x).fill_nan(None).ewm_std(span=span, ignore_nulls=False).to_numpy())
        return _in(np.abs(x - level(x, span)), sd)

    return scores


def seven_days(times: Floats, x: Floats) -> Floats:
    """The distance from the median at the same time of 7 days, corrected for the last hour's level, in robust sd."""
    day = max(1, round(DAY / float(np.median(np.diff(times)))))
    off = x - same_time(x, day, 7)
    hour = max(3, day // 24)
    off -= before(pl.Series(off).fill_nan(None).rolling_median(hour, min_samples=1).to_numpy())
    spread = pl.Series(np.abs(off)).fill_nan(None).rolling_median(day, min_samples=max(1, day // 4)).to_numpy()
    return _in(np.abs(off), before(spread) / 0.6745)


OTHERS: dict[str, Judged] = {"EWMA z, span 10": ewma(10), "EWMA z, span 60": ewma(60), "7-day median": seven_days}


def run(options: Options) -> list[Row]:
    """The figures of each data set that the folder has."""
    folder = options.data or environment.data_folder()
    rows: list[Row] = []
    for path in sorted(folder.glob("*.parquet")):
        columns = set(pl.read_parquet_schema(path))
        if columns >= KPI:
            rows += kpi_rows(path.stem, list(read_kpi(path, options)), options)
        elif columns >= NAB:
            rows += nab_rows(path, options)
    return rows or [missing("labelled series", "", f"none in {folder}: set KMON_DATA to a folder that has some")]


def read_kpi(path: Path, options: Options) -> Iterator[Series]:
    """The series of a file; fewer of them at a smaller scale."""
    groups = pl.read_parquet(path).partition_by("series", maintain_order=True, as_dict=True)
    for (name,), rows in list(groups.items())[: options.scaled(len(groups))]:
        group = rows.sort("ts")
        ts, values = (group[column].cast(pl.Float64).fill_null(np.nan).to_numpy() for column in ("ts", "value"))
        label, test = (group[column].cast(pl.Boolean).to_numpy() for column in ("label", "test"))
        yield Series(str(name), ts, values, label, test)


def kpi_rows(name: str, series: list[Series], options: Options) -> list[Row]:
    """Point F1, event F1 and false alarms on the test halves."""
    detector = Surprise()
    begun = time.perf_counter()
    found = []
    for s in series:
        options.say(f"{name}: {s.name}")
        found.append(detector.score(s.times, s.values))
    rate = sum(len(s.values) for s in series) / (time.perf_counter() - begun)
    others = {other: [judged(s.times, s.values) for s in series] for other, judged in OTHERS.items()}
    rested = {other: [onsets(s, detector.rest) for s in scores] for other, scores in others.items()}
    fitted = {
        other: (_fitted(series, scores, "point_f1"), _fitted(series, rested[other], "event_f1", FALSE_ALARMS))
        for other, scores in others.items()
    }
    points = _fitted(series, [f.surprise for f in found], "point_f1")
    alarms = _pool(series, [f.alarm for f in found], test=True).at(detector.alarm_at)
    rival = max(by_point.point_f1 for by_point, _ in fitted.values())
    how = f"threshold without labels, once in {np.exp(detector.alarm_at):.0f} days"
    rows = [
        reaching(
            f"{name}: point F1", points.point_f1, "", POINT_F1.get(name, rival), note="threshold of the train halves"
        ),
        reaching(f"{name}: event F1", alarms.event_f1, "", EVENT_F1, note=f"{how}; recall {alarms.recall:.2f}"),
        under(f"{name}: false alarms", alarms.false_alarms, "a series and day", FALSE_ALARMS, how),
        told(f"{name}: points scored", rate, "a second"),
    ]
    for other, (by_point, by_event) in fitted.items():
        note = f"{by_event.false_alarms:.2f} false alarms a series and day; thresholds of the train halves"
        rows.append(told(f"{name}: point F1, {other}", by_point.point_f1, ""))
        rows.append(told(f"{name}: event F1, {other}", by_event.event_f1, "", note))
    return rows


def _fitted(series: list[Series], scores: list[Floats], metric: str, most: float = np.inf) -> Found:
    """What the best threshold of the train halves, by a metric and at `most` false alarms, finds in the test halves."""
    train, test = (_pool(series, scores, test=half) for half in (False, True))
    return test.at(train.best(metric, most))


def _pool(series: list[Series], scores: list[Floats], *, test: bool) -> Pool:
    halves: Iterable[tuple[Floats, npt.NDArray[np.bool_], float]] = [
        (found[half], s.labels[half], float(np.ptp(s.times[half])) / DAY)
        for s, found in zip(series, scores, strict=True)
        if (half := s.test == test).any()
    ]
    return Pool.of(halves)


def nab_rows(path: Path, options: Options) -> list[Row]:
    """The standard profile's score, with our threshold and with the best one as the published figures have it."""
    windows_of = json.loads(path.with_name(f"{path.stem}_windows.json").read_text(encoding="utf-8"))
    groups = pl.read_parquet(path).partition_by("file", maintain_order=True, as_dict=True)
    files: list[tuple[nab.Worth, Floats, Floats]] = []
    for (name,), group in list(groups.items())[: options.scaled(len(groups))]:
        times = group["timestamp"].to_numpy().astype("datetime64[us]")
        spans = [[np.datetime64(t.replace(" ", "T")) for t in pair] for pair in windows_of[str(name)]]
        windows = [(int(np.argmax(times == a)), int(np.argmax(times == b))) for a, b in spans]
        seconds = times.astype(np.int64) / 1e6
        files.append((nab.Worth.of(len(times), windows), seconds, group["value"].cast(pl.Float64).to_numpy()))
    options.say(f"{path.stem}: {len(files)} files")

    def scored(judged: Judged) -> list[tuple[nab.Worth, Floats]]:
        return [(worth, judged(times, values)) for worth, times, values in files]

    detector = Surprise()
    ours = scored(lambda times, values: detector.score(times, values).alarm)
    how = f"threshold without labels, once in {np.exp(detector.alarm_at):.0f} days"
    top, threshold = nab.best(ours)
    rows = [
        reaching(f"{path.stem}: standard profile", nab.score(ours, detector.alarm_at), "", NAB_SCORE, note=how),
        told(f"{path.stem}: standard profile, best threshold", top, "", f"once in {np.exp(threshold):.1f} days"),
    ]
    for other, judged in OTHERS.items():
        rested = [(worth, onsets(found, detector.rest)) for worth, found in scored(judged)]
        rows.append(told(f"{path.stem}: {other}, best threshold", nab.best(rested)[0], ""))
    return rows


def _in(distance: Floats, unit: Floats) -> Floats:
    """The distance in units; 0 where there is none, and NaN where the unit is unknown."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(distance == 0, 0.0, distance / np.where(unit > 0, unit, np.nan))
