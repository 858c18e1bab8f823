"""Command-line interface: ``shrinkstream``."""

from infra.cli.main import main

__all__ = ["main"]
