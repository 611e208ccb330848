"""Who owns a store, as its readers are told; and the copy of kmon.yaml by which a running kmon goes."""

from __future__ import annotations

import os
import shutil
from contextlib import closing

import pytest

from kmon.config import copy_config, load_config
from kmon.errors import ConfigError
from kmon.owner import Owner, Telephone
from kmon.store import serving, token_for
from tests.conftest import TEMPLATE
from tests.store.conftest import free_address


def test_the_owner_answers_as_it_is_now(store, tmp_path, config):
    address, path = free_address(), tmp_path / "kmon.duckdb"
    with closing(Telephone(address, path)) as telephone:
        assert (telephone.owner(), telephone.schema()) == (None, None)
        with serving(store, address, token_for(path)):
            Owner.this(config).write(store)
            owner = telephone.owner()
            assert owner is not None
            assert (owner.pid, owner.told_by, owner.config) == (os.getpid(), os.getpid(), str(TEMPLATE))
            assert telephone.schema() == store.schema
            store.reconfigure(config.model_copy(update={"measures": {**config.measures, "more": "count(*)"}}))
            assert telephone.schema() == store.schema  # not what it was when the call began
        assert telephone.owner() is None


def test_a_copy_stands_for_its_original(tmp_path):
    original, copy = tmp_path / "kmon.yaml", tmp_path / "elsewhere" / "copy.yaml"
    copy.parent.mkdir()
    shutil.copy(TEMPLATE, original)
    config = copy_config(original, copy)
    assert (config.path, config.file, config.digest) == (original, copy, load_config(original).digest)
    assert config.resolve("alerts") == tmp_path / "alerts"
    original.write_text("nonsense: 1\n", encoding="utf-8")
    assert load_config(copy) == config
    with pytest.raises(ConfigError, match=rf"{original}, line 1: .*'nonsense'"):
        copy_config(original, copy)
    assert load_config(copy) == config  # a bad file did not spoil it
    broken = copy.read_text(encoding="utf-8").replace("watch:", "wotch:", 1)
    copy.write_text(broken, encoding="utf-8")
    with pytest.raises(ConfigError, match=rf"^{original}, line \d+: .*'wotch'"):
        load_config(copy)


@pytest.mark.parametrize("key", ["path", "copied", "digest"])
def test_what_the_file_cannot_say_is_unknown(tmp_path, key):
    path = tmp_path / "kmon.yaml"
    path.write_text(f"{key}: x\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=f"unknown key '{key}'"):
        load_config(path)
