"""The detector contract: windows in, scores out, both frames with one row a monitor; or one series in, p-values out.

`windows` has the columns

    kind                      count, rate or mean, the same in every row; a quantile is judged as a rate
    width, bin                seconds, of the current window and of a bin of the references; the same in every row
    value, exposure           the current window: a count and 1, or numerator and denominator
    lagged_exposure           the exposure of the window a little earlier: an order comes after its session
    previous_value, ...       arrays: the windows of the same width just before, the newest last
    recent_value, ...         arrays: 24 bins, the last one ending with the current window, NaN where they reach into it
    day<N>_value, ...         arrays: the same bins N days ago, and 6 more after the window's time of day
    model_value, ...          arrays: the same as a model forecast it for today (`kmon.detect.models`), if any did
    unlike                    true where no day is of today's kind: their level says little of today's (optional)
    company                   false where a monitor was chosen for what happens to it now, and does not tell what is
                              usual in the fleet (optional)
    segment                   a number; monitors with the same one have noise of the same kind: in a sweep those of a
                              line of `watch` (optional)
    along                     there where the rows are one monitor at several times (optional)
    min_volume, min_effect, min_rise          the metric's own thresholds, null where it leaves them to the detector
    reference, current        arrays: of a quantile, whose share beyond an `edge` of its histogram is judged as a rate,
                              the counts of its measures in all references, and now (`kmon.detect.quantiles`)

(each `_value` has its `_exposure`; of a count that is the part of a window that a bin is), with NaN for what must not
serve as a reference: nothing was recorded, a known incident lies in it, or the day is of another kind than today
(`kmon.detect.calendar`). `scores` has the columns of SCORES, aligned with `windows`. A detector does not change its
input, keeps no state between calls, and says "not judged" rather than guess.

A `SeriesDetector` judges the points of one series. The sweep asks it through `kmon.detect.adapted`, about the monitors
that ``models:`` in kmon.yaml chooses.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import polars as pl

from kmon.config import Config, DetectorUse, Metric
from kmon.detect.quantiles import in_its_unit
from kmon.errors import UsageError

Floats = npt.NDArray[np.float64]
SCORES = pl.Schema(
    {
        "observed": pl.Float64(),  # count in the window, or the rate or mean
        "expected": pl.Float64(),
        "lower": pl.Float64(),  # of the interval in which a normal window falls
        "upper": pl.Float64(),
        "p_value": pl.Float64(),  # two-sided; 1 where nothing was judged
        "effect": pl.Float64(),  # observed / expected - 1
        "direction": pl.String(),  # down or up
        "evidence": pl.Float64(),  # log-likelihood gained by admitting the change, in nats
        "judged": pl.Boolean(),  # false: not enough volume or history to say anything
        "notable": pl.Boolean(),  # the effect is large enough to tell somebody
    }
)


BAND = 6.58
"""Standard deviations between `lower` and `upper` of a score, which cover 99.9 %."""


class Detector(Protocol):
    """Scores monitors.

    One that has a method ``least_change(metric) -> (fall, rise)``, the least relative changes that are notable to it,
    is given only the monitors that could be anomalies by the bound of `kmon.detect.screen`, which must hold for it, and
    a sample of the others. Any other is given all.
    """

    @property
    def name(self) -> str: ...

    def score(self, windows: pl.DataFrame) -> pl.DataFrame:
        """Scores for `windows`, row by row."""
        ...


class Points(NamedTuple):
    """What a series detector says of the points of a series, each array as long as that."""

    p_value: npt.ArrayLike
    """The chance of a point like this where nothing is wrong, two-sided; NaN: not judged."""
    expected: npt.ArrayLike | None = None
    """What was expected in its place; None or NaN leaves that to the adapter, which takes the usual level."""


class SeriesDetector(Protocol):
    """Judges the points of one series, each by the points before it."""

    @property
    def name(self) -> str: ...

    def judge(self, times: Floats, values: Floats, *, last: int) -> Points:
        """`times` in epoch seconds, in steps; `values` NaN for gaps. Only the `last` points need scores."""
        ...


def least_volume(metric: Metric, detector: Detector) -> float:
    """What a window must have, now or usually, so that the detector judges it."""
    return metric.min_volume if metric.min_volume is not None else getattr(detector, "min_volume", 0.0)


class _FunctionDetector:
    def __init__(self, function: Callable[..., pl.DataFrame], **params: Any) -> None:
        self.name = function.__name__
        self._function, self._params = function, params

    def score(self, windows: pl.DataFrame) -> pl.DataFrame:
        return self._function(windows, **self._params)


def detector(function: Callable[..., pl.DataFrame]) -> Callable[..., Detector]:
    """Make a detector of a function ``(windows, **params) -> scores``; its keyword arguments are the parameters.

    >>> @detector
    ... def nothing(windows, floor=3.0):
    ...     return windows.select(observed="value")
    >>> nothing(floor=2.0).name
    'nothing'
    """
    return _factory(function, _FunctionDetector, skip=1)


def _factory(function: Callable[..., Any], kind: Callable[..., Any], *, skip: int) -> Callable[..., Any]:
    """What makes a detector of a function, whose first `skip` arguments are no parameters."""

    def make(**params: Any) -> Any:
        _check(function.__name__, inspect.signature(function), params, skip=skip)
        return kind(function, **params)

    make.__name__ = function.__name__
    make.__doc__ = function.__doc__
    return make


class _FunctionOfSeries:
    def __init__(self, function: Callable[..., Points | npt.ArrayLike], **params: Any) -> None:
        self.name = function.__name__
        self._function, self._params = function, params

    def judge(self, times: Floats, values: Floats, *, last: int) -> Points:
        found = self._function(times, values, **self._params)
        return Points(*found) if isinstance(found, tuple) else Points(found)


def series_detector(function: Callable[..., Points | npt.ArrayLike]) -> Callable[..., SeriesDetector]:
    """Make a series detector of a function ``(times, values, **params) -> p_values``, or ``-> (p_values, expected)``.

    >>> @series_detector
    ... def doubled(times, values, p=1e-6):
    ...     return [p if value > 2 * values[0] else 1.0 for value in values]
    >>> doubled(p=0.5).judge([0, 300], [1.0, 3.0], last=1).p_value
    [1.0, 0.5]
    """
    return _factory(function, _FunctionOfSeries, skip=2)


BUILT_IN = {"compare": "kmon.detect.compare:Compare", "silence": "kmon.detect.silence:Silence"}
"""What stands behind a name without a colon in ``kmon.yaml``."""


def load_detectors(config: Config) -> list[tuple[DetectorUse, Detector]]:
    """All detectors of a configuration; UsageError where one does not exist, or cannot work with it."""
    from kmon.detect.own import OwnWindows

    loaded = [(use, load_detector(use, config.path.parent)) for use in config.detectors]
    for _, one in loaded:
        if isinstance(one, OwnWindows):
            one.check(config)
    return loaded


def load_detector(use: DetectorUse, folder: Path) -> Detector:
    """The detector that the configuration names; UsageError with the nearest valid name where it does not exist.

    One of single series comes adapted. `folder`, where ``kmon.yaml`` lies, is searched for one's own modules after
    everything that is installed.
    """
    if ":" not in use.use and use.use not in BUILT_IN:
        message = f"there is no detector {use.use!r}: built in is {', '.join(BUILT_IN)}, your own is 'module:Name'"
        raise UsageError(message)
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    module, _, name = BUILT_IN.get(use.use, use.use).partition(":")
    try:
        factory = getattr(importlib.import_module(module), name)
    except Exception as error:  # another's module may fail in any way while it is imported
        message = f"the detector {use.use!r} cannot be loaded: {error}"
        raise UsageError(message) from error
    try:
        _check(use.use, inspect.signature(factory), use.params)
        loaded = factory(**use.params)
    except TypeError as error:
        message = f"the detector {use.use!r} does not take these parameters: {error}"
        raise UsageError(message) from error
    return _adapted(use.use, loaded)


def scored(detector: Detector, windows: pl.DataFrame, metric: Metric | None = None) -> pl.DataFrame:
    """The detector's scores, checked against the contract; UsageError where they are not what it promises.

    In the unit of `metric`, which for a quantile is not that of the rate as which it was judged.
    """
    scores = detector.score(windows)
    missing = [name for name in SCORES if name not in scores.columns]
    if missing or scores.height != windows.height:
        what = f"no column {missing[0]!r}" if missing else f"{scores.height} rows for {windows.height} monitors"
        message = (
            f"the detector {detector.name!r} returned {what}: it must give a row a monitor with {', '.join(SCORES)}"
        )
        raise UsageError(message)
    told = (
        scores.select(list(SCORES))
        if scores.schema == SCORES
        else scores.select(pl.col(n).cast(t) for n, t in SCORES.items())
    )
    return in_its_unit(told, windows, metric) if metric is not None and metric.kind == "quantile" else told


def _adapted(use: str, loaded: Any) -> Detector:
    """A detector of the sweep; UsageError for what judges neither windows nor a series."""
    from kmon.detect.adapted import Adapted

    of_series = hasattr(loaded, "judge")
    try:
        if of_series:
            inspect.signature(loaded.judge).bind(None, None, last=1)
        else:
            inspect.signature(loaded.score).bind(None)
        if isinstance(loaded.name, str):
            return Adapted(loaded) if of_series else loaded
        why = "its name is no text"
    except (AttributeError, TypeError, ValueError) as error:
        why = str(error)
    message = (
        f"{use!r} is no detector of a sweep, which has a name and score(windows), or judge(times, values, last=1) where"
        f" it judges single series ({why})"
    )
    raise UsageError(message)


def _check(name: str, signature: inspect.Signature, params: dict[str, Any], skip: int = 0) -> None:
    if any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()):
        return  # it takes anything, or checks by itself
    known = list(signature.parameters)[skip:]
    for key in params:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(known) or 'none'}"
            message = f"the detector {name!r} has no parameter {key!r}: {hint}"
            raise UsageError(message)
