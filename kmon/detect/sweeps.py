"""The sweep: one pass of the detectors over all monitors at one instant.

    observe  ►  score  ►  calibrate  ►  control the false discovery rate  ►  anomalies

The scheduled notebook, the replay and the researcher call the same function.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, count
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl
import structlog
from statsmodels.stats.multitest import multipletests

from kmon.calibrate import Calibration, Calibrations, Key, Tail
from kmon.clock import EPOCH, Laps, floor
from kmon.config import Config, DetectorUse, Metric
from kmon.detect.calendar import Calendar
from kmon.detect.contract import SCORES, Detector, least_volume, load_detectors, scored
from kmon.detect.cube import Base, Cube, is_large, recall
from kmon.detect.fleet import FINE, MINUTE, Fleet, Mask, Outlook, check_taken_over
from kmon.detect.own import OwnWindows
from kmon.detect.screen import Asked, Pick, Sums, pick
from kmon.detect.shelf import Shelf
from kmon.errors import StoreError
from kmon.store import Store

log = structlog.get_logger("kmon")
LOOKS = 5
"""How often a window is judged within its own length: more often adds tests, not evidence."""
COMPANY = 500
"""Other monitors that suffice to tell what is usual in the fleet."""
MOST = 0.05
"""The largest false discovery rate of a look, whatever the budget."""


FamilyKey = dt.timedelta | str
"""The width of the windows, or the name of a detector that brings its own."""


@dataclass(frozen=True)
class Scored:
    """What one detector says of a fleet's windows of one width."""

    use: DetectorUse
    detector: Detector
    fleet: Fleet
    width: dt.timedelta
    scores: pl.DataFrame
    """A row for each judged monitor and metric: `metric`, `row` (of the fleet), the detector's scores with calibrated
    p-values, `raw`, the p-value as the detector said it, and `company`, whether it tells what is usual."""
    calibrations: Calibrations
    tests: int
    """How many monitors were tested; those that are not among the `scores` could be no anomaly."""
    apart: str = ""
    """What its family is called, where its windows are its own, each as long as `seconds` says, from which no cause is
    to be taken (`kmon.detect.own`)."""

    @property
    def family(self) -> FamilyKey:
        """Of whose tests its own are."""
        return self.apart or self.width

    @property
    def overlaps(self) -> bool:
        """Whether a cause that has events in common with what it flags explains that: see `kmon.detect.own`."""
        return isinstance(self.detector, OwnWindows) and self.detector.overlaps

    def window(self, score: Mapping[str, Any]) -> dt.timedelta:
        """How long the window of one of `scores` is."""
        return dt.timedelta(seconds=score["seconds"]) if self.apart else self.width

    def score(self, metric: str, row: int) -> dict[str, Any] | None:
        """What was said of one monitor; None where it was not judged."""
        found = self.scores.filter((pl.col("metric") == metric) & (pl.col("row") == row))
        return found.row(0, named=True) if found.height else None

    def edge(self, metric: Metric, row: int) -> int:
        """The edge of a quantile's histogram beyond which the share of a monitor's events was judged."""
        return int(self.fleet.windows(metric, self.width, np.array([row]))["edge"][0])

    def beyond(self, metric: Metric, edge: int, scores: pl.DataFrame) -> pl.DataFrame:
        """Those of a quantile's scores that can be told as the share of events beyond one edge, for all the same."""
        rows, company = (scores[name].to_numpy() for name in ("row", "company"))
        shares = scored(self.detector, self.fleet.windows(metric, self.width, rows, company, edge))
        return scores.with_columns(shares.select("observed", "expected", "lower", "upper")).filter(shares["judged"])

    def again(self, fleet: Fleet, metric: str, rows: list[int], config: Config) -> pl.DataFrame:
        """Score some monitors of another fleet, such as this one less a known cause; in company, as they were."""
        usual = pl.col("company") & ~pl.col("row").is_in(rows)
        others = self.scores.filter((pl.col("metric") == metric) & usual)["row"].to_numpy()
        company = others[:: -(-len(others) // COMPANY) or 1]
        chosen = np.concatenate([np.array(rows, dtype=np.int64), company])
        what = config.metrics[metric]
        given = fleet.windows(what, self.width, chosen, np.arange(len(chosen)) >= len(rows))
        again = scored(self.detector, given, what)[: len(rows)]
        return _calibrated(again, self.calibrations.get((metric, self.width.total_seconds())))


@dataclass(frozen=True)
class Family:
    """The tests of one sweep in the windows of one width, of which the false discovery rate is controlled."""

    rate: float
    """The false discovery rate; with nothing wrong anywhere the chance of any anomaly."""
    tests: int
    cutoff: float
    """Anomalies are the judged and notable monitors with a p-value up to this; 0 where none is."""

    @property
    def reach(self) -> float:
        """The largest p-value that is an anomaly, or would be, where none is."""
        return max(self.cutoff, self.rate / max(self.tests, 1))


@dataclass(frozen=True)
class Sweep:
    """All that one sweep saw."""

    at: dt.datetime
    scored: tuple[Scored, ...]
    families: Mapping[FamilyKey, Family]
    """Of what was judged."""
    monitors: int
    flagged: tuple[pl.DataFrame, ...] = field(repr=False)
    """The anomalies, a frame for each of `scored`, with the columns of its scores."""
    tails: Mapping[Key, Tail] = field(default_factory=dict, repr=False)
    """What the p-values of normal monitors were before they were calibrated, for the sweeps to come."""
    cube: Cube | None = field(default=None, repr=False)
    """What was read, for the next sweep."""
    seconds: Mapping[str, float] = field(default_factory=dict, repr=False)
    """How long it took to ``read``, to ``choose`` whom to look at, to ``score`` them, and to look for ``silence`` and
    whatever else has windows of its own."""
    since: dt.datetime | None = None
    """The sweep after which windows had become due; None where all were looked at."""
    apart: Mapping[str, OwnWindows] = field(default_factory=dict, repr=False)
    """By name, the detectors that bring their own windows, due or not; of one name the first."""

    @property
    def windows(self) -> tuple[dt.timedelta, ...]:
        """The widths that were judged."""
        return tuple(key for key in self.families if isinstance(key, dt.timedelta))

    @property
    def own(self) -> tuple[str, ...]:
        """The families with windows of their own that were judged."""
        return tuple(key for key in self.families if isinstance(key, str))

    @property
    def tests(self) -> int:
        return sum(family.tests for family in self.families.values())

    @property
    def cutoff(self) -> float:
        """The largest of all widths."""
        return max((family.cutoff for family in self.families.values()), default=0.0)

    @property
    def anomalies(self) -> int:
        """Of the detectors that may alert."""
        return sum(f.height for s, f in zip(self.scored, self.flagged, strict=True) if not s.use.shadow)


def look_every(config: Config, width: dt.timedelta) -> dt.timedelta:
    """The time between two looks at the windows of `width`: five in its own length, or as often as there are sweeps."""
    step = _step(config, width)
    return max(1, width / LOOKS // step) * step


def _step(config: Config, width: dt.timedelta) -> dt.timedelta:
    """What the looks at windows of `width` are multiples of: minutes, where sweeps are more frequent than need be.

    What is older than some hours is kept by the minute, so that between two minutes a reference bin loses a part.
    """
    often = width < LOOKS * MINUTE or MINUTE % config.every
    return config.every if often else MINUTE


def due_windows(config: Config, at: dt.datetime, since: dt.datetime | None = None) -> list[dt.timedelta]:
    """The widths to judge at `at` after a sweep at `since`: each five times in its own length, on a grid of its own.

    The grids begin one step after the other, so that hardly any sweep has all widths to judge. One that is late or was
    left out delays what was due, and loses nothing of it. Without `since` all are due.
    """

    def look(number: int, width: dt.timedelta, time: dt.datetime) -> int:
        return (time - EPOCH - number * _step(config, width)) // look_every(config, width)

    return [w for n, w in enumerate(config.windows) if since is None or look(n, w, since) < look(n, w, at)]


def _is_kept(store: Store, at: dt.datetime, width: dt.timedelta, bin_: dt.timedelta) -> bool:
    """Whether what is kept is fine enough for the windows of `width` and those before them.

    Windows below a minute are of the last hours only: what is merged into minutes has all events at their beginning.
    """
    kept = store.begins("rollup_10s") if width % MINUTE else None
    return kept is None or kept <= at - FINE * bin_


def false_discovery_rate(config: Config, every: dt.timedelta, own: int = 0) -> float:
    """Of one of the looks that a family of tests has `every` so often: the day's budget, in equal parts to all of it.

    The families are a width each, and `own` detectors that bring their own windows.
    """
    looks = dt.timedelta(days=1) / every
    return min(MOST, config.false_alerts_per_day / (len(config.windows) + own) / looks)


def sweep(
    store: Store,
    config: Config,
    at: dt.datetime,
    *,
    since: dt.datetime | None = None,
    masks: Sequence[Mask] = (),
    calibrations: Calibrations | None = None,
    outlooks: Sequence[Outlook] = (),
    cube: Cube | None = None,
    shelf: Shelf | None = None,
    keep: Sequence[Mapping[str, str]] = (),
) -> Sweep:
    """Judge every monitor on the windows that end at `at` and were due after the sweep at `since`, default all.

    `at` is event time, at or before the watermark: what is not complete is not judged. `masks` are the known
    incidents, whose minutes serve nobody inside them as a reference; `calibrations` come of what the sweeps of the last
    day saw of normal monitors, `outlooks` are what models forecast. `cube` is that of the sweep before, and `shelf`
    where there may be another; `keep` are scopes whose scores are wanted in any case. Reads the store, writes nothing.
    """
    laps = Laps()
    check_taken_over(store, config, config.metrics.values(), (d for grouping in config.watch for d in grouping))
    loaded = load_detectors(config)
    detectors = [(use, d) for use, d in loaded if not isinstance(d, OwnWindows)]
    apart = [(use, d) for use, d in loaded if isinstance(d, OwnWindows)]
    own = sum(not use.shadow for use, _ in apart)
    judges = [d for _, d in detectors]
    there = shelf.take if shelf is not None else (lambda _: None)
    cube = recall(store, config, at, cube, least=_least(config, judges), shelf=there)
    laps.end("read")
    due = [w for w in due_windows(config, at, since) if _is_kept(store, at, w, cube.bin)]
    widths = [w for w in due if not cube.quiet(at, w)]  # else no partner's outage
    known = calibrations or {}
    watched = cube.watched(config)
    wanted = cube.rows_of(store, [*keep, *(one.scope for one in outlooks)])
    kept = _among(watched, np.union1d(wanted, cube.common))
    rates = {width: false_discovery_rate(config, look_every(config, width), own) for width in widths}
    asked = {name: _asked(metric, judges) for name, metric in config.metrics.items()}
    sums = Sums(cube, at, watched, asked, max(widths, default=dt.timedelta(0)), Calendar(config, store))
    picks = {width: pick(sums, width, asked, keep=kept, rate=rate) for width, rate in rates.items()}
    laps.end("choose")
    touched = _among(watched, cube.rows_of(store, [mask.scope for mask in masks]))
    chosen = np.unique(np.concatenate([kept, touched, *(one.rows for of in picks.values() for one in of.values())]))
    fleet = cube.fleet(store, config, at, chosen, masks=masks, outlooks=outlooks)
    found: list[Scored] = []
    families: dict[FamilyKey, Family] = {}
    for width in widths:
        mine = {name: one.among(chosen) for name, one in picks[width].items()}
        scores = [_scored(use, d, fleet, width, config, known, mine) for use, d in detectors]
        families[width] = _family(rates[width], [s for s in scores if not s.use.shadow])
        found += scores
    laps.end("score")
    if not cube.quiet(at, max(config.windows)):
        due_now = [(use, detector) for use, detector in apart if detector.is_due(config, at, since)]
        for use, detector in due_now:
            called = _family_name(detector, families)
            if (one := _look(use, detector, called, store, config, at, masks, shelf)) is not None:
                rate = false_discovery_rate(config, detector.look_every(config), own)
                families[called] = _family(rate, [one])
                found.append(one)
    flagged = tuple(
        s.scores.filter((pl.col("p_value") <= families[s.family].cutoff) & pl.col("notable")) for s in found
    )
    laps.end("silence")
    tails = _tails(found, families)
    named = {detector.name: detector for _, detector in reversed(apart)}
    return Sweep(at, tuple(found), families, len(watched), flagged, tails, cube, laps.seconds, since, named)


def _among(watched: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Those of a few rows that are watched."""
    return rows[np.isin(rows, watched)]


def _look(
    use: DetectorUse,
    detector: OwnWindows,
    called: str,
    store: Store,
    config: Config,
    at: dt.datetime,
    masks: Sequence[Mask],
    shelf: Shelf | None,
) -> Scored | None:
    """What a detector with windows of its own says; None where there is nobody to look at, or no time to.

    Its width is the longest that one of them can be.
    """
    try:
        looked = detector.look(store, config, at, masks, shelf)
    except StoreError as error:  # it looks through much; the windows must not wait where that takes too long
        log.warning(f"{detector.name} is not judged", reason=str(error))
        return None
    if looked is None:
        return None
    scores = looked.scores.with_columns(raw=pl.col("p_value"), company=False)
    return Scored(use, detector, looked.fleet, detector.longest(config), scores, {}, looked.tests, apart=called)


def _family_name(detector: Detector, taken: Collection[FamilyKey]) -> str:
    """The name of a detector, with a number where it is configured more than once."""
    names = chain([detector.name], (f"{detector.name} {number}" for number in count(2)))
    return next(name for name in names if name not in taken)


def _family(rate: float, found: Sequence[Scored]) -> Family:
    """The family of what was tested: who could be no anomaly has a p-value of 1."""
    p = np.concatenate([one.scores["p_value"].to_numpy() for one in found] or [np.empty(0)])
    tests = max(sum(one.tests for one in found), len(p))
    return Family(rate, tests, _cutoff(np.concatenate([p, np.ones(tests - len(p))]), rate))


def _calibrated(scores: pl.DataFrame, calibration: Calibration | None) -> pl.DataFrame:
    """Scores of one metric with calibrated p-values beside the detector's own."""
    raw = scores["p_value"].to_numpy()
    p = raw if calibration is None else calibration.calibrated(raw)
    return scores.with_columns(raw=pl.col("p_value"), p_value=pl.Series(p, dtype=pl.Float64))


def _tails(found: Sequence[Scored], families: Mapping[FamilyKey, Family]) -> dict[Key, Tail]:
    """The p-values of the first detector for monitors which no known incident touches, and which are no anomaly."""
    tails: dict[Key, Tail] = {}
    for one in (one for one in found if one.use is found[0].use and not one.apart):
        calm = one.fleet.untouched[one.scores["row"].to_numpy()]
        usual = pl.col("company") & (pl.col("p_value") > families[one.family].cutoff)
        normal = one.scores.filter(pl.Series(calm) & usual)
        for (metric,), part in normal.group_by("metric"):
            tails[str(metric), one.width.total_seconds()] = Tail.of(part["raw"].to_numpy())
    return tails


def read_ahead(store: Store, config: Config, at: dt.datetime, shelf: Shelf) -> Literal["small", "there", "read"]:
    """Have the cube ready that sweeps of the next period need, where none shall wait for it: in a large fleet.

    And the days that the detector of silence looks back on, or more of them. `at` is the newest instant of which all
    data is there. Returns how it went with the cube: the fleet is small and needs none, the cube was there and got what
    has passed since, or it was read.
    """
    if not is_large(store):
        return "small"
    loaded = [detector for _, detector in load_detectors(config)]
    detectors = [one for one in loaded if not isinstance(one, OwnWindows)]
    at = floor(at, config.every)
    base = Base.at(store, config, at, _least(config, detectors)).next()
    kept = shelf.take(base.as_of)
    there = kept is not None and kept.serves(store, config, at)
    cube = kept if kept is not None and there else base.read(store, config)
    cube.advance(store, at)
    shelf.put(cube)
    for one in loaded:
        if isinstance(one, OwnWindows):
            one.read_ahead(store, config, at, shelf)
    return "there" if there else "read"


def _scored(
    use: DetectorUse,
    detector: Detector,
    fleet: Fleet,
    width: dt.timedelta,
    config: Config,
    known: Calibrations,
    picks: Mapping[str, Pick],
) -> Scored:
    """All metrics one below the other, without the monitors that were not judged."""
    parts = [pl.DataFrame(schema=_COLUMNS)]
    tests = 0.0
    for name, one in picks.items():
        keys = {
            "metric": pl.Series([name]).new_from_index(0, len(one.rows)),
            "row": pl.Series(one.rows, dtype=pl.Int64),
            "company": pl.Series(one.company, dtype=pl.Boolean),
        }
        metric = config.metrics[name]
        scores = scored(detector, fleet.windows(metric, width, one.rows, one.company), metric)
        scores = _calibrated(scores, known.get((name, width.total_seconds()))).with_columns(**keys)
        scores = scores.filter(pl.col("judged") & pl.col("p_value").is_between(0, 1))
        tests += one.tests(scores["company"])
        parts.append(scores.select(_COLUMNS.names()))
    return Scored(use, detector, fleet, width, pl.concat(parts), known, round(tests))


_COLUMNS = pl.Schema({**SCORES, "raw": pl.Float64(), "metric": pl.String(), "row": pl.Int64(), "company": pl.Boolean()})


def _asked(metric: Metric, detectors: Sequence[Detector]) -> Asked:
    """What one of them could flag; its changes have no bound where one of them does not say."""
    least = min((least_volume(metric, d) for d in detectors), default=0.0)
    told = [tell(metric) if (tell := getattr(d, "least_change", None)) else None for d in detectors]
    changes = [change for change in told if change is not None]
    if len(changes) < len(told) or not changes:
        return Asked(metric, least, None)
    return Asked(metric, least, (min(fall for fall, _ in changes), min(rise for _, rise in changes)))


def _cutoff(p: npt.NDArray[np.float64], rate: float) -> float:
    """The largest rejected p-value of Benjamini and Hochberg (1995) at this false discovery rate."""
    if not len(p):
        return 0.0
    rejected = multipletests(p, alpha=rate, method="fdr_bh")[0]
    return float(p[rejected].max()) if rejected.any() else 0.0


def _least(config: Config, detectors: Sequence[Detector]) -> float:
    """The events below which no metric can be judged: a metric's volume is never more than its events."""
    if not _countable(config) or not detectors:
        return 1.0
    return max(1.0, min(least_volume(m, d) for m in config.metrics.values() for d in detectors))


def _countable(config: Config) -> bool:
    """Whether every judged volume is a number of events, so that a count of events bounds it."""
    volumes = {m.volume for m in config.metrics.values()}
    return all(config.measures[v].lower().startswith("count") for v in volumes)
