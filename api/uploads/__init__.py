"""Uploads: receiving, options, idempotency, publishing."""
