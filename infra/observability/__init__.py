"""Metrics, logs, readiness and probes of every process."""
