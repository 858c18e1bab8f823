"""The keyspace and its tables, brought up to date by numbered ``.cql`` migrations, each applied once."""

import re
from importlib import resources

from infra.cassandra.session import Session
from infra.settings import Settings

_NAME = re.compile(r"(\d{4})_[a-z0-9_]+\.cql")


def migrations() -> list[tuple[int, str, str]]:
    """Number, name and text of every migration, in order."""
    found = []
    for file in resources.files("infra.cassandra").joinpath("migrations").iterdir():
        match = _NAME.fullmatch(file.name)
        if match:
            found.append((int(match[1]), file.name, file.read_text()))
    return sorted(found)


def statements(text: str) -> list[str]:
    """The statements of a migration: ended by ``;``, comments from ``--`` to the end of the line."""
    bare = re.sub(r"--[^\n]*", "", text)
    return [statement.strip() for statement in bare.split(";") if statement.strip()]


async def migrate(settings: Settings) -> list[str]:
    """Create the keyspace if need be and apply the migrations that are missing; returns their names.

    Every statement says IF NOT EXISTS or IF EXISTS, so two that run at once, or one that was cut off, do no harm.
    """
    outside = await Session.connect(settings, keyspace="")
    try:
        await outside.execute_script(
            f"CREATE KEYSPACE IF NOT EXISTS {settings.cassandra_keyspace} WITH replication ="
            f" {{'class': 'SimpleStrategy', 'replication_factor': {settings.cassandra_replication_factor}}}"
        )
    finally:
        await outside.close()
    session = await Session.connect(settings)
    try:
        await session.execute_script(
            "CREATE TABLE IF NOT EXISTS schema_migrations (number int PRIMARY KEY, name text, applied_at timestamp)"
        )
        done = {row.number for row in await session.execute("SELECT number FROM schema_migrations")}
        applied = []
        for number, name, text in migrations():
            if number in done:
                continue
            for statement in statements(text):
                await session.execute_script(statement)
            await session.execute(
                "INSERT INTO schema_migrations (number, name, applied_at) VALUES (?, ?, toTimestamp(now()))",
                (number, name),
            )
            applied.append(name)
        return applied
    finally:
        await session.close()
