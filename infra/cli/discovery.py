"""Discovery file: `up` writes its addresses into the data dir, where other commands find them.

The file is a shell script of exports, so that other programs can source it with ``.``, too.
"""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from infra.settings import PREFIX, Settings, load_settings

FILE = "env"
# The settings that another command needs to reach the running system; no secrets.
PUBLISHED = {
    *("kafka_brokers", "topic_prefix", "partitions", "cassandra_hosts", "cassandra_keyspace"),
    *("data_dir", "storage_url", "public_url", "url"),
}


@contextmanager
def discovery_file(ready: Settings) -> Iterator[None]:
    """Keep the discovery file while the system runs."""
    values = ready.model_copy(
        update={"data_dir": ready.data_dir.absolute(), "url": f"http://{ready.own_address}"}
    ).model_dump(include=PUBLISHED, exclude_none=True)
    file = ready.data_dir / FILE
    file.write_text(
        "".join(f"export {PREFIX}{name.upper()}={shlex.quote(str(values[name]))}\n" for name in sorted(values))
    )
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
