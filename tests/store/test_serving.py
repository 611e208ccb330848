from __future__ import annotations

import contextlib
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator

import duckdb
import psutil
import pytest

from kmon.config import Config
from kmon.errors import StoreError
from kmon.store import EmbeddedStore, RemoteStore, connect, open_for_reading, serving, token_for
from kmon.store.rule import TABLE_FUNCTIONS
from tests.conftest import T
from tests.store.conftest import MINUTE, TOKEN, free_address

ONE_SELECT = "readers of a store may run one SELECT at a time, and no function that reads files or acts"
REFUSED = """
SELECT 1; SELECT 2
SELECT 1; DROP TABLE meta
DROP TABLE meta
/* SELECT */ DROP TABLE meta
INSERT INTO meta VALUES ('a', 'b')
UPDATE meta SET value = 'x'
DELETE FROM meta
WITH x AS (INSERT INTO meta VALUES ('a', 'b') RETURNING *) SELECT * FROM x
CREATE TABLE t(a INTEGER)
CREATE MACRO f() AS 1
FROM pg_catalog.pg_settings
FROM duckdb_logs
ALTER TABLE meta ADD COLUMN x INTEGER
COPY (SELECT 1) TO '/tmp/kmon-refused.csv'
COPY meta FROM '/etc/passwd'
EXPORT DATABASE '/tmp/kmon-refused'
ATTACH '/tmp/kmon-refused.db'
DETACH kmon
USE kmon
PRAGMA database_list
SET threads = 1
RESET threads
CALL quack_stop('quack:localhost:1')
EXPLAIN SELECT 1
EXPLAIN ANALYZE SELECT 1
BEGIN
CHECKPOINT
VACUUM
LOAD httpfs
INSTALL httpfs
PREPARE x AS SELECT 1
SELECT * FROM read_csv('/etc/passwd')
SELECT * FROM read_text('/etc/passwd')
SELECT * FROM parquet_scan('/etc/passwd')
SELECT * FROM sniff_csv('/etc/passwd')
SELECT * FROM glob('/etc/*')
SELECT * FROM quack_stop('quack:localhost:1')
SELECT * FROM "QUACK_Server_List"()
FROM quack_query('quack:localhost:1', 'DROP TABLE meta')
SELECT quack_check_token('a', 'b', 'c')
SELECT * FROM query('SELECT * FROM quack_server_list()')
SELECT * FROM query_table('meta')
SELECT * FROM json_execute_serialized_sql(json_serialize_sql('SELECT * FROM quack_server_list()'))
SELECT (SELECT count(*) FROM force_checkpoint())
SELECT * FROM enable_logging()
SELECT * FROM duckdb_secrets()
SELECT * FROM duckdb_settings()
SELECT getenv('HOME')
SELECT write_log('x')
SELECT kmon_leave('a', 'SELECT 1')
SELECT json_serialize_plan('FROM range(1)')
SELECT pg_sleep(1000)
SELECT "GetEnv"('HOME')
WITH x AS (FROM read_text('/etc/passwd')) FROM x
SELECT 1 UNION ALL SELECT count(*) FROM read_blob('/etc/passwd')
""".strip().splitlines()


OTHER_KINDS = (
    "EXECUTE x",
    "DEALLOCATE x",
    "SET VARIABLE x = 1",
    "MERGE INTO meta USING meta m ON false WHEN NOT MATCHED THEN INSERT",
    "UPDATE EXTENSIONS",
    "COMMENT ON TABLE meta IS 'x'",
    "ANALYZE",
)
NEVER_PARSED = ("INVALID", "LOGICAL_PLAN", "RELATION", "EXTENSION", "MULTI", "EXT", "CREATE_FUNC", "COPY_DATABASE",
                "PRAGMA", "ANALYZE", "VARIABLE_SET")  # fmt: skip
"""Kinds that DuckDB makes of other statements, or of none."""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, config: Config) -> Iterator[tuple[EmbeddedStore, RemoteStore]]:
    """A store and its reader, for tests that must not change anything."""
    address = free_address()
    path = tmp_path_factory.mktemp("shared") / "k.duckdb"
    with EmbeddedStore(path, config) as store, serving(store, address, TOKEN), connect(address, TOKEN) as remote:
        yield store, remote


@pytest.fixture
def served(store: EmbeddedStore) -> Iterator[RemoteStore]:
    address = free_address()
    with serving(store, address, TOKEN), connect(address, TOKEN) as remote:
        yield remote


@pytest.mark.parametrize("statement", [*REFUSED, *OTHER_KINDS])
def test_readers_may_only_select(shared, statement):
    store, remote = shared
    before = store.sql("SELECT * FROM meta")
    with pytest.raises(StoreError) as caught:
        remote.sql(statement)
    assert str(caught.value).endswith(ONE_SELECT)
    assert store.sql("SELECT * FROM meta").equals(before)


@pytest.mark.parametrize(
    "statement",
    ["SELECT 1 /* ; DROP TABLE meta */", "WITH x AS (SELECT 1) FROM x", "FROM range(3)", "VALUES (1)", "DESCRIBE cells",
     "SHOW TABLES", "SUMMARIZE meta", "SELECT 'quack_stop(); DROP TABLE meta'", "SELECT unnest([1, 2])"],
)  # fmt: skip
def test_readers_may_select_anything(shared, statement):
    assert shared[1].sql(statement).height


def test_the_statements_that_are_refused_are_of_every_kind_but_select():
    found = set()
    for text in [*REFUSED, "SHOW VARIABLES", *OTHER_KINDS]:
        with contextlib.suppress(duckdb.Error):
            found |= {statement.type for statement in duckdb.extract_statements(text)}
    kinds = {kind for name, kind in duckdb.StatementType.__members__.items() if name not in NEVER_PARSED}
    assert kinds <= found | {duckdb.StatementType.SELECT}


def test_files_cannot_be_read_by_name(shared):
    with pytest.raises(StoreError, match="does not exist"):
        shared[1].sql("SELECT * FROM '/etc/passwd'")


def test_the_rule_for_readers_leaves_no_trace_in_the_file(store, served, tmp_path):
    assert store.sql("SELECT 1 FROM duckdb_functions() WHERE function_name = 'kmon_leave'").height == 1
    served.close()
    store.close()
    with EmbeddedStore(tmp_path / "kmon.duckdb") as again:
        assert again.sql("SELECT 1 FROM duckdb_functions() WHERE function_name = 'kmon_leave'").height == 0


def test_a_store_is_served_again_and_elsewhere_in_one_process(store):
    for address in (same := free_address(), same, free_address()):
        with serving(store, address, TOKEN), connect(address, TOKEN) as remote:
            assert remote.newest() is None
            with pytest.raises(StoreError, match=ONE_SELECT):
                remote.sql("DROP TABLE meta")


def test_a_wrong_token_is_one_sentence(store):
    address = free_address()
    with serving(store, address, TOKEN), pytest.raises(StoreError) as caught:
        connect(address, "another-token")
    assert (
        str(caught.value) == f"{address} does not take this token: the .token file beside the store holds the right one"
    )


def test_no_token_is_one_sentence(monkeypatch):
    monkeypatch.delenv("KMON_STORE_TOKEN", raising=False)
    with pytest.raises(
        StoreError, match=r"quack:x:1 wants the token in the \.token file .*: pass it, or set KMON_STORE_TOKEN"
    ):
        connect("quack:x:1")


@pytest.mark.parametrize("by", ["a store", "something else"])
def test_a_port_in_use_is_one_sentence(store, tmp_path, config, by):
    address = free_address()
    if by == "a store":
        with serving(store, address, TOKEN), EmbeddedStore(tmp_path / "other.duckdb", config) as other:
            refused(other, address)
    else:
        with socket.create_server(("localhost", int(address.rsplit(":", 1)[1]))):
            refused(store, address)


def refused(store, address):
    with pytest.raises(StoreError) as caught, serving(store, address, TOKEN):
        pass
    sentence = (
        f"the store cannot be served at {address} (the port is in use): is 'kmon up' running already?"
        " If not, choose another one as 'serve' in kmon.yaml"
    )
    assert str(caught.value) == sentence


@pytest.mark.parametrize("address", ["quack:", "localhost:9494", "quack:localhost", "quack:localhost:x"])
def test_an_odd_address_is_one_sentence(store, address):
    with pytest.raises(StoreError, match="write quack:<host>:<port>"), serving(store, address, TOKEN):
        pass


def test_nobody_answers_is_one_sentence():
    address = free_address()
    with pytest.raises(StoreError) as caught:
        RemoteStore(address, TOKEN, patience=0)
    assert str(caught.value) == f"nobody answers at {address}: start the owner of the store with 'kmon up'"


def test_readers_connect_again_after_the_owner_restarted(store, tmp_path, config, commit):
    address = free_address()
    with serving(store, address, TOKEN):
        remote = connect(address, TOKEN)
        assert remote.newest() is None
    commit({})
    store.close()
    with EmbeddedStore(tmp_path / "kmon.duckdb", config) as again, serving(again, address, TOKEN):
        assert remote.newest() == T
        remote.close()


def test_a_reader_waits_for_an_owner_that_is_being_restarted(store, tmp_path, config):
    address = free_address()
    with serving(store, address, TOKEN):
        remote = connect(address, TOKEN)
    found = []
    waiting = threading.Thread(target=lambda: found.append(remote.sql("SELECT 1 AS one").item()))
    waiting.start()
    with serving(store, address, TOKEN):
        waiting.join()
        remote.close()
    assert found == [1]


def test_each_thread_has_a_session_of_its_own(served, commit):
    commit(*({"partner": f"p{i}"} for i in range(5)))
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(served.totals({}, T, T + MINUTE)["sessions"])) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [5] * 4


def test_the_token_is_made_once_and_only_its_owner_may_read_it(tmp_path, monkeypatch):
    monkeypatch.delenv("KMON_STORE_TOKEN", raising=False)
    token = token_for(tmp_path / "k.duckdb")
    path = tmp_path / "k.token"
    assert (token_for(tmp_path / "k.duckdb"), path.read_text()) == (token, token)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(token) >= 24
    monkeypatch.setenv("KMON_STORE_TOKEN", "from outside")
    assert token_for(tmp_path / "k.duckdb") == "from outside"
    monkeypatch.delenv("KMON_STORE_TOKEN")
    with pytest.raises(StoreError, match="cannot be read or made"):
        token_for(tmp_path / "nowhere" / "k.duckdb")


def test_open_for_reading_takes_the_file_or_its_owner(store, tmp_path, config, commit):
    config = config.model_copy(update={"path": tmp_path / "kmon.yaml", "serve": free_address()})
    commit({})
    with serving(store, config.serve, token_for(tmp_path / "kmon.duckdb")), open_for_reading(config) as reader:
        assert isinstance(reader, RemoteStore)
        assert reader.newest() == T
    store.close()
    with open_for_reading(config) as reader:
        assert isinstance(reader, EmbeddedStore)
    with pytest.raises(StoreError, match=r"nothing.duckdb does not exist: fill it with 'kmon up', 'kmon ingest'"):
        open_for_reading(config, str(tmp_path / "nothing.duckdb"))


def test_a_killed_owner_that_was_answering_does_not_hold_its_port(tmp_path, config):
    address, path = free_address(), tmp_path / "kmon.duckdb"
    code = (
        "import sys; from kmon.config import load_config; from kmon.store import EmbeddedStore, serving\n"
        "with EmbeddedStore(sys.argv[1], load_config(sys.argv[2])) as store, serving(store, *sys.argv[3:]):\n"
        "    print('serving', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(path), str(config.path), address, TOKEN]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as owner:
        assert owner.stdout.readline() == b"serving\n"
        with RemoteStore(address, TOKEN, patience=0) as reader:
            asked = threading.Thread(target=_ask_for_long, args=[reader])
            asked.start()
            while not any(c.status == "ESTABLISHED" for c in psutil.Process(owner.pid).net_connections("tcp")):
                assert asked.is_alive()
            owner.kill()
            owner.wait()
            asked.join()
        with EmbeddedStore(path, config) as store, serving(store, address, TOKEN), connect(address, TOKEN) as again:
            assert again.newest() is None


def _ask_for_long(reader):
    with pytest.raises(StoreError, match="nobody answers"):
        reader.sql("SELECT count(*) FROM range(1000000000000) t(i) WHERE i % 7 = 3")


CONNECTING = """
import sys
from kmon.errors import StoreError
from kmon.store import RemoteStore

while True:
    try:
        RemoteStore(sys.argv[1], "token", patience=0)
    except StoreError:
        print("nobody", flush=True)
"""


def test_ctrl_c_while_connecting_is_no_error_of_the_database():
    for _ in range(5):  # four in five times it came while DuckDB was at work, which made a RuntimeError of it
        command = [sys.executable, "-c", CONNECTING, free_address()]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as reader:
            reader.stdout.readline()
            reader.send_signal(signal.SIGINT)
            _, said = reader.communicate(timeout=30)
        assert reader.returncode == -signal.SIGINT, said  # as Python ends for a KeyboardInterrupt that nobody catches


def test_readers_may_call_no_table_function_but_those_that_are_known_to_be_harmless(shared):
    store, remote = shared
    found = store.sql("SELECT DISTINCT function_name FROM duckdb_functions() WHERE function_type LIKE 'table%'")
    names = set(found["function_name"])
    assert names > TABLE_FUNCTIONS - {"unnest"}
    for name in names - TABLE_FUNCTIONS:
        with pytest.raises(StoreError, match=ONE_SELECT):
            remote.sql(f'SELECT * FROM "{name.upper()}"()')


def test_a_store_is_served_to_other_machines_only_if_the_configuration_says_so(store):
    address = free_address().replace("localhost", "0.0.0.0")
    with pytest.raises(StoreError, match="can be reached from other machines"), serving(store, address, TOKEN):
        pass
    with serving(store, address, TOKEN, beyond_localhost=True):
        assert connect(address.replace("0.0.0.0", "127.0.0.1"), TOKEN).newest() is None
