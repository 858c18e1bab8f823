"""Embedded Kafka and Cassandra: child processes of this one, from Python packages and Maven jars only."""
