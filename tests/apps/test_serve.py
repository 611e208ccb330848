from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from kmon.apps.serve import serve
from kmon.config import Config
from kmon.errors import KmonError


def test_a_port_in_use_is_one_sentence(empty: Config) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(
            KmonError, match=rf"cannot be served on 127\.0\.0\.1:{port} .*: stop what runs there, or choose"
        ):
            serve(empty, port=port)


def test_port_zero_takes_a_free_one(empty: Config) -> None:
    served = serve(empty, port=0)
    port = served.command[served.command.index("--port") + 1]
    assert served.url == f"http://localhost:{port}"
    assert {f"localhost:{port}", f"127.0.0.1:{port}"} <= set(served.command)


@pytest.mark.parametrize(("store", "told"), [("quack:localhost:9", "quack:localhost:9"), (None, "shop.duckdb")])
def test_the_pages_are_told_where_everything_is(empty: Config, store: str | None, told: str) -> None:
    environ = serve(empty, store, port=0).environment
    assert environ["KMON_CONFIG"] == str(empty.path)
    assert environ["KMON_STORE"] == (told if store else str(empty.resolve(told)))


def test_every_page_of_the_notebooks_folder_is_served(empty: Config) -> None:
    command = serve(empty, port=0).command
    assert [part.rsplit("/", 1)[-1] for part in command if part.endswith(".ipynb")] == ["partner.ipynb"]
    own = empty.resolve(empty.notebooks) / "apps"
    own.mkdir(parents=True)
    (own / "mine.ipynb").write_text("{}", encoding="utf-8")
    assert str(own / "mine.ipynb") in serve(empty, port=0).command


def test_visitors_are_no_news_and_errors_of_the_pages_are(empty: Config) -> None:
    command = serve(empty, port=0).command
    told = "import logging, runpy, sys; logging.basicConfig(); runpy.run_path(sys.argv[1]);"
    told += "logging.getLogger('tornado.access').warning('404 GET /overview');"
    told += "logging.getLogger('bokeh.server.views.ws').warning('connection was closed');"
    told += "logging.getLogger('tornado.access').error('500 GET /partner')"
    setup = command[command.index("--setup") + 1]
    done = subprocess.run([sys.executable, "-c", told, setup], capture_output=True, text=True, check=True)
    assert done.stderr == "ERROR:tornado.access:500 GET /partner\n"
