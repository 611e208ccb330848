"""A process that owns a small store and serves it: ``python -m tests.browser.owner FOLDER PORT``.

It prints ``ready``; each line on its standard input adds five minutes of data and is answered with ``added``.
"""

from __future__ import annotations

import datetime as dt
import sys
from pathlib import Path

from kmon.store import EmbeddedStore, serving, token_for
from tests.apps import shop


def main(folder: Path, port: int) -> None:
    config = shop.configured(folder, port)
    path = shop.fill(config)
    with EmbeddedStore(path, config) as store, serving(store, config.serve, token_for(path)):
        print("ready", flush=True)  # noqa: T201
        end = shop.END
        for _ in sys.stdin:
            start, end = end, end + dt.timedelta(minutes=5)
            shop.add(store, shop.visits(start, end, (*shop.SHOPS, "late")), end)
            print("added", flush=True)  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
