"""Object storage of images and output CSVs: a folder (``file://``) or a bucket (``s3://``) behind one interface."""

import asyncio
import errno
import os
import re
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit
from uuid import uuid4

import obstore
from obstore.exceptions import BaseError, NotFoundError
from obstore.store import LocalStore, ObjectStore, S3Store, from_url

from infra.errors import ExplainedError
from infra.observability import metrics
from infra.observability.readiness import NOT_OPEN, NotReady
from infra.settings import Settings

if TYPE_CHECKING:
    # These exist for type checkers only.
    from obstore import GetResult
    from obstore.store import ClientConfig, RetryConfig

PARTIAL = ".partial"  # folder of incomplete objects, which are renamed when complete
DELETE_BATCH = 1000  # maximum number of keys in one S3 DeleteObjects request
SIGNED_FOR = timedelta(hours=1)
CHECK_KEY = ".shrinkstream-check"
IMAGE_CACHE_CONTROL = "public, max-age=86400"
"""``Cache-Control`` of stored images, also as objects of a bucket. Images are immutable, but may expire."""
STORAGE_CHECK_INTERVAL = 10.0
"""Interval (s) of the readiness check: a bucket charges for each request."""

_RETRIES: "RetryConfig" = {
    "max_retries": 6,
    "retry_timeout": timedelta(seconds=30),
    "backoff": {"init_backoff": timedelta(milliseconds=200), "max_backoff": timedelta(seconds=5), "base": 2},
}
# S3's error code and message, and obstore's own message without timings and details.
_REFUSAL = re.compile(r"<Code>([^<]*)</Code>(?:\s*<Message>([^<]*)</Message>)?")
_TRANSPORT = re.compile(r"Error performing (\w+ \S+) in .*? - (.*)")
_NO_BUCKET = "NoSuchBucket"


class StorageError(ExplainedError):
    """A storage operation failed; the message says which, on which key, and why."""


@dataclass(frozen=True)
class StoredObject:
    """A stored object that is being read: its size in bytes and its content in chunks, which may raise StorageError."""

    size: int
    etag: str | None
    chunks: AsyncIterator[bytes]


class Storage:
    """Objects by key. A put is atomic: a reader sees the old object, the new one or none, never a part."""

    def __init__(self, url: str, public_url: str, objects_url: str | None = None) -> None:
        self.url = url
        self._public_url = public_url
        self._objects_url = objects_url or public_url
        self._store = _open(url)

    @classmethod
    def of(cls, settings: Settings) -> "Storage":
        return cls(
            settings.effective_storage_url,
            settings.effective_public_url,
            settings.storage_public_url.rstrip("/") if settings.storage_public_url else None,
        )

    def link(self, path: str) -> str:
        """URL of a path that the API serves."""
        return f"{self._public_url}/{quote(path)}"

    def object_link(self, key: str) -> str:
        """Permanent URL of an object, at the API or at the bucket."""
        return f"{self._objects_url}/{quote(key)}"

    async def signed_link(self, key: str) -> str | None:
        """Presigned URL of an object in the bucket, valid for an hour; None if there is no such object or no bucket."""
        if not isinstance(self._store, S3Store):
            return None
        with _measured("sign"):
            return await self._signed_link(self._store, key)

    async def _signed_link(self, store: S3Store, key: str) -> str | None:
        try:
            await obstore.head_async(store, key)
            return await obstore.sign_async(store, "GET", key, SIGNED_FOR)
        except (NotFoundError, FileNotFoundError):
            return None
        except (BaseError, OSError, ValueError) as error:
            raise StorageError(f"a link to {key} in {self.url} can't be signed: {_brief(error)}") from error

    async def put(
        self, key: str, content: bytes | Path, content_type: str, *, cache_control: str = "private, no-cache"
    ) -> None:
        """Store an object, replacing one of the same key. The headers are those of the object in a bucket."""
        with _measured("put"):
            await self._put(key, content, {"Content-Type": content_type, "Cache-Control": cache_control})

    async def _put(self, key: str, content: bytes | Path, attributes: dict[str, str]) -> None:
        try:
            if isinstance(self._store, LocalStore):
                await self._put_in_folder(self._store, key, content)
            else:
                await obstore.put_async(
                    self._store,
                    key,
                    content,
                    attributes=attributes,
                    # In one request if possible: the parts of an aborted multipart upload would stay and be charged.
                    use_multipart=isinstance(content, Path),
                )
        except (BaseError, OSError, ValueError) as error:  # ValueError: no object can have this key
            raise StorageError(f"{key} can't be written to {self.url}: {_brief(error)}") from error

    async def _put_in_folder(self, store: LocalStore, key: str, content: bytes | Path) -> None:
        """Write to a temporary file, then rename it: the leftovers of a crash are in one folder (see ``sweep``).

        A folder can't store a content type: the API derives it from the key's suffix.
        """
        partial = f"{PARTIAL}/{uuid4()}"
        try:
            await obstore.put_async(store, partial, content, use_multipart=False)
            await obstore.rename_async(store, partial, key)
        except BaseException:
            _folder_of(self.url).joinpath(partial).unlink(missing_ok=True)
            raise

    async def copy(self, source: str, target: str) -> bool:
        """Copy the object ``source`` to ``target``; False if there is no ``source``.

        In a folder a copy is a hard link, as long as the file system takes another one (ext4: 65,000 of a file).
        """
        with _measured("copy"):
            return await self._copy(source, target)

    async def _copy(self, source: str, target: str) -> bool:
        try:
            await obstore.copy_async(self._store, source, target)
        except (NotFoundError, FileNotFoundError):
            return False
        except (BaseError, OSError, ValueError) as error:
            if isinstance(self._store, LocalStore) and f"(os error {errno.EMLINK})" in str(error):
                await self._put(target, _folder_of(self.url) / source, {})
                return True
            raise StorageError(f"{target} can't be written to {self.url}: {_brief(error)}") from error
        return True

    async def get(self, key: str) -> StoredObject | None:
        """Open an object, or None where there is none."""
        with _measured("get"):
            return await self._get(key)

    async def _get(self, key: str) -> StoredObject | None:
        try:
            result = await obstore.get_async(self._store, key)
        except (BaseError, OSError, ValueError) as error:
            absent = isinstance(error, NotFoundError | FileNotFoundError | IsADirectoryError | ValueError)
            if absent and _NO_BUCKET not in str(error):
                return None
            raise StorageError(f"{key} can't be read from {self.url}: {_brief(error)}") from error
        return StoredObject(result.meta["size"], result.meta["e_tag"], self._chunks(key, result))

    async def _chunks(self, key: str, result: "GetResult") -> AsyncIterator[bytes]:
        try:
            async for chunk in result.stream(min_chunk_size=256 * 1024):
                yield bytes(chunk)
        except (BaseError, OSError) as error:
            raise StorageError(f"{key} can't be read from {self.url}: {_brief(error)}") from error

    async def remove(self, prefix: str) -> int:
        """Delete every object under ``prefix/``, in batches; returns their number. Idempotent."""
        with _measured("remove"):
            return await self._remove(prefix)

    async def _remove(self, prefix: str) -> int:
        removed = 0
        try:
            async for found in obstore.list(self._store, prefix, chunk_size=DELETE_BATCH):
                keys = [entry["path"] for entry in found]
                if isinstance(self._store, LocalStore):
                    await asyncio.to_thread(_unlink_all, _folder_of(self.url), keys)
                else:
                    await obstore.delete_async(self._store, keys)
                removed += len(keys)
        except (BaseError, OSError, ValueError) as error:
            raise StorageError(f"{prefix} can't be removed from {self.url}: {_brief(error)}") from error
        return removed

    async def sweep(self, older_than: timedelta) -> int:
        """Delete the incomplete files of killed writers; returns their number.

        A bucket hides its incomplete objects; its lifecycle rule for incomplete multipart uploads deletes them.
        """
        if not isinstance(self._store, LocalStore):
            return 0
        return await asyncio.to_thread(_unlink_old, _folder_of(self.url) / PARTIAL, older_than)

    async def check(self) -> None:
        """Raise StorageError unless an object can be written and read."""
        await self.put(CHECK_KEY, b"ok", "text/plain")
        await self.get(CHECK_KEY)

    async def ping(self) -> None:
        """Raise StorageError unless a folder accepts a write (fails on a full disk), or a bucket answers a read.

        A write to a bucket costs money, and is kept for ever in a versioned bucket.
        """
        if isinstance(self._store, LocalStore) or await self.get(CHECK_KEY) is None:
            await self.check()


async def check_storage(storage: Storage | None) -> None:
    """Readiness check of the storage; None: it is not open yet."""
    if storage is None:
        raise NotReady(NOT_OPEN)
    try:
        await storage.ping()
    except StorageError as error:
        raise NotReady("the storage can't be written or read", str(error)) from None


_measured = partial(metrics.measured, metrics.STORAGE_SECONDS, metrics.STORAGE_ERRORS)


def _open(url: str) -> ObjectStore:
    parts = urlsplit(url)
    try:
        if parts.scheme == "file":
            folder = _folder_of(url)
            folder.mkdir(parents=True, exist_ok=True)
            return LocalStore(folder)
        if parts.scheme == "s3":
            endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
            client: ClientConfig = {
                "connect_timeout": "5s",
                "timeout": "120s",
                "allow_http": endpoint.startswith("http:"),  # explicit in the endpoint's URL
            }
            return from_url(url, client_options=client, retry_config=_RETRIES)
    except (BaseError, OSError, ValueError) as error:
        raise StorageError(f"storage {url} can't be opened: {_brief(error)}") from error
    raise StorageError(f"storage {url}: the scheme must be file or s3")


def _folder_of(url: str) -> Path:
    return Path(unquote(urlsplit(url).path))


def _unlink_all(folder: Path, keys: list[str]) -> None:
    """Delete the objects, and then the empty folders."""
    parents = set()
    for key in keys:
        (folder / key).unlink(missing_ok=True)
        parents.add((folder / key).parent)
    for parent in parents:
        try:
            parent.rmdir()
        except OSError:
            continue  # not empty, or already deleted


def _unlink_old(folder: Path, older_than: timedelta) -> int:
    oldest = time.time() - older_than.total_seconds()
    removed = 0
    for path in folder.glob("*"):
        try:
            if path.stat().st_mtime < oldest:
                path.unlink()
                removed += 1
        except FileNotFoundError:
            continue  # renamed meanwhile
    return removed


def _brief(error: Exception) -> str:
    """One-line summary of an obstore error."""
    text = str(error)
    if refusal := _REFUSAL.search(text):
        return ": ".join(filter(None, refusal.groups()))
    first = text.splitlines()[0].strip() if text else type(error).__name__
    if transport := _TRANSPORT.search(first):
        return ": ".join(transport.groups())
    return first
