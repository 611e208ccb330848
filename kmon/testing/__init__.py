"""The test kit that ships with kmon: a real Apache Kafka on loopback, for tests, benchmarks and trying things out."""

from __future__ import annotations

from kmon.testing.broker import Broker, BrokerUnavailableError
from kmon.testing.ports import free_port, free_ports

__all__ = ["Broker", "BrokerUnavailableError", "free_port", "free_ports"]
