"""The test kit that ships with kmon: a real Apache Kafka on loopback, for tests, benchmarks and trying things out."""

from __future__ import annotations

from kmon.testing.broker import Broker, BrokerUnavailableError

__all__ = ["Broker", "BrokerUnavailableError"]
