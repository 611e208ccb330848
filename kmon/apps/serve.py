"""Serving the pages: the command and environment of the process that does."""

from __future__ import annotations

import socket
import sys
from dataclasses import dataclass
from pathlib import Path

from kmon import environment, resources
from kmon.config import Config
from kmon.errors import KmonError
from kmon.store import SCHEME

INDEX = "partner"
"""The page that answers at ``/``."""


@dataclass(frozen=True)
class Served:
    """A process to start: ``subprocess.Popen(served.command, env=served.environment)``."""

    command: list[str]
    environment: dict[str, str]
    url: str


def serve(config: Config, store: str | None = None, *, port: int | None = None, show: bool = False) -> Served:
    """How to serve the pages on `store` (a path or ``quack:`` address, default the configuration's).

    `port` defaults to the configuration's; 0 takes a free one. With `show` a browser opens. KmonError where the port
    is taken: it is checked here, so that the person is told before anything starts.
    """
    chosen = free_port(config.apps.host, config.apps.port if port is None else port)
    where = store or config.store
    place = where if where.startswith(SCHEME) else str((Path(where) if store else config.resolve(where)).absolute())
    environ = environment.for_child(config=str(config.file), store=place)
    host = "localhost" if config.apps.host in ("127.0.0.1", "0.0.0.0", "::") else config.apps.host  # noqa: S104
    url = config.apps.base_url if chosen == config.apps.port else f"http://{host}:{chosen}"
    return Served(command(config, chosen, show=show), environ, url)


def command(config: Config, port: int, *, show: bool = False) -> list[str]:
    """The command line of ``panel serve`` for all notebooks in ``apps``."""
    pages = [str(path) for path in resources.pages(config)]
    hosts = {"localhost", "127.0.0.1", config.apps.host}
    origins = {f"{host}:{port}" for host in hosts} | ({_origin(config.apps.url)} if config.apps.url else set())
    index = ["--index", INDEX] if len(pages) > 1 else []
    return [
        *(sys.executable, "-m", "panel", "serve", *pages, "--address", config.apps.host, "--port", str(port), *index),
        *(argument for origin in sorted(origins) for argument in ("--allow-websocket-origin", origin)),
        *("--setup", str(Path(__file__).with_name("quiet.py")), "--log-level", "warning", "--warm"),
        *(["--show"] if show else []),
    ]


def free_port(host: str, port: int, what: str = "the pages", key: str = "apps.port") -> int:
    """`port` where it is free, a free one for 0; KmonError where it is taken or not ours to take.

    `what` would be served there, as `key` in kmon.yaml says.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            message = (
                f"{what} cannot be served on {host}:{port} ({error.strerror}):"
                f" stop what runs there, or choose another {key} in kmon.yaml"
            )
            raise KmonError(message) from error
        return int(probe.getsockname()[1])


def _origin(url: str) -> str:
    """What a browser names as origin for pages at `url`: host, and the port where the URL has one."""
    return url.split("://", 1)[-1].split("/", 1)[0]
