"""Schema migrations of Cassandra: numbered ``.cql`` files, each applied once."""

import re
from importlib import resources

from cassandra import DriverException

from infra.cassandra.session import Session
from infra.errors import ExplainedError
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


class SchemaError(ExplainedError):
    """The schema lacks migrations of this version, or a migration failed; the message says which or why."""


async def require_schema(session: Session, keyspace: str) -> None:
    """Raise SchemaError unless every migration of this version is applied.

    Also Session's CassandraUnavailableError.
    """
    applied = set()
    if await session.execute(
        "SELECT table_name FROM system_schema.tables WHERE keyspace_name = ? AND table_name = 'schema_migrations'",
        (keyspace,),
    ):
        applied = {row.number for row in await session.execute("SELECT number FROM schema_migrations")}
    missing = [name for number, name, _ in migrations() if number not in applied]
    if missing:
        raise SchemaError(f"keyspace {keyspace} lacks {', '.join(missing)}: run `shrinkstream init`")


async def migrate(settings: Settings) -> list[str]:
    """Create the keyspace if it is missing and apply the missing migrations; returns their names.

    Every statement says IF NOT EXISTS or IF EXISTS, so concurrent or interrupted migrations do no harm.
    Raises SchemaError if Cassandra rejects a statement.
    """
    try:
        await _create_keyspace(settings)
        return await _apply_migrations(settings)
    except DriverException as error:
        raise SchemaError(f"cannot migrate the schema: {' '.join(str(error).split())}") from error


async def _create_keyspace(settings: Settings) -> None:
    """Skips an existing keyspace: our user may have the right to create tables only."""
    session = await Session.connect(settings, keyspace="")
    try:
        if not await session.execute(
            "SELECT keyspace_name FROM system_schema.keyspaces WHERE keyspace_name = ?", (settings.cassandra_keyspace,)
        ):
            await session.execute_script(
                f"CREATE KEYSPACE IF NOT EXISTS {settings.cassandra_keyspace} WITH replication ="
                f" {{'class': 'SimpleStrategy', 'replication_factor': {settings.cassandra_replication_factor}}}"
            )
    finally:
        await session.close()


async def _apply_migrations(settings: Settings) -> list[str]:
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
