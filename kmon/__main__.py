"""``python -m kmon`` is the command ``kmon``."""

from kmon.cli import main

if __name__ == "__main__":
    main()
