"""Durations, names and hints: the small change of ``kmon.yaml``."""

from __future__ import annotations

import datetime as dt
import difflib
import re
import typing
from typing import Annotated

from pydantic import BeforeValidator

from kmon.errors import UsageError

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?", re.IGNORECASE)
_NAME = re.compile(r"[a-z_][a-z0-9_]{0,62}", re.IGNORECASE)
BUCKET = dt.timedelta(seconds=10)
"""Width of a hot rollup bucket."""
MINUTE = dt.timedelta(minutes=1)


def parse_duration(value: object) -> dt.timedelta:
    """``"90s"``, ``"1m30s"``, ``"2d"`` or seconds as a number, as a timedelta; ValueError otherwise."""
    if isinstance(value, dt.timedelta):
        return value
    text = str(value).replace(" ", "")
    parts = _DURATION.findall(text)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number or (parts and "".join(map("".join, parts)) == text):
        try:
            seconds = float(value) if number else sum(float(n) * _UNITS[unit] for n, unit in parts)  # type: ignore[arg-type]
            if seconds >= 0:
                return dt.timedelta(seconds=seconds)
        except (OverflowError, ValueError):  # too long, or not a number at all
            pass
    message = f"{value!r} is not a duration: write for example 10s, 5m, 1h or 2d"
    raise ValueError(message)


def show_duration(value: dt.timedelta) -> str:
    """The shortest spelling of a duration, as `parse_duration` reads it."""
    seconds = value.total_seconds()
    for unit in ("d", "h", "m"):
        if seconds and seconds % _UNITS[unit] == 0:
            return f"{seconds / _UNITS[unit]:g}{unit}"
    return f"{seconds:g}s"


def counted(number: int, what: str) -> str:
    """A number of things: ``1 incident``, ``12,000 incidents``."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def parse_size(value: object) -> int:
    """``"2GB"``, ``"500 MB"``, ``"1GiB"`` or bytes as a number, as a number of bytes; ValueError otherwise."""
    found = _SIZE.fullmatch(str(value).strip())
    if found is None or isinstance(value, bool) or found[2].lower() == "i":
        message = f"{value!r} is not a size: write for example 500MB, 2GB or 1GiB"
        raise ValueError(message)
    prefix = found[2].lower()
    power = " kmgt".index(prefix[0]) if prefix else 0
    return int(float(found[1]) * (1024 if prefix.endswith("i") else 1000) ** power)


def _check_name(value: object) -> object:
    if isinstance(value, str) and _NAME.fullmatch(value):
        return value
    message = f"{value!r} is not a name: use letters, digits and underscores, beginning with a letter"
    raise ValueError(message)


def page_key(dimension: str) -> str:
    """The key of a dimension in a page's URL: with an underscore where the page has a key of that name itself."""
    return f"{dimension}_" if dimension in ("metric", "incident", "at", "range") else dimension


def _check_address(value: object) -> object:
    _, _, port = str(value).rpartition(":")
    if re.fullmatch(r"quack:[^:\s]+:\d{1,5}", str(value)) and 0 < int(port) < 65536:
        return value
    message = f"{value!r} is not an address: write quack:<host>:<port>, for example quack:localhost:9494"
    raise ValueError(message)


Duration = Annotated[dt.timedelta, BeforeValidator(parse_duration)]
Size = Annotated[int, BeforeValidator(parse_size)]
Address = Annotated[str, BeforeValidator(_check_address)]
Name = Annotated[str, BeforeValidator(_check_name)]


def nearest(name: str, names: typing.Iterable[str], otherwise: str = "") -> str:
    """A hint at what may have been meant; `otherwise` where nothing is near and the names are too many to list."""
    names = list(names)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    return otherwise or (f"it is one of {', '.join(sorted(names))}" if names else "there is none")


def known(kind: str, name: str, names: typing.Iterable[str]) -> str:
    """`name`, which must be one of `names`: UsageError otherwise."""
    names = list(names)
    if name not in names:
        message = f"there is no {kind} {name!r}: {nearest(name, names)}"
        raise UsageError(message)
    return name
