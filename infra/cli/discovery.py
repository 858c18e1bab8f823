"""Discovery file: `up` writes its addresses into the data dir, where other commands find them.

The file is a shell script of exports, so that other programs can source it with ``.``, too.
"""

import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from infra.settings import PREFIX, Settings, environment_of, load_settings

FILE = "env"
# The settings that another command needs to reach the running system: passwords of the servers, but no API key.
PUBLISHED = {
    *("kafka_security_protocol", "kafka_sasl_mechanism", "kafka_sasl_username", "kafka_sasl_password"),
    *("cassandra_username", "cassandra_password"),
    *("kafka_brokers", "topic_prefix", "partitions", "cassandra_hosts", "cassandra_keyspace"),
    *("data_dir", "storage_url", "public_url", "url"),
}


@contextmanager
def discovery_file(ready: Settings) -> Iterator[None]:
    """Keep the discovery file while the system runs."""
    found = ready.model_copy(update={"data_dir": ready.data_dir.absolute(), "url": f"http://{ready.own_address}"})
    published = {PREFIX + name.upper() for name in PUBLISHED}
    values = {name: value for name, value in environment_of(found).items() if name in published}
    file = ready.data_dir / FILE
    file.unlink(missing_ok=True)
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as opened:
        opened.write("".join(f"export {name}={shlex.quote(value)}\n" for name, value in sorted(values.items())))
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


def discover(settings: Settings) -> Settings:
    """Fill unset settings from the discovery file of a running `up`, unless the settings name servers themselves."""
    if settings.kafka_brokers or settings.cassandra_hosts:
        return settings
    running = _read(settings.data_dir / FILE)
    if running is None:
        return settings
    names = {name for name in running.model_fields_set & PUBLISHED if name not in settings.model_fields_set}
    return settings.model_copy(update={name: getattr(running, name) for name in names})


def _read(file: Path) -> Settings | None:
    """The settings of the running system; None without a file, or with the stale file of a killed system."""
    try:
        lines = file.read_text().splitlines()
    except FileNotFoundError:
        return None
    assignments = (shlex.split(line)[1].partition("=") for line in lines)
    running = load_settings(**{name.removeprefix(PREFIX).lower(): value for name, _, value in assignments})
    from infra.devserver.ports import is_free  # lazy: only needed when there is a discovery file

    port = urlsplit(running.url).port
    return None if port is None or is_free(port) else running
