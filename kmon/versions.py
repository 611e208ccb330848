"""Whether a file that is read again when it changes has changed."""

from __future__ import annotations

from pathlib import Path

Version = tuple[int, int]


def version_of(path: Path) -> Version | None:
    """Modification time in ns and size; None where there is no such file (reading it then says so).

    Taken before the file is read, so that a change while reading is seen as one.
    """
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size
