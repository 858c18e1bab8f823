"""Kafka client: connections, producer, topics, offsets."""
