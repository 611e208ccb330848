"""Every error that kmon raises on purpose.

KmonError                    it failed: one sentence that says what to do (exit code 1)
├── UsageError               a bad command or argument (exit code 2)
│   └── ConfigError          a bad key or value in kmon.yaml, with file and line (exit code 2)
├── SourceError              events cannot be read
├── StoreError               the store cannot be opened, read or written
│   ├── StoreBusyError       another process owns it
│   └── OffsetConflictError  another writer moved the offset: this batch must not be committed
├── LedgerError              the ledger cannot be opened or written
├── JobError                 a notebook failed; the executed notebook was kept
├── FitError                 a model cannot be fitted to a series, or forecasts nonsense
└── SinkError                an alert was not delivered; `retryable` says whether to try again
    └── ThrottledError       the far end asks to wait for so many `seconds`
"""

from __future__ import annotations


class KmonError(Exception):
    """Base of kmon's own errors; the text is one sentence for the person at the terminal."""

    exit_code = 1


class UsageError(KmonError):
    """The command line asks for something that does not exist or make sense."""

    exit_code = 2


class ConfigError(UsageError):
    """A key or value in ``kmon.yaml`` is wrong."""


class SourceError(KmonError):
    """A source of events cannot be read."""


class StoreError(KmonError):
    """The store cannot be opened, read or written."""


class StoreBusyError(StoreError):
    """Another process owns the store file."""

    def __init__(self, message: str, *, pid: int | None = None) -> None:
        super().__init__(message)
        self.pid = pid
        """The owner, where it is known."""


class OffsetConflictError(StoreError):
    """The stored offset is not where this batch begins: somebody else committed it, or a gap appeared."""


class LedgerError(KmonError):
    """The ledger cannot be opened or written."""


class JobError(KmonError):
    """A notebook run failed; its executed notebook was kept."""


class FitError(KmonError):
    """A model cannot be fitted to a series, or what it forecasts cannot be believed."""


class SinkError(KmonError):
    """An alert was not delivered."""

    def __init__(self, message: str, *, retryable: bool) -> None:
        super().__init__(message)
        self.retryable = retryable


class ThrottledError(SinkError):
    """The far end asks to wait for `seconds`."""

    def __init__(self, message: str, *, seconds: float) -> None:
        super().__init__(message, retryable=True)
        self.seconds = seconds
