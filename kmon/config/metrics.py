"""What is watched, and how a number is distributed: metrics, and the histograms that quantiles are read from."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator

from kmon.config.words import Name

PER_DECADE = 10
"""Buckets from one number to ten times as much: each is 26 % wider than the one before (Renard's series R10)."""
MOST_BUCKETS = 100
_BUCKET = re.compile(r"(?P<histogram>.+)_\d\d+_")


STRICT = ConfigDict(extra="forbid", frozen=True)
"""Of every section: unknown keys are errors, values do not change after loading."""


_Number = Annotated[float, Field(allow_inf_nan=False)]


class Histogram(BaseModel):
    """How a number is distributed: events counted in buckets that grow by a constant ratio.

    So the relative error of a quantile is bounded, whatever its value (DDSketch; Masson, Rim and Lee 2019). Histograms
    of several cells add up, as each bucket is a measure like any other.
    """

    model_config = STRICT

    of: Name
    """The field with the number; events without one are not counted."""
    where: str | None = None
    """SQL: which events count, default all."""
    low: _Number = Field(alias="from")
    """Smaller numbers are not told apart, and neither are 0 and negative ones."""
    high: _Number = Field(alias="to")
    """Nor are larger ones."""

    @model_validator(mode="after")
    def _in_order(self) -> Histogram:
        if self.low <= 0:
            message = f"a histogram begins above 0, as its buckets grow by a ratio: {self.low:g} does not"
            raise ValueError(message)
        if self.low >= self.high:
            message = f"a histogram goes from a number to a larger one: {self.high:g} is not larger than {self.low:g}"
            raise ValueError(message)
        if self.steps + 2 > MOST_BUCKETS:
            message = (
                f"from {self.low:g} to {self.high:g} there are {self.steps + 2} buckets, of at most {MOST_BUCKETS}:"
                " choose a narrower range"
            )
            raise ValueError(message)
        return self

    @property
    def steps(self) -> int:
        """The buckets between `low` and `high`; there is one below and one above."""
        return max(1, round(PER_DECADE * math.log10(self.high / self.low)))

    @property
    def ratio(self) -> float:
        """Of the ends of a bucket."""
        return float((self.high / self.low) ** (1 / self.steps))

    @property
    def edges(self) -> tuple[float, ...]:
        """Where one bucket ends, included, and the next begins: `steps` + 1 numbers."""
        return tuple(float(f"{self.low * self.ratio**i:.6g}") for i in range(self.steps + 1))

    def measures(self, name: str) -> dict[str, str]:
        """The measures that the histogram `name` stands for: all events, then each bucket but the lowest.

        What is in none of the others is in the lowest.
        """
        number, edges = f'"{self.of}"', self.edges
        kept = f"({self.where}) AND " if self.where else ""
        inside = [f"{number} > {a!r} AND {number} <= {b!r}" for a, b in itertools.pairwise(edges)]
        counts = [f"count(*) FILTER ({kept}{ends})" for ends in (*inside, f"{number} > {edges[-1]!r}")]
        everything = f"count({number})" + (f" FILTER ({self.where})" if self.where else "")
        return {bucket(name, i): text for i, text in enumerate([everything, *counts])}


def bucket(histogram: str, number: int) -> str:
    """The name of a histogram's measure; number 0 counts all events."""
    return f"{histogram}_{number:02d}_"


def histogram_of(measure: str) -> str | None:
    """The name of the histogram that a measure is a part of; None for one that stands in ``kmon.yaml``."""
    found = _BUCKET.fullmatch(measure)
    return found["histogram"] if found else None


class Metric(BaseModel):
    """What is watched: exactly one of `count`, `rate`, `mean` and `quantile`.

    Effects are relative, and of a quantile they are the quantile's own: ``min_rise: 0.5`` of a latency of 200 ms is
    300 ms, whatever share of the events that is.
    """

    model_config = STRICT

    count: Name | None = None
    """A measure, per window."""
    rate: str | None = None
    """``numerator / denominator``: two measures, a share between 0 and 1."""
    mean: str | None = None
    """``total / count``: two measures, an average."""
    quantile: Name | None = None
    """A histogram: the number that a share `q` of its events does not exceed."""
    q: float | None = None
    """Of a quantile: 0.5 is the median."""
    good: Literal["up", "down"] | None = "up"
    """The welcome direction: an incident that way is only information. None: both ways are bad."""
    unit: str = ""
    min_volume: float | None = None
    """Least expected or observed volume to judge (of a rate or mean its denominator, of a quantile its events);
    default the detector's."""
    min_effect: float | None = None
    """Least relative fall worth an alert; default the detector's, of a quantile 0.3."""
    min_rise: float | None = None
    """Least relative rise worth an alert; default the detector's, of a quantile 0.3."""

    _histogram: Histogram | None = PrivateAttr(default=None)

    @property
    def kind(self) -> Literal["count", "rate", "mean", "quantile"]:
        if self.quantile is not None:
            return "quantile"
        return "count" if self.count is not None else "rate" if self.rate is not None else "mean"

    @property
    def judged_as(self) -> Literal["count", "rate", "mean"]:
        """As what detectors see it: of a quantile they judge the share of events beyond it."""
        return "rate" if self.kind == "quantile" else self.kind

    @property
    def parts(self) -> tuple[str, str | None]:
        """(measure, None) of a count, (numerator, denominator) of a rate or mean.

        Of a quantile the denominator alone is one measure: both are all of the histogram's events.
        """
        if self.count is not None:
            return self.count, None
        if self.quantile is not None:
            return bucket(self.quantile, 0), bucket(self.quantile, 0)
        numerator, _, denominator = (self.rate or self.mean or "").partition("/")
        return numerator.strip(), denominator.strip()

    @property
    def measures(self) -> tuple[str, ...]:
        """All measures that it is computed from, the parts first."""
        if self.quantile is not None:
            return tuple(self.histogram.measures(self.quantile))
        return tuple(part for part in self.parts if part is not None)

    def beyond(self, edge: int) -> tuple[str, ...]:
        """Of a quantile: the measures that together are the events above an edge of its histogram."""
        return self.measures[edge + 1 :]

    @property
    def volume(self) -> str:
        """The measure of which there must be enough to judge it."""
        return self.parts[1] or self.parts[0]

    @property
    def forecast(self) -> tuple[str, ...]:
        """The measures whose forecasts are one of it: those of a count or rate."""
        return self.measures if self.kind in ("count", "rate") else ()

    @property
    def histogram(self) -> Histogram:
        """Of a quantile that belongs to a configuration."""
        if self._histogram is None:
            message = "only the quantiles of a configuration have a histogram"
            raise ValueError(message)
        return self._histogram

    def bind(self, histograms: Mapping[str, Histogram]) -> None:
        """Let a quantile know its histogram, which the configuration has."""
        self._histogram = histograms.get(self.quantile or "")

    @model_validator(mode="after")
    def _exactly_one(self) -> Metric:
        if sum(part is not None for part in (self.count, self.rate, self.mean, self.quantile)) != 1:
            message = "a metric has exactly one of count, rate, mean and quantile"
            raise ValueError(message)
        if not all(part is None or part for part in self.parts):
            message = f"{self.rate or self.mean!r} is not of the form 'numerator / denominator'"
            raise ValueError(message)
        if (self.q is None) != (self.quantile is None):
            message = "a quantile has q, such as q: 0.95" if self.q is None else "only a quantile has q"
            raise ValueError(message)
        if self.q is not None and not 0 < self.q < 1:
            message = f"q lies between 0 and 1, such as 0.95: {self.q:g} does not"
            raise ValueError(message)
        return self
