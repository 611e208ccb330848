"""What of the past serves as a reference: known incidents do not, nor does what came before a level changed for good.

incidents of the time     ►  their minutes are masked, but for those that are the new normal or were no incident
labelled stretches        ►  masked
a new normal, by label or by `incidents.lasting`  ►  a shift of the level in the calendar: earlier days are of
                                                     another kind (`kmon.detect.calendar`), the hours before it masked
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Protocol

from kmon.config import PIPELINE, Config, Shift
from kmon.config.bins import RECENT, bin_for
from kmon.ledger import SETTLING, Incident, Label

MONTH = dt.timedelta(days=31)
"""How far back references are, at most."""


class Said(Protocol):
    """The part of a ledger that tells about the past."""

    def overlapping(self, start: dt.datetime, end: dt.datetime) -> list[Incident]: ...
    def labels(self) -> list[Label]: ...


@dataclass(frozen=True)
class Stretch:
    """A time that is no reference for the monitors inside its scope."""

    id: str
    """Of the incident or the label that says so."""
    scope: dict[str, str]
    started_at: dt.datetime
    resolved_at: dt.datetime | None
    """None: it goes on."""


@dataclass(frozen=True)
class References:
    """What is known of the time that references are taken from."""

    config: Config
    """The configuration, in whose calendar stand the levels that have changed for good."""
    incidents: tuple[Incident, ...] = ()
    """Those of the time, without those that have lasted so long that they are the new normal, unless labelled."""
    settled: tuple[Incident, ...] = ()
    """Those of them that are over because of their label: no incidents any more."""
    masks: tuple[Stretch, ...] = ()

    @classmethod
    def of(cls, ledger: Said, config: Config, start: dt.datetime, end: dt.datetime) -> References:
        """What is known of [start, end); of the pipeline's incident only what is over, which left a gap."""
        labels, known = ledger.labels(), ledger.overlapping(start, end)
        said = {label.incident: label.word for label in labels if label.incident is not None}
        lasted = [i for i in known if _lasted(i, config) and i.id not in said]
        incidents = [i for i in known if i not in lasted]
        settled = [i for i in incidents if said.get(i.id) in SETTLING]
        shifts = [
            *config.calendar.shifts,
            *(_shift(i.id, i) for i in lasted if i.metric != PIPELINE),
            *(_shift(str(label.incident), label) for label in labels if label.word == "new-normal"),
        ]
        shifts = [shift for shift in shifts if start < shift.at < end]
        stretches = [
            *(_spoilt(i) for i in incidents if i not in settled and not _is_missing_now(i)),
            *(_marked(label) for label in labels if label.word == "incident"),
            *(_before(shift, config) for shift in shifts),
        ]
        masks = [one for one in stretches if one.started_at < end and (one.resolved_at or end) > start]
        calendar = config.calendar.model_copy(update={"shifts": tuple(shifts)})
        config = config.model_copy(update={"calendar": calendar})
        return cls(config, tuple(incidents), tuple(settled), tuple(masks))


def _lasted(incident: Incident, config: Config) -> bool:
    """Whether it went on for so long that it is the new normal."""
    ended = incident.resolved_at
    return ended is not None and ended - incident.started_at >= config.incidents.lasting


def _shift(name: str, of: Incident | Label) -> Shift:
    return Shift(name=f"the new normal ({name})", at=of.started_at, scope=of.scope)


def _marked(label: Label) -> Stretch:
    return Stretch(label.id, label.scope, label.started_at, label.resolved_at)


def _before(shift: Shift, config: Config) -> Stretch:
    """The bins before a shift that the windows after it would take their level from."""
    return Stretch(shift.name, shift.scope, shift.at - RECENT * bin_for(config.windows), shift.at)


def _is_missing_now(incident: Incident) -> bool:
    """Whether data is missing at this moment: masked for everybody, no count could be judged after two hours of it."""
    return incident.metric == PIPELINE and incident.resolved_at is None and incident.quiet == 0


def _spoilt(incident: Incident) -> Stretch:
    """The incident as long as it was seen: what came then, until it was resolved, is a reference like any other.

    One of the pipeline weighs on everybody's references where it is over, or nearly; a lag leaves nothing out.
    """
    ended = None if incident.resolved_at is None else incident.seen_at
    if incident.metric == PIPELINE:
        ended = incident.started_at if incident.detector == "lag" else incident.seen_at
        return Stretch(incident.id, {}, incident.started_at, ended)
    return Stretch(incident.id, incident.scope, incident.started_at, ended)
