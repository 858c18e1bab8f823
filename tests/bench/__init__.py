"""Benchmarks: each prints its ratio against the limit that it is measured against, both taken in the same run."""
