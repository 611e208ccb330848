"""What models add, on a very small scale: that it runs and tells."""

from __future__ import annotations

from pathlib import Path

from kmon.bench import BENCHES, Options


def test_models_are_measured_with_and_without(tmp_path: Path) -> None:
    rows = BENCHES["detect-models"](Options(scale=0.01, data=tmp_path))
    names = [row.name for row in rows if row.value is not None]
    for kind in ("count", "rate"):
        assert f"simulated, 9 days: {kind} in 15m, squared error over that without" in names
    assert [row.note for row in rows if row.value is None] == ["KMON_DATA has no nab.parquet"]
    won = next(row for row in rows if row.name == "simulated, 9 days: fits")
    assert won.value == 18
    assert won.note.startswith("won: ")
