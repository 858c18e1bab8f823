"""Where images and output CSVs are kept: a folder (``file://``) or a bucket (``s3://``) behind one interface."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit

import obstore
from obstore.exceptions import BaseError, NotFoundError
from obstore.store import LocalStore, ObjectStore, from_url

from infra.errors import ExplainedError
from infra.settings import Settings

if TYPE_CHECKING:
    from obstore import GetResult  # exists for type checkers only


class StorageError(ExplainedError):
    """The storage can't be used; the message says what was tried and why it failed."""


@dataclass(frozen=True)
class StoredObject:
    """A stored object being read: its size in bytes and its content, piece by piece."""

    size: int
    etag: str | None
    chunks: AsyncIterator[bytes]


class Storage:
    """Objects by key. A put is atomic: a reader sees the old object, the new one or none, never a part."""

    def __init__(self, url: str, public_url: str) -> None:
        self.url = url
        self._public_url = public_url
        self._store = _open(url)

    @classmethod
    def of(cls, settings: Settings) -> "Storage":
        return cls(settings.effective_storage_url, settings.effective_public_url)

    def link(self, key: str) -> str:
        """The address under which people fetch an object: the API serves it."""
        return f"{self._public_url}/{quote(key)}"

    async def put(self, key: str, content: bytes | Path, content_type: str) -> None:
        """Store an object, replacing one of the same key."""
        # A folder has no place for a content type: there the API derives it from the key's ending.
        attributes = {} if isinstance(self._store, LocalStore) else {"Content-Type": content_type}
        try:
            await obstore.put_async(self._store, key, content, attributes=attributes)
        except (BaseError, OSError, ValueError) as error:  # ValueError: no object can have this key
            raise StorageError(f"{key} can't be written to {self.url}: {_first_line(error)}") from error

    async def copy(self, source: str, target: str) -> bool:
        """Store under ``target`` what ``source`` has; False where there is no ``source``."""
        try:
            await obstore.copy_async(self._store, source, target)
        except (NotFoundError, FileNotFoundError):
            return False
        except (BaseError, OSError, ValueError) as error:
            raise StorageError(f"{target} can't be written to {self.url}: {_first_line(error)}") from error
        return True

    async def get(self, key: str) -> StoredObject | None:
        """Open an object, or None where there is none."""
        try:
            result = await obstore.get_async(self._store, key)
        except (NotFoundError, FileNotFoundError, IsADirectoryError, ValueError):  # ValueError: as in put
            return None
        except (BaseError, OSError) as error:
            raise StorageError(f"{key} can't be read from {self.url}: {_first_line(error)}") from error
        return StoredObject(result.meta["size"], result.meta["e_tag"], _chunks(result))

    async def check(self) -> None:
        """Raise StorageError unless an object can be written."""
        await self.put(".shrinkstream-check", b"ok", "text/plain")


async def _chunks(result: "GetResult") -> AsyncIterator[bytes]:
    async for chunk in result.stream(min_chunk_size=256 * 1024):
        yield bytes(chunk)


def _open(url: str) -> ObjectStore:
    parts = urlsplit(url)
    try:
        if parts.scheme == "file":
            folder = Path(unquote(parts.path))
            folder.mkdir(parents=True, exist_ok=True)
            return LocalStore(folder)
        if parts.scheme == "s3":
            return from_url(url)
    except (BaseError, OSError) as error:
        raise StorageError(f"storage {url} can't be opened: {_first_line(error)}") from error
    raise StorageError(f"storage {url}: the scheme must be file or s3")


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
