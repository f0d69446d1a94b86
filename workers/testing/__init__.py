"""For tests without a broker: a Kafka in memory that keeps Kafka's own rules."""

from workers.testing.memory_kafka import MemoryKafka

__all__ = ["MemoryKafka"]
