"""What people type on the command line, as values; anything else is a UsageError that says how to write it."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import cast

from kmon.config import BUCKET, Config, parse_duration, show_duration
from kmon.config.words import known
from kmon.errors import UsageError
from kmon.ledger import WORDS, Word

__all__ = ["duration", "known", "moment", "pairs", "scope", "stretch", "verdict"]
FIRST_YEAR, LAST_YEAR = 1971, 9000


def moment(text: str | None) -> dt.datetime | None:
    """RFC 3339 text as a UTC time; without an offset it is UTC already."""
    if text is None:
        return None
    try:
        at = dt.datetime.fromisoformat(text)
    except ValueError:
        message = f"{text!r} is not a time: write for example 2026-03-02T14:05:00Z"
        raise UsageError(message) from None
    if not FIRST_YEAR <= at.year <= LAST_YEAR:
        message = f"{text} is too far away: a time lies between the years {FIRST_YEAR} and {LAST_YEAR}"
        raise UsageError(message)
    return at.replace(tzinfo=dt.UTC) if at.tzinfo is None else at.astimezone(dt.UTC)


def duration(text: str) -> dt.timedelta:
    """A duration in whole buckets: ``10s``, ``1m``, ``1h``."""
    try:
        found = parse_duration(text)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if found < BUCKET or found % BUCKET:
        message = f"{show_duration(found)} is not a multiple of {show_duration(BUCKET)}"
        raise UsageError(message)
    return found


def pairs(texts: Sequence[str] | None) -> dict[str, str]:
    """``["k=v", ...]`` as a mapping; a value may contain further equals signs, and no key may come twice."""
    found: dict[str, str] = {}
    for text in texts or ():
        key, equals, value = text.partition("=")
        if not equals or not key:
            message = f"{text!r} is not of the form K=V"
            raise UsageError(message)
        if key in found:
            message = f"{key!r} is given twice, as {found[key]!r} and as {value!r}: name it once"
            raise UsageError(message)
        found[key] = value
    return found


def scope(config: Config, texts: Sequence[str] | None) -> dict[str, str]:
    """Dimension values; the dimensions must be the configuration's."""
    found = pairs(texts)
    for dimension in found:
        known("dimension", dimension, config.dimensions)
    return found


def verdict(words: Sequence[str]) -> tuple[str, Word]:
    """An incident and what is said of it."""
    if len(words) != 2:
        message = f"say what {words[0]} was: 'kmon label {words[0]} {'|'.join(WORDS)}'"
        raise UsageError(message)
    return words[0], cast(Word, known("label", words[1], WORDS))


def stretch(
    config: Config, metric: str | None, start: str | None, end: str | None
) -> tuple[str, dt.datetime, dt.datetime]:
    """A metric and a stretch of time, all of which must be given."""
    begin, until = moment(start), moment(end)
    if metric is None or begin is None or until is None:
        message = "an incident that was not found needs --metric, --from and --to, and --where unless it was everywhere"
        raise UsageError(message)
    if until <= begin:
        message = f"--to {end} is not after --from {start}"
        raise UsageError(message)
    return known("metric", metric, config.metrics), begin, until
