"""Kafka as the log: producer, bounded reader, consumption, topics."""
