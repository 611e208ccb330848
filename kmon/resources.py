"""What comes with kmon besides code: the commented configuration, the notebooks and the examples."""

from __future__ import annotations

import shutil
from pathlib import Path

from kmon.config import Config
from kmon.errors import KmonError, UsageError

PACKAGE = Path(__file__).parent
TEMPLATE = PACKAGE / "templates" / "kmon.yaml"
EXAMPLES = PACKAGE / "examples"


def shipped_notebooks() -> Path:
    """The notebooks that came with kmon: inside an installed package, beside the package in a checkout."""
    inside = PACKAGE / "_notebooks"
    return inside if inside.is_dir() else PACKAGE.parent / "notebooks"


def notebook(config: Config, name: str) -> Path:
    """The notebook `name` (``jobs/detect.ipynb``): one's own, else the one that came with kmon."""
    for folder in (config.resolve(config.notebooks), shipped_notebooks()):
        if (folder / name).is_file():
            return (folder / name).absolute()
    message = f"{config.resolve(config.notebooks) / name} does not exist: write it, or get kmon's own with 'kmon init'"
    raise KmonError(message)


def pages(config: Config) -> list[Path]:
    """The notebooks that are served as pages: one's own, else those that came with kmon."""
    for folder in (config.resolve(config.notebooks), shipped_notebooks()):
        found = sorted((folder / "apps").glob("*.ipynb"))
        if found:
            return [path.absolute() for path in found]
    message = f"there are no pages in {config.resolve(config.notebooks) / 'apps'}: write them with 'kmon init'"
    raise KmonError(message)


def scaffold(folder: Path, example: str | None = None) -> list[Path]:
    """Write a commented ``kmon.yaml`` and the notebooks into `folder`; what is there already is left as it is.

    `example` names one of the examples, whose files are written instead of the general ``kmon.yaml``.
    """
    wanted: list[tuple[Path, Path]] = []
    if example is None:
        wanted.append((TEMPLATE, folder / "kmon.yaml"))
    else:
        source = EXAMPLES / example
        if not source.is_dir():
            message = (
                f"there is no example {example!r}: there is {', '.join(sorted(p.name for p in EXAMPLES.iterdir()))}"
            )
            raise UsageError(message)
        wanted += [(file, folder / file.name) for file in sorted(source.iterdir()) if file.is_file()]
    shipped = shipped_notebooks()
    wanted += [(file, folder / "notebooks" / file.relative_to(shipped)) for file in sorted(shipped.rglob("*.ipynb"))]
    written = []
    try:
        for source, target in wanted:
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
                written.append(target)
    except OSError as error:
        message = f"{error.filename or folder} cannot be written: {error.strerror}"
        raise KmonError(message) from error
    return written
