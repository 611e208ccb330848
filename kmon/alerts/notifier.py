"""Delivers the outbox: each alert once, in order, however long the far end is away.

An alert passes the steps of `Notifier.steps`, each of which adds to it, delays it or rejects it. Retrying lives here
and nowhere else. One notifier works on a ledger at a time.
"""

from __future__ import annotations

import datetime as dt
import random
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import structlog

from kmon.alerts import operators
from kmon.alerts.message import Message, compose
from kmon.alerts.sinks import Alert, Receipt, Sink, make_sinks
from kmon.config import PIPELINE, Config
from kmon.errors import KmonError, LedgerError, SinkError, ThrottledError
from kmon.ledger import Delivery, Incident, Ledger
from kmon.partners import Partners
from kmon.references import MONTH, References
from kmon.store import Store

if TYPE_CHECKING:
    from kmon.hit import Hits

FIRST, LONGEST = dt.timedelta(seconds=2), dt.timedelta(minutes=5)
"""Between two attempts; it doubles from one to the other."""
GIVE_UP = dt.timedelta(hours=24)
"""After the delivery was put into the outbox."""
log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Parcel:
    """A delivery on its way through the steps, which fill it."""

    delivery: Delivery
    sink: Sink
    incident: Incident
    firing: Delivery | None = None
    """Of a later one: the delivery that told of the incident in the same place."""
    message: Message | None = None
    chart: bytes | None = None


class _Later(Exception):  # noqa: N818
    """Not now, and no fault of this delivery."""

    def __init__(self, until: dt.datetime, why: str) -> None:
        super().__init__(why)
        self.until = until


class Notifier:
    """Hands over what the outbox holds.

    `store` is read for the charts; without it there are none. `clock` is the wall clock. `sinks` are the configured
    ones unless given.
    """

    def __init__(
        self,
        ledger: Ledger,
        config: Config,
        partners: Partners,
        store: Store | None,
        clock: Callable[[], dt.datetime],
        *,
        sinks: Mapping[str, Sink] | None = None,
    ) -> None:
        self.ledger, self.config, self.partners, self.store, self.clock = ledger, config, partners, store, clock
        self.sinks = make_sinks(config) if sinks is None else sinks
        self.steps = [self._not_while_held, self._after_its_firing, self._write, self._draw, self._hand_over]
        self._held: dict[str, dt.datetime] = {}
        self._failures: dict[str, int] = {}
        self._drawn: tuple[Incident | None, bytes | None] = (None, None)
        self._hits: tuple[Incident | None, Hits | None] = (None, None)

    def run(self, stop: threading.Event, every: float = 1.0) -> None:
        """Deliver until `stop` is set, looking every `every` seconds; trouble is logged and does not end it."""
        fresh = True
        while not stop.is_set():
            try:
                if fresh:
                    self.recover()
                self.drain(stop)
                fresh = False
            except KmonError as error:
                log.error("notifier_in_trouble", error=str(error))
                fresh = True  # a delivery may have been left half done
            stop.wait(every)

    def drain(self, stop: threading.Event | None = None) -> int:
        """Deliver all that is due, oldest first; how many were handed over. LedgerError where the ledger fails."""
        self._reload_partners()
        sent = 0
        while not (stop and stop.is_set()) and (delivery := self.ledger.claim(self.clock())):
            sent += self._deliver(delivery)
        return sent

    def finish(self, stop: threading.Event, patience: dt.timedelta = dt.timedelta(minutes=2)) -> int:
        """Deliver until the outbox is empty, `stop` is set or `patience` is over; how many deliveries still wait."""
        deadline = self.clock() + patience
        self.recover()
        while True:
            self.drain(stop)
            waiting = len(self.ledger.deliveries(status=["pending"]))
            if not waiting or self.clock() >= deadline or stop.wait(0.5):
                return waiting

    def recover(self) -> int:
        """Put back what was being sent when the last notifier died; how many. To be called before the first `drain`.

        A receipt shows how far it came. Without one nobody knows whether it arrived; it is sent again, because a lost
        alert is worse than a double one.
        """
        stranded = self.ledger.stranded()
        for delivery in stranded:
            self.ledger.update(replace(delivery, status="pending", due_at=None))
            log.warning("resumed", delivery=delivery.id, sink=delivery.sink, posted=bool(delivery.receipt))
        return len(stranded)

    def _deliver(self, delivery: Delivery) -> bool:
        """Pass one claimed delivery through the steps and store what became of it; whether it was handed over."""
        try:
            parcel = self._parcel(delivery)
            for step in self.steps:
                parcel = step(parcel)
        except _Later as later:
            self.ledger.update(replace(delivery, status="pending", attempts=delivery.attempts - 1, due_at=later.until))
            return False
        except LedgerError:
            raise
        except Exception as error:
            self._failed(self._stored(delivery), error)
            return False
        self._failures.pop(delivery.sink, None)
        self.ledger.update(
            replace(self._stored(delivery), status="sent", error=None, due_at=None, sent_at=self.clock())
        )
        log.debug(
            "delivered",
            delivery=delivery.id,
            incident=delivery.incident,
            sink=delivery.sink,
            attempts=delivery.attempts,
        )
        return True

    def _parcel(self, delivery: Delivery) -> Parcel:
        sink, incident = self.sinks.get(delivery.sink), self.ledger.incident(delivery.incident)
        if sink is None or incident is None:
            message = f"kmon.yaml has no sink {delivery.sink!r} any more" if sink is None else "the incident is gone"
            raise SinkError(message, retryable=False)
        return Parcel(delivery, sink, incident)

    # ---- the steps -----------------------------------------------------------------------------------------------

    def _not_while_held(self, parcel: Parcel) -> Parcel:
        """A far end that is away is not bothered with each waiting alert."""
        until = self._held.get(parcel.delivery.sink)
        if until is not None and until > self.clock():
            raise _Later(until, "the sink is away")
        return parcel

    def _after_its_firing(self, parcel: Parcel) -> Parcel:
        """Nobody hears that something changed or is over before hearing of it."""
        delivery, place = parcel.delivery, (parcel.delivery.sink, parcel.delivery.channel)
        if delivery.kind == "firing":
            return parcel
        same = [d for d in self.ledger.deliveries(incident=delivery.incident) if (d.sink, d.channel) == place]
        for before in same[: [d.id for d in same].index(delivery.id)]:
            if before.status in ("pending", "sending"):
                raise _Later(
                    max(self.clock(), before.due_at or self.clock()) + FIRST, "an earlier alert is still under way"
                )
        return replace(parcel, firing=next((d for d in same if d.kind == "firing"), None))

    def _write(self, parcel: Parcel) -> Parcel:
        incident, kind = parcel.incident, parcel.delivery.kind
        if incident.metric == PIPELINE:
            return replace(parcel, message=operators.compose(incident, kind, self.config, self.clock()))
        change = parcel.delivery.change or ""
        hits = self._hit(self.store, incident) if self.store is not None else None
        message = compose(incident, kind, self.config, self.partners, self.clock(), change=change, hits=hits)
        return replace(parcel, message=message)

    def _draw(self, parcel: Parcel) -> Parcel:
        """A chart that cannot be drawn does not hold back the message. Of the pipeline there is none."""
        if self.store is None or not parcel.sink.charts or parcel.incident.metric == PIPELINE:
            return parcel
        if self._drawn[0] != parcel.incident:
            try:
                self._drawn = (parcel.incident, self._chart(self.store, parcel.incident))
            except Exception as error:
                log.warning(
                    "no_chart", incident=parcel.incident.id, error=str(error), exc_info=not isinstance(error, KmonError)
                )
                self._drawn = (None, None)
        return replace(parcel, chart=self._drawn[1])

    def _hand_over(self, parcel: Parcel) -> Parcel:
        delivery = parcel.delivery
        assert parcel.message is not None
        alert = Alert(
            delivery=delivery.id,
            kind=delivery.kind,
            incident=parcel.incident,
            message=parcel.message,
            channel=delivery.channel,
            chart=parcel.chart,
            firing=parcel.firing.receipt if parcel.firing else {},
        )

        def save(receipt: Receipt) -> None:
            self.ledger.update(replace(delivery, receipt=dict(receipt)))

        parcel.sink.deliver(alert, delivery.receipt, save)
        return parcel

    # ---- what they need ------------------------------------------------------------------------------------------

    def _hit(self, store: Store, incident: Incident) -> Hits | None:
        """Whom it hit most; that nobody can tell does not hold back the message."""
        from kmon.hit import hit

        if self._hits[0] != incident:
            try:
                told = References.of(self.ledger, self.config, incident.started_at - MONTH, incident.seen_at)
                self._hits = (incident, hit(store, told.config, incident, incident.seen_at, told.masks))
            except Exception as error:
                unknown = not isinstance(error, KmonError)
                log.warning("hits_unknown", incident=incident.id, error=str(error), exc_info=unknown)
                self._hits = (None, None)
        return self._hits[1]

    def _chart(self, store: Store, incident: Incident) -> bytes:
        from kmon.alerts.chart import draw, series_for  # matplotlib: not for those who only route
        from kmon.fits import outlooks

        told = References.of(self.ledger, self.config, incident.started_at - MONTH, self.clock())
        models = outlooks(self.ledger, told.config, incident.detected_at)
        series = series_for(incident, store, told.config, masks=told.masks, outlooks=models)
        return draw(incident, series, self.config, self.partners)

    def _stored(self, delivery: Delivery) -> Delivery:
        """The delivery with the receipts that were saved on the way."""
        found = [d for d in self.ledger.deliveries(incident=delivery.incident) if d.id == delivery.id]
        return found[0] if found else delivery

    def _failed(self, delivery: Delivery, error: Exception) -> None:
        """Another attempt later, or the end of it."""
        now = self.clock()
        told = str(error) if isinstance(error, SinkError) else f"a fault in kmon ({type(error).__name__})"
        names = {"delivery": delivery.id, "incident": delivery.incident, "sink": delivery.sink, "error": told}
        if not isinstance(error, SinkError):
            log.exception("delivery_broke", **names)
        wait = backoff(delivery.attempts)
        if isinstance(error, SinkError) and error.retryable:
            self._failures[delivery.sink] = self._failures.get(delivery.sink, 0) + 1
            # half as long as this one waits, so that another one tries first: it may be this one's fault
            hold = backoff(self._failures[delivery.sink]) / 2
            if isinstance(error, ThrottledError):
                wait = hold = dt.timedelta(seconds=error.seconds)
            self._held[delivery.sink] = now + hold
        if not getattr(error, "retryable", True) or now - delivery.created_at >= GIVE_UP:
            self.ledger.update(replace(delivery, status="failed", error=told, due_at=None))
            log.error("given_up", attempts=delivery.attempts, **names)
        else:
            self.ledger.update(replace(delivery, status="pending", error=told, due_at=now + wait))
            log.warning("retry_later", attempts=delivery.attempts, seconds=round(wait.total_seconds(), 1), **names)

    def _reload_partners(self) -> None:
        try:
            self.partners.reload_if_changed()
        except KmonError as error:
            log.warning("partners_unchanged", error=str(error))


def backoff(attempts: int) -> dt.timedelta:
    """How long to wait after the `attempts`-th failure in a row: 2 s, 4 s, ... 5 min, less up to a quarter of it."""
    doubled: dt.timedelta = FIRST * 2 ** min(max(attempts, 1) - 1, 20)
    return min(LONGEST, doubled) * random.uniform(0.75, 1)  # noqa: S311
