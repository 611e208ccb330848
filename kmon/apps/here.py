"""Where a notebook finds configuration, store and ledger: where its server says, else in the nearest ``kmon.yaml``."""

from __future__ import annotations

from pathlib import Path

from kmon import environment
from kmon.config import Config, load_config
from kmon.ledger import Ledger, open_ledger
from kmon.store import Store, open_for_reading


def config_path() -> Path:
    """The configuration's file, which may not exist: then it is the one in the working folder that does not."""
    given = environment.config_path()
    if given:
        return Path(given)
    folder = Path.cwd()
    found = (parent / "kmon.yaml" for parent in (folder, *folder.parents))
    return next((path for path in found if path.exists()), folder / "kmon.yaml")


def config() -> Config:
    """The configuration; ConfigError where there is none, or it is wrong."""
    return load_config(config_path())


def store(config: Config) -> Store:
    """The store, read only, over Quack where a process owns it."""
    return open_for_reading(config, environment.store_address())


def ledger(config: Config) -> Ledger:
    """The ledger that belongs to the store."""
    return open_ledger(config, environment.store_address())
