"""Detectors that bring their own windows: what the sweep and all that comes after it need to know of them.

A window of the sweep ends now and is as wide as `windows` says. Some changes show in others only: how long somebody
has been silent (`kmon.detect.silence`), a point of a series against weeks of it (`kmon.detect.adapted`). Such a
detector looks into the store by itself, every so often, and says who is abnormal; no root cause is looked for there.
"""

from __future__ import annotations

import datetime as dt
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, NamedTuple, Protocol

import polars as pl

from kmon.clock import EPOCH
from kmon.config import Config
from kmon.detect.contract import SCORES
from kmon.detect.fleet import Fleet, Mask
from kmon.detect.shelf import Shelf
from kmon.store import Store

Verdict = Literal["abnormal", "normal", "unjudged"]
TELLING = 3.0
"""Nats that one side must be ahead: about 20 to 1. For what is normal again, in all `resolve_after` sweeps together."""


class Look(NamedTuple):
    """What a detector saw in windows of its own."""

    fleet: Fleet
    """The monitors that `scores` are about, and maybe others; without any measures."""
    scores: pl.DataFrame
    """A row for each judged monitor and metric: SCORES, `metric`, `row` (of the fleet), `seconds`, how long its window
    is, and its `value` and `exposure` as in a sweep's windows."""
    tests: int
    """How many were tested; those that are not among the `scores` could be no anomaly."""


class Known(Protocol):
    """An open incident."""

    @property
    def metric(self) -> str: ...
    @property
    def scope(self) -> dict[str, str]: ...
    @property
    def observed(self) -> float: ...
    @property
    def expected(self) -> float: ...


class OwnWindows(ABC):
    """A detector with windows of its own. In a sweep it is a family of tests, with a share of the budget."""

    overlaps: ClassVar[bool]
    """Whether what it flags may be a part of a change elsewhere, or the whole of it: then a cause in any scope that has
    events in common with it explains what changed alike, and what other detectors say comes first."""

    @property
    @abstractmethod
    def name(self) -> str: ...

    @abstractmethod
    def check(self, config: Config) -> None:
        """UsageError where it cannot work with a configuration."""

    @abstractmethod
    def longest(self, config: Config) -> dt.timedelta:
        """The longest that its windows can be."""

    @abstractmethod
    def look_every(self, config: Config) -> dt.timedelta:
        """The time between two looks."""

    @abstractmethod
    def watches(self, config: Config, metric: str, scope: Mapping[str, str]) -> bool:
        """Whether it may be about that monitor."""

    @abstractmethod
    def look(
        self, store: Store, config: Config, at: dt.datetime, masks: Sequence[Mask] = (), shelf: Shelf | None = None
    ) -> Look | None:
        """What it says at `at`, with known incidents `masks`; None where there is nobody to look at.

        `shelf` is where there may be what looks before this one have read.
        """

    def read_ahead(self, store: Store, config: Config, at: dt.datetime, shelf: Shelf) -> None:  # noqa: B027
        """Have on the shelf what the next looks into a large fleet need, where that is much."""

    @abstractmethod
    def verdict(
        self,
        store: Store,
        config: Config,
        incident: Known,
        at: dt.datetime,
        *,
        since: dt.datetime | None = None,
        masks: Sequence[Mask] = (),
    ) -> Verdict:
        """Whether an open incident that it began goes on, for a sweep at `at` after one at `since`."""

    @abstractmethod
    def unjudged(self, *, seen: bool) -> str:
        """Why a monitor has no score, in words; `seen` where the look had it among its monitors."""

    def is_due(self, config: Config, at: dt.datetime, since: dt.datetime | None) -> bool:
        """Whether a look is due at `at` after a sweep at `since`."""
        step = self.look_every(config)
        return since is None or (since - EPOCH) // step < (at - EPOCH) // step

    def score(self, windows: pl.DataFrame) -> pl.DataFrame:
        """Nothing of the windows of a sweep, which are not what this is about: none is judged."""
        nothing = {"judged": False, "notable": False, "p_value": 1.0, "direction": "down", "evidence": 0.0}
        columns = {name: pl.Series([nothing.get(name)], dtype=dtype) for name, dtype in SCORES.items()}
        return pl.DataFrame({name: one.new_from_index(0, windows.height) for name, one in columns.items()})


def kept_of(incident: Known) -> float:
    """What would be left of the expected level with half of an incident's change."""
    return max(1 + (incident.observed / incident.expected - 1) / 2 if incident.expected else 2.0, 0.02)


def normal_gain(observed: float, expected: float, variance: float, kept: float) -> float:
    """Log-likelihood of `kept` times the expected level over that of the expected one, in nats, of a normal value."""
    middle = expected * (1 + kept) / 2
    return float((observed - middle) * expected * (kept - 1) / variance)


def verdict_of(gain: float, config: Config) -> Verdict:
    """What so many nats for "still abnormal" say."""
    enough = TELLING / config.incidents.resolve_after
    return "abnormal" if gain >= TELLING else "normal" if gain <= -enough else "unjudged"
