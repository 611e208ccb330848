"""``kmon.yaml``: its keys as pydantic models (`models`), what must fit together (`checks`), reading it (`loading`)."""

from __future__ import annotations

from kmon.config.expressions import columns_of, merge_function
from kmon.config.loading import error_at, load_config
from kmon.config.models import (
    Apps,
    Config,
    ConsoleSink,
    DetectorUse,
    Enrich,
    EventField,
    Events,
    FilesSource,
    FolderSink,
    Incidents,
    Job,
    KafkaSource,
    Match,
    Metric,
    Model,
    Route,
    SimulatorSource,
    Sink,
    SlackSink,
    Source,
)
from kmon.config.words import BUCKET, MINUTE, Duration, Name, page_key, parse_duration, show_duration

__all__ = [
    "BUCKET",
    "MINUTE",
    "Apps",
    "Config",
    "ConsoleSink",
    "DetectorUse",
    "Duration",
    "Enrich",
    "EventField",
    "Events",
    "FilesSource",
    "FolderSink",
    "Incidents",
    "Job",
    "KafkaSource",
    "Match",
    "Metric",
    "Model",
    "Name",
    "Route",
    "SimulatorSource",
    "Sink",
    "SlackSink",
    "Source",
    "columns_of",
    "error_at",
    "load_config",
    "merge_function",
    "page_key",
    "parse_duration",
    "show_duration",
]
