from __future__ import annotations

from pathlib import Path

import pytest

from kmon.config import Config
from tests.apps import shop


@pytest.fixture(scope="session")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A configuration whose store has data; not to be written to."""
    config = shop.configured(tmp_path_factory.mktemp("shop"))
    shop.fill(config)
    return config


@pytest.fixture
def empty(tmp_path: Path) -> Config:
    """A configuration without a store."""
    return shop.configured(tmp_path)
