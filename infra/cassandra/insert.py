"""INSERT statements from the fields of an object: each column is declared once."""

from collections.abc import Sequence
from operator import attrgetter
from typing import Any, NamedTuple

from cassandra.query import UNSET_VALUE


class Column(NamedTuple):
    """A column of a table. ``field``: that of the object; by default its name."""

    name: str
    of: str | None = None

    @property
    def field(self) -> str:
        return self.of or self.name


class Insert:
    """An INSERT of an object's fields.

    ``computed``: columns whose values the caller gives; with ``timestamped`` it gives a write timestamp, too.
    """

    def __init__(
        self, table: str, columns: Sequence[Column], computed: Sequence[str] = (), *, timestamped: bool = True
    ) -> None:
        names = [*computed, *(column.name for column in columns)]
        self.cql = (
            f"INSERT INTO {table} ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"  # noqa: S608 - ours
            f"{' USING TIMESTAMP ?' if timestamped else ''}"
        )
        self._fields = attrgetter(*(column.field for column in columns))

    def parameters(self, source: object, *computed: Any) -> tuple[Any, ...]:
        """The values of everything but the timestamp; None is left unset, as a null would be a tombstone."""
        values: tuple[Any, ...] = self._fields(source)
        if None in values:
            values = tuple(UNSET_VALUE if value is None else value for value in values)
        return (*computed, *values)


def columns(*names: str, **renamed: str) -> tuple[Column, ...]:
    """Columns by their names; ``renamed``: those whose field has another name."""
    return (*map(Column, names), *(Column(name, field) for name, field in renamed.items()))
