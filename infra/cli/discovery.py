"""How other commands find the system of an `up` that runs on the same data dir: by a file that it keeps there.

It is written for the shell's ``.``, so that what is no command of ours can use it, too.
"""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from infra.settings import PREFIX, Settings, load_settings

FILE = "env"
# What another command must know to work with the running system; no secrets.
TOLD = {
    *("kafka_brokers", "topic_prefix", "partitions", "cassandra_hosts", "cassandra_keyspace"),
    *("data_dir", "storage_url", "public_url", "url"),
}


@contextmanager
def told_to_others(ready: Settings) -> Iterator[None]:
    """Keep the file while the system runs."""
    found = ready.model_copy(
        update={"data_dir": ready.data_dir.absolute(), "url": f"http://{ready.own_address}"}
    ).model_dump(include=TOLD, exclude_none=True)
    file = ready.data_dir / FILE
    file.write_text(
        "".join(f"export {PREFIX}{name.upper()}={shlex.quote(str(found[name]))}\n" for name in sorted(found))
    )
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


def of_running_up(settings: Settings) -> Settings:
    """The settings; where they name no servers, what is unset in them is as the running system has it."""
    if settings.kafka_brokers or settings.cassandra_hosts:
        return settings
    told = _told(settings.data_dir / FILE)
    if told is None:
        return settings
    names = {name for name in told.model_fields_set & TOLD if name not in settings.model_fields_set}
    return settings.model_copy(update={name: getattr(told, name) for name in names})


def _told(file: Path) -> Settings | None:
    """What a running system says; None where there is none, or one that was killed has left its file."""
    try:
        lines = file.read_text().splitlines()
    except FileNotFoundError:
        return None
    assignments = (shlex.split(line)[1].partition("=") for line in lines)
    told = load_settings(**{name.removeprefix(PREFIX).lower(): value for name, _, value in assignments})
    from infra.embedded.ports import is_free  # not before it is known that there is something to look at

    port = urlsplit(told.url).port
    return None if port is None or is_free(port) else told
