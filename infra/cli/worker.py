"""One Faust app as a process."""

from importlib import import_module

from infra.faust_app import run_worker
from infra.kafka import require_brokers
from infra.settings import Settings


def run_app(name: str, settings: Settings) -> int:
    """Run ``compress``, ``progress`` or ``projections`` until it is stopped; returns the exit code."""
    require_brokers(settings)
    module = import_module(f"streams.{name}")
    return run_worker(module.app)
