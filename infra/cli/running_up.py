"""The servers of an `up` that runs on this machine, for commands beside it."""

import json
from pathlib import Path

from infra.settings import Settings


def of_running_up(settings: Settings) -> Settings:
    """The settings, with the embedded servers of an `up` on the same data dir where no others are set."""
    servers = {
        "kafka_brokers": settings.kafka_brokers or _running(settings.data_dir / "kafka"),
        "cassandra_hosts": settings.cassandra_hosts or _running(settings.data_dir / "cassandra"),
    }
    return settings.model_copy(update=servers)


def _running(directory: Path) -> str | None:
    try:
        port = json.loads((directory / "ports.json").read_text())["client"]
    except FileNotFoundError:
        return None
    from infra.embedded.ports import LOOPBACK, is_free

    return None if is_free(port) else f"{LOOPBACK}:{port}"
