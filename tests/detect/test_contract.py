"""Detectors by name: built in, one's own, and what is said where there is none."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from kmon.config import DetectorUse
from kmon.detect import SCORES, detector, load_detector
from kmon.detect.contract import scored
from kmon.errors import UsageError
from tests.detect.worlds import windows

MINE = '''
import polars as pl
from kmon.detect import SCORES, detector

class Halved:
    """Everything below half of its first reference bin."""
    name = "halved"

    def __init__(self, share=0.5):
        self.share = share

    def score(self, windows):
        before = windows["recent_value"].arr.first()
        low = windows["value"] < self.share * before
        zeros = {n: [0.0 if t == pl.Float64 else None] * len(low) for n, t in SCORES.items()}
        blank = pl.DataFrame(zeros, schema=SCORES)
        return blank.with_columns(
            observed=windows["value"], expected=before, p_value=low.cast(float) * -1 + 1, direction=pl.lit("down"),
            evidence=before - windows["value"], judged=pl.lit(True), notable=low,
        )

@detector
def quiet(windows, floor=3.0):
    return Halved(0.0).score(windows)

@detector
def short(windows):
    return windows.select(observed="value")

class Nameless:
    def score(self, windows):
        return windows

class Silent:
    name = "silent"

def nothing():
    return None
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("sys.path", __import__("sys").path.copy())
    name = f"mine_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MINE)
    return tmp_path


def module(folder: Path) -> str:
    return next(folder.glob("mine_*.py")).stem


def test_ones_own_class_and_function_lie_beside_the_configuration(folder: Path) -> None:
    given = windows("count", [10.0, 90.0], 100.0)
    halved = load_detector(DetectorUse(use=f"{module(folder)}:Halved", params={"share": 0.2}), folder)
    assert halved.score(given)["notable"].to_list() == [True, False]
    quiet = load_detector(DetectorUse(use=f"{module(folder)}:quiet", params={"floor": 1.0}), folder)
    assert quiet.name == "quiet"
    assert not quiet.score(given)["notable"].any()


@pytest.mark.parametrize(
    ("use", "params", "said"),
    [
        ("compared", {}, "built in is compare"),
        ("compare", {"min_efect": 1}, "did you mean 'min_effect'"),
        ("compare", {"min_effect": "x"}, "needs a number for 'min_effect'"),
        ("no_such_module:Thing", {}, "cannot be loaded"),
        ("json:Thing", {}, "cannot be loaded"),
        ("MINE:Halved", {"chare": 1}, "did you mean 'share'"),
        ("MINE:quiet", {"flor": 1}, "did you mean 'floor'"),
        ("MINE:Nameless", {}, "has a name"),
        ("MINE:Silent", {}, "no attribute 'score'"),
        ("MINE:nothing", {}, "is no detector of a sweep"),
        ("kmon.detect:SeriesScores", {"surprise": 1, "alarm": 2}, "or judge.times, values, last=1. where it judges"),
        ("kmon.detect:Surprise", {"spam": 1}, "did you mean 'span'"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(folder: Path, use: str, params: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        load_detector(DetectorUse(use=use.replace("MINE", module(folder)), params=params), folder)


def test_scores_that_break_the_contract_are_refused(folder: Path) -> None:
    given = windows("count", [10.0], 100.0)
    short = load_detector(DetectorUse(use=f"{module(folder)}:short"), folder)
    with pytest.raises(UsageError, match="'short' returned no column 'expected'"):
        scored(short, given)


def test_scores_come_out_in_the_contracts_types() -> None:
    @detector
    def whole(windows: pl.DataFrame) -> pl.DataFrame:
        return windows.select(
            *(pl.lit(1).alias(n) for n, t in SCORES.items() if t == pl.Float64),
            direction=pl.lit("up"), judged=pl.lit(True), notable=pl.lit(False),
        )  # fmt: skip

    assert scored(whole(), windows("count", [1.0], 1.0)).schema == SCORES
