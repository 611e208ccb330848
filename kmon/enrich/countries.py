"""Countries by one name: the ISO 3166 alpha-2 code, from the pycountry package."""

from __future__ import annotations

from functools import lru_cache

import polars as pl
import pycountry

_USUAL = {"UK": "GB", "EL": "GR"}
"""Codes that are used beside the standard: by the public, and by the European Union for Greece."""


def with_countries(events: pl.DataFrame, field: str) -> pl.DataFrame:
    """`events` with the field's countries as alpha-2 codes; what is no country that is known stays as it is."""
    column = events[field]
    values = column.unique().drop_nulls().cast(pl.String).to_list()
    changed = {value: code for value in values if (code := alpha2(value)) != value}
    if not changed:
        return events
    normal = column.cast(pl.String).replace(changed).cast(column.dtype)
    return events.with_columns(normal.alias(field))


@lru_cache(maxsize=10_000)
def alpha2(text: str) -> str:
    """The alpha-2 code of a country's code, number or English name; `text` itself where it is none.

    >>> [alpha2(text) for text in ("se", "SWE", "752", "Sweden", "UK", "Atlantis")]
    ['SE', 'SE', 'SE', 'SE', 'GB', 'Atlantis']
    """
    wanted = text.strip().upper()
    if wanted in _USUAL:
        return _USUAL[wanted]
    try:
        return str(pycountry.countries.lookup(wanted).alpha_2)
    except LookupError:
        return text
