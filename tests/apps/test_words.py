from __future__ import annotations

import datetime as dt

import pytest

from kmon.apps import words
from kmon.config import Metric

COUNT, RATE, MEAN = Metric(count="a"), Metric(rate="a / b"), Metric(mean="a / b", unit="EUR")


@pytest.mark.parametrize(
    ("metric", "value", "shown"),
    [
        (COUNT, 1234.0, "1,234"),
        (COUNT, 0.0, "0"),
        (COUNT, 85.2, "85"),
        (COUNT, 3.27, "3.3"),
        (COUNT, -4.0, "-4"),
        (COUNT, 23_456_789.0, "23.5 M"),
        (COUNT, None, words.NOTHING),
        (COUNT, float("nan"), words.NOTHING),
        (RATE, 0.312, "31.2 %"),
        (RATE, 0.00841, "0.84 %"),
        (RATE, 0.0, "0 %"),
        (RATE, 1.0, "100 %"),
        (MEAN, 81.5, "81.50 EUR"),
        (MEAN, None, words.NOTHING),
        (Metric(quantile="a", q=0.95, unit="ms"), 743.21, "743 ms"),
    ],
)
def test_values(metric: Metric, value: float | None, shown: str) -> None:
    assert words.value(metric, value).replace("\N{NO-BREAK SPACE}", " ") == shown


@pytest.mark.parametrize(
    ("observed", "expected", "shown"),
    [
        (90, 100, f"{words.MINUS}10 %"),
        (110, 100, "+10 %"),
        (100, 100, "±0 %"),
        (5000, 100, f"{words.TIMES} 50"),
        (1, 0, ""),
        (None, 1, ""),
    ],
)
def test_changes(observed: float | None, expected: float | None, shown: str) -> None:
    assert words.change(observed, expected).replace("\N{NO-BREAK SPACE}", " ") == shown


@pytest.mark.parametrize(
    ("name", "plural"),
    [
        ("partner", "partners"),
        ("Country", "countries"),
        ("pay_day", "pay days"),
        ("box", "boxes"),
        ("branch", "branches"),
    ],
)
def test_plurals(name: str, plural: str) -> None:
    assert words.several(name) == plural


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(-5, "0 s"), (59, "59 s"), (60, "1 min"), (3600, "1 h"), (12_000, "3 h 20 min"), (172_800, "2 days")],
)
def test_durations(seconds: int, shown: str) -> None:
    assert words.duration(dt.timedelta(seconds=seconds)).replace("\N{NO-BREAK SPACE}", " ") == shown


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("<script>&", "&lt;script&gt;&amp;"),
        ("two\nlines", "two↵lines"),
        ("nul\x00", "nul\\x00"),
        ("bidi\u202e", "bidi\\x202e"),
        ("👩\u200d💻", "👩\u200d💻"),
        ("$x$ *b* <!channel>", "$x$ *b* &lt;!channel&gt;"),
    ],
)
def test_names_show_literally_on_one_line(name: str, shown: str) -> None:
    assert words.safe(name) == shown
