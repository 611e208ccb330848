"""A shop whose events come as a growing file, for kmon's own processes to run on."""

from __future__ import annotations

import re

import pytest

from kmon.testing import free_port
from tests.command import kmon


@pytest.fixture
def shop(tmp_path):
    """A folder made by `kmon init`, with a files source and ports of its own."""
    assert kmon("init", cwd=tmp_path).returncode == 0
    path = tmp_path / "kmon.yaml"
    text = re.sub(
        r"source:\n.*?\n#",
        'source:\n  kind: files\n  paths: ["in/*.ndjson"]\n#',
        path.read_text(),
        count=1,
        flags=re.DOTALL,
    )
    text = text.replace("port: 5006", f"port: {free_port()}") + f"serve: quack:localhost:{free_port()}\n"
    path.write_text(text, encoding="utf-8")
    (tmp_path / "in").mkdir()
    return tmp_path
