"""The partner reference: who a partner is, who looks after it, and where its alerts go.

A csv or parquet file with the columns partner, name, account_team, slack_channel, tier and timezone, of which only
`partner` must be there; every value is text, as it stands. It is joined at read time, so that a changed owner needs no
rewrite of history, and it is read again when the file changes.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from kmon.errors import KmonError
from kmon.versions import Version, version_of

COLUMNS = ("partner", "name", "account_team", "slack_channel", "tier", "timezone")


@dataclass(frozen=True)
class Partner:
    """One row of the reference; what the file does not say is empty."""

    partner: str
    name: str = ""
    account_team: str = ""
    slack_channel: str = ""
    tier: str = ""
    timezone: str = ""
    """An IANA name, unchecked."""


class Partners:
    """The whole reference as one frame.

    >>> Partners.load(None).get("p17") is None
    True
    """

    def __init__(self, frame: pl.DataFrame, path: Path | None = None, version: Version | None = None) -> None:
        self._frame, self._path, self._version = frame, path, version

    @classmethod
    def load(cls, path: Path | None) -> Partners:
        """Read the file at `path`; None: nobody is known. KmonError where it cannot be read."""
        if path is None:
            return cls(pl.DataFrame(schema=dict.fromkeys(COLUMNS, pl.String)))
        version = version_of(path)
        return cls(_read(path), path, version)

    @property
    def frame(self) -> pl.DataFrame:
        """All of it: `COLUMNS` as text without nulls, one row a partner, in order of `partner`."""
        return self._frame

    def get(self, partner: str) -> Partner | None:
        """One partner, or None where the reference does not know it."""
        ids = self._frame["partner"]
        at = ids.search_sorted(partner)
        return Partner(**self._frame.row(at, named=True)) if at < len(ids) and ids[at] == partner else None

    def reload_if_changed(self) -> bool:
        """Read the file again where its time or size changed; whether it did.

        Where that fails, KmonError says why, once for each change of the file, and what was known stays in use.
        """
        if self._path is None:
            return False
        version = version_of(self._path)
        if version == self._version:
            return False
        self._version = version
        self._frame = _read(self._path)
        return True


def _read(path: Path) -> pl.DataFrame:
    parquet = path.suffix.lower() in (".parquet", ".pq")
    try:
        data = path.read_bytes()  # polars would take a path for a pattern
        frame = pl.read_parquet(io.BytesIO(data)) if parquet else pl.read_csv(data, infer_schema=False)
        if "partner" not in frame.columns:
            message = f"the partner reference {path} has no column 'partner': its first line must name the columns"
            raise KmonError(message)
        present = [
            pl.col(c).cast(pl.String).fill_null("") if c in frame.columns else pl.lit("").alias(c) for c in COLUMNS
        ]
        frame = frame.filter(pl.col("partner").is_not_null()).select(present)
    except OSError as error:
        message = f"the partner reference {path} cannot be read: {error.strerror}"
        raise KmonError(message) from error
    except pl.exceptions.PolarsError as error:
        kind = "parquet" if parquet else "csv"
        reason = (str(error).strip() or "it is empty").splitlines()[0]
        message = f"the partner reference {path} is not a valid {kind} file: {reason}"
        raise KmonError(message) from error
    return frame.unique("partner", keep="last").sort("partner")
