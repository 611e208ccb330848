"""The command ``kmon`` as a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def kmon(
    *arguments: object, cwd: Path, env: dict[str, str] | None = None, timeout: float = 600
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, in the folder `cwd`; a warning is an error."""
    command = [sys.executable, "-W", "error", "-m", "kmon", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False, timeout=timeout)


def kmon_json(*arguments: object, cwd: Path) -> Any:
    """What a command that succeeds prints as JSON."""
    done = kmon(*arguments, "--format", "json", cwd=cwd)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
