from __future__ import annotations

import os
from pathlib import Path

import polars as pl
import pytest

from kmon.errors import KmonError
from kmon.partners import COLUMNS, Partner, Partners

CSV = 'partner,name,slack_channel,age\n007,"O\'Neil ""Shoes""\n& <b>",#p7,3\np17,Nordic,,4\np17,Newer,#new,5\n,no,,6\n'


def load(path: Path, text: str | bytes) -> Partners:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return Partners.load(path)


def test_reads_text_as_it_stands_and_the_last_row_of_a_partner(tmp_path: Path) -> None:
    partners = load(tmp_path / "p.csv", CSV)
    assert partners.get("007") == Partner("007", 'O\'Neil "Shoes"\n& <b>', slack_channel="#p7")
    assert partners.get("p17") == Partner("p17", "Newer", slack_channel="#new")
    assert partners.get("p18") is partners.get("") is partners.get("zzz") is None
    assert partners.frame.columns == list(COLUMNS)


def test_parquet_of_any_type_is_text(tmp_path: Path) -> None:
    pl.DataFrame({"partner": [17, 18], "tier": [1, None]}).write_parquet(tmp_path / "p.parquet")
    partners = Partners.load(tmp_path / "p.parquet")
    assert (partners.get("17"), partners.get("18")) == (Partner("17", tier="1"), Partner("18"))


def test_no_file_knows_nobody() -> None:
    assert Partners.load(None).get("p1") is None
    assert Partners.load(None).reload_if_changed() is False


def test_a_spreadsheets_byte_order_mark_is_no_part_of_the_name(tmp_path: Path) -> None:
    assert load(tmp_path / "p.csv", b"\xef\xbb\xbfpartner,name\np1,One\n").get("p1") == Partner("p1", "One")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("p.csv", b"", "not a valid csv"),
        ("p.csv", b"id,name\n1,2\n", "no column 'partner'"),
        ("p.csv", b"partner,name\np1,\xff\xfe\xfa\n", "not a valid csv"),
        ("p.csv", b"partner,name\np1,a,b,c\n", "not a valid csv"),
        ("p.parquet", b"PAR1 nonsense", "not a valid parquet"),
        ("missing.csv", None, "cannot be read"),
        ("missing.parquet", None, "cannot be read"),
        ("folder.csv", "folder", "cannot be read"),
    ],
)
def test_a_broken_file_is_one_sentence(tmp_path: Path, name: str, content: bytes | str | None, says: str) -> None:
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content:
        path.mkdir()
    with pytest.raises(KmonError, match=says) as caught:
        Partners.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_change_is_seen_and_a_broken_one_told_once(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    partners = load(path, "partner,name\np1,Old\n")
    assert partners.reload_if_changed() is False
    path.write_text("partner,name\np1,New\n")
    os.utime(path, ns=(1, 1))
    assert partners.reload_if_changed() is True
    assert partners.get("p1") == Partner("p1", "New")
    path.unlink()
    with pytest.raises(KmonError, match="cannot be read"):
        partners.reload_if_changed()
    assert partners.reload_if_changed() is False
    assert partners.get("p1") == Partner("p1", "New")
