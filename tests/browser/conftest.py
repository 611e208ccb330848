"""A real page server on a small store, and Debian's Chromium."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright
from tenacity import retry, retry_if_exception_type, stop_after_delay, wait_fixed

from kmon.apps.serve import serve
from kmon.config import load_config
from kmon.testing import free_port
from tests.conftest import ROOT

FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]
PATIENCE = 30_000
"""Milliseconds that a page may take to show something; ten times what it takes on an idle machine."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker("browser")
            if shutil.which("chromium") is None:
                item.add_marker(pytest.mark.skip(reason="install Debian's chromium package"))


@dataclass(frozen=True)
class Site:
    """A page server and the store that it reads."""

    url: str
    store: subprocess.Popen[str]
    store_address: str
    config: Path

    def add_five_minutes(self) -> None:
        assert self.store.stdin is not None
        self.store.stdin.write("\n")
        self.store.stdin.flush()
        _await(self.store, "added")


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    port = free_port()
    command = [sys.executable, "-m", "tests.browser.owner", str(folder), str(port)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, text=True, **pipes) as owner:
        _await(owner, "ready")
        config, address = folder / "kmon.yaml", f"quack:localhost:{port}"
        served = serve(load_config(config), address, port=0)
        with subprocess.Popen(served.command, env=served.environment, text=True, stderr=subprocess.PIPE) as pages:
            await_port(served.url, pages)
            threading.Thread(target=_drain, args=(pages.stderr,), daemon=True).start()
            yield Site(served.url, owner, address, config)
            pages.terminate()
        owner.terminate()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        yield launched
        launched.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A tab; whatever the page reports as an error fails the test."""
    tab = browser.new_page(viewport={"width": 1440, "height": 900})
    errors: list[str] = []
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.on("request", lambda request: errors.append(request.url) if not _local(request.url) else None)
    tab.set_default_timeout(PATIENCE)
    expect.set_options(timeout=PATIENCE)
    yield tab
    tab.close()
    assert errors == []  # no script failed, nothing was fetched from the network


def _local(url: str) -> bool:
    return re.match(r"(https?|wss?)://(localhost|127\.0\.0\.1)[:/]|data:|blob:|about:", url) is not None


def _await(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdout is not None
    assert process.stdout.readline().strip() == word


@retry(retry=retry_if_exception_type(OSError), wait=wait_fixed(0.1), stop=stop_after_delay(60), reraise=True)
def await_port(url: str, server: subprocess.Popen[str]) -> None:
    """Until `server` answers; AssertionError where it has ended."""
    assert server.poll() is None, server.stderr and server.stderr.read()
    host, _, port = url.removeprefix("http://").partition(":")
    socket.create_connection((host, int(port))).close()


def _drain(stream: IO[str]) -> None:
    for _ in stream:
        pass
