"""The process environment: the one module that reads it.

Secrets come only from here, never from ``kmon.yaml``; what the file needs it names as ``${NAME}``.
"""

from __future__ import annotations

import getpass
import os
import re
from pathlib import Path

SLACK_API_URL = "https://slack.com/api/"
_REFERENCE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


def slack_bot_token() -> str | None:
    """The token of the Slack app that posts alerts, or None where none is set."""
    return os.environ.get("SLACK_BOT_TOKEN") or None


def slack_api_url() -> str:
    """Where Slack's Web API answers; ends in a slash."""
    url = os.environ.get("SLACK_API_URL") or SLACK_API_URL
    return url if url.endswith("/") else url + "/"


def store_token() -> str | None:
    """The token that readers of the store present, or None: then a generated one lies beside the store."""
    return os.environ.get("KMON_STORE_TOKEN") or None


def ledger_url() -> str | None:
    """The SQLAlchemy URL of the ledger, or None: then it lies beside the store."""
    return os.environ.get("KMON_LEDGER_URL") or None


def user() -> str:
    """The name of who runs this process; ``unknown`` where it has none, as in some containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def data_folder() -> Path:
    """Where public data sets lie, which do not come with kmon: KMON_DATA, or beside the checkout."""
    return Path(os.environ.get("KMON_DATA") or Path(__file__).parents[2] / "shared" / "data")


def config_path() -> str | None:
    """The configuration that served notebooks use when they are not told one."""
    return os.environ.get("KMON_CONFIG") or None


def store_address() -> str | None:
    """The store that served notebooks read when they are not told one."""
    return os.environ.get("KMON_STORE") or None


def kafka_cache() -> str | None:
    """The folder with the jars of the test kit's Kafka, or None: then the checkout's ``.cache/kafka``."""
    return os.environ.get("KMON_KAFKA_CACHE") or None


def for_child(*, config: str, store: str, token: str | None = None) -> dict[str, str]:
    """The environment of a child process: this one's, plus where configuration and store are and how to read them."""
    return {**os.environ, "KMON_CONFIG": config, "KMON_STORE": store} | ({"KMON_STORE_TOKEN": token} if token else {})


def for_rival() -> dict[str, str]:
    """The environment of another engine in a benchmark: both cores, and no server of its own."""
    return {**os.environ, "PATHWAY_THREADS": "2", "PATHWAY_MONITORING_SERVER": ""}


def expand(text: str) -> str:
    """Replace each ``${NAME}`` in `text`; KeyError names the first variable that is not set."""
    return _REFERENCE.sub(lambda match: os.environ[match[1]], text)
