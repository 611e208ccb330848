"""``kmon status``: where the data stands and what was made of it."""

from __future__ import annotations

import datetime as dt
from typing import Any

from kmon import budget
from kmon.config import PIPELINE, Config, show_duration
from kmon.gate import incident_of
from kmon.ledger import Ledger, SweepRecord, open_ledger, show_time
from kmon.pipeline import DAY, symptoms
from kmon.store import open_for_reading


def status(config: Config, store: str | None = None) -> dict[str, Any]:
    """Offsets, clocks, tiers, dead letters, the week's alerts, and a `summary` with watermark, lag, sweep and queue."""
    with open_for_reading(config, store) as opened, open_ledger(config, store) as ledger:
        found, now = opened.status(), dt.datetime.now(dt.UTC)
        mark = opened.watermark(config.events.lateness, config.events.idle)
        newest = opened.newest()
        sweep = ledger.last_sweep()
        waiting = ledger.deliveries(status=["pending", "sending"])
        failed = ledger.deliveries(status=["failed"])
        lagging = [
            c["partition"]
            for c in found["clocks"]
            if newest and c["newest"] and newest.replace(tzinfo=None) - c["newest"] > config.events.idle
        ]
        lately = [i for i in ledger.overlapping(mark - DAY, now) if i.metric == PIPELINE] if mark else []
        trouble = (
            symptoms(config, opened, ledger, mark, mark - config.pipeline.quiet, known=lately, now=now) if mark else []
        )
        found["pipeline"] = [
            {"kind": s.kind, "since": show_time(s.since), "partitions": list(s.partitions), "what": told}
            for s in trouble
            if (told := incident_of(s, now).reason)
        ]
        week = budget.last_week(ledger)
        found["alerts_by_day"] = [day.public() for day in week]
        unread = [c["unread"] for c in found["clocks"] if c["unread"] is not None]
        found["summary"] = {
            "watermark": show_time(mark),
            "newest_event": show_time(newest),
            "pipeline": "; ".join(one["what"] for one in found["pipeline"]) or "as usual",
            "lag_seconds": round((now - mark).total_seconds(), 1) if mark else None,
            "lag_messages": sum(unread) if unread else None,
            "lagging_partitions": ", ".join(lagging) or None,
            "events": sum(tier["events"] for tier in found["tiers"].values()),
            "bytes": found["bytes"],
            "late": sum(c["late"] or 0 for c in found["clocks"]),
            "dead_letters": sum(found["dead_letters"].values()),
            "last_sweep": show_time(sweep.at) if sweep else None,
            "last_sweep_seconds": round(sweep.seconds, 3) if sweep else None,
            "monitors": sweep.monitors if sweep else None,
            **budget.achieved(week, config.false_alerts_per_day),
            "small_p_values_too_often": _excess(ledger, sweep),
            "open_incidents": len(ledger.open_incidents()),
            "alerts_waiting": len(waiting),
            "alerts_failed": len(failed),
            **_models(config, ledger, mark),
        }
    return found


def _excess(ledger: Ledger, sweep: SweepRecord | None) -> str | None:
    """How many times more often than they should normal monitors had small p-values in the last day, at most.

    That is before calibration, which takes it off; far above 1 the data is wilder than the detector thinks.
    """
    if sweep is None:
        return None
    usual = ledger.calibrations(sweep.at)
    worst = max(usual, key=lambda key: usual[key].excess, default=None)
    if worst is None:
        return None
    metric, seconds = worst
    return f"{usual[worst].excess:.2g} times ({metric}, {show_duration(dt.timedelta(seconds=seconds))})"


def _models(config: Config, ledger: Ledger, mark: dt.datetime | None) -> dict[str, Any]:
    """How many fits there are, the newest, and how many cannot be used; nothing where no models are configured."""
    if not config.models.on:
        return {}
    from kmon.fits import models  # scipy: not for those who have none

    found = models(ledger.fits(), config, mark or dt.datetime.now(dt.UTC))
    states = [model.state for model in found]
    return {
        "models": states.count("fresh"),
        "models_newest": show_time(max((m.data_to for m in found if m.data_to), default=None)),
        "models_stale": states.count("stale"),
        "models_failed": sum(model.failed is not None for model in found),
    }
