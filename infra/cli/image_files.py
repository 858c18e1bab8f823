"""Download of a request's images into a folder: in parallel, verified by SHA-256, resumable."""

import asyncio
import hashlib
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any, BinaryIO, cast

import aiohttp
import click

from api.requests.zip_layout import entry_name
from infra.cli.client import CHUNK_BYTES, TRANSIENT_STATUSES, Client, ServerUnreachableError
from infra.cli.progress_display import Display, progress_display
from infra.errors import EXIT_REFUSED, ExplainedError

PARALLEL = 8
ATTEMPTS = 4
MAX_BACKOFF = 4.0  # seconds
TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=60)
PARTIAL_PREFIX, PARTIAL_SUFFIX = ".shrinkstream-", ".part"
PARTIAL_KEPT = 600.0  # seconds without a write after which a partial file is that of a killed process
FAILURES_SHOWN = 10


class NoImagesError(ExplainedError):
    """The request has no images to download: it is under way, or they were deleted."""

    exit_code = EXIT_REFUSED


class ImageError(ExplainedError):
    """An image can't be downloaded, or is another one than the request's result."""


class WrongBytesError(ImageError):
    """The bytes at the image's URL are not those of the request's result."""


@dataclass
class ImageFiles:
    """The images of one request in ``folder``. A file has its final name once its SHA-256 is that of the result."""

    session: aiohttp.ClientSession
    folder: Path
    display: Display
    total: int
    wanted: int
    downloaded: int = 0
    kept: int = 0
    size: int = 0
    failures: list[str] = field(default_factory=list)

    async def fetch(self, image: dict[str, Any]) -> None:
        """Download an image unless it is there; one that can't be had is among the ``failures`` then.

        Raises ServerUnreachableError, or ImageError if the folder can't be written.
        """
        url = image["outputUrl"] or ""
        name = entry_name(image["index"] + 1, self.total, image["productName"] or "", url.rpartition(".")[2])
        path = self.folder / name
        try:
            if await asyncio.to_thread(_sha256_of, path) == image["sha256"]:
                self.kept += 1
            else:
                size = await self._download(url, path, image["sha256"])
                self.size += size
                self.downloaded += 1
        except ServerUnreachableError as error:
            raise ServerUnreachableError(f"{path}: {error}") from None
        except ImageError as error:
            self.failures.append(f"{name}: {error}")
        except OSError as error:
            raise ImageError(f"{path} can't be written: {error.strerror or error}") from None
        done = {"total": self.wanted, "succeeded": self.downloaded + self.kept, "failed": len(self.failures)}
        self.display.show({**done, "inputBytes": 0, "outputBytes": 0, "status": "processing"})

    async def _download(self, url: str, path: Path, sha256: str) -> int:
        """Download one image; returns its bytes."""
        for attempt in range(ATTEMPTS):
            try:
                with _partial_of(path) as file:
                    return await self._read(url, file, sha256)
            except (ServerUnreachableError, WrongBytesError):
                if attempt == ATTEMPTS - 1:
                    raise
            await asyncio.sleep(min(0.5 * 2**attempt, MAX_BACKOFF))
        raise AssertionError("unreachable")

    async def _read(self, url: str, file: BinaryIO, sha256: str) -> int:
        """Write a response to ``file``; returns its bytes."""
        digest, size = hashlib.sha256(), 0
        try:
            async with self.session.get(url) as response:
                if response.status in TRANSIENT_STATUSES:
                    raise ServerUnreachableError(f"{url} answered {response.status} {response.reason}")
                if response.status != HTTPStatus.OK:
                    raise ImageError(f"{url} answered {response.status} {response.reason}")
                async for chunk in response.content.iter_chunked(CHUNK_BYTES):
                    digest.update(chunk)
                    size += await asyncio.to_thread(file.write, chunk)
        except aiohttp.InvalidURL:
            raise ImageError(f"{url} is not an address") from None
        except (aiohttp.ClientError, TimeoutError) as error:
            raise ServerUnreachableError(
                f"no answer from {url}: {(str(error) or 'time-out').splitlines()[0]}"
            ) from None
        if digest.hexdigest() != sha256:
            raise WrongBytesError(f"{url} has the SHA-256 {digest.hexdigest()}, the result of the request {sha256}")
        return size


async def download_images(client: Client, request_id: str, folder: Path) -> dict[str, Any]:
    """Download the images that succeeded; returns the result as ``--json`` prints it."""
    status = await client.status(request_id)
    if status["status"] == "processing":
        raise NoImagesError("no images yet: the request is processing")
    if status["status"] == "expired":
        raise NoImagesError("the images of the request have expired and were deleted")
    await asyncio.to_thread(_prepare, folder)
    # Without the API key: the images' URLs need none, and may be those of another server.
    async with aiohttp.ClientSession(timeout=TIMEOUT, auto_decompress=False) as session:
        with progress_display() as display:
            files = ImageFiles(session, folder, display, status["total"], status["succeeded"])
            await _fetch_all(files, client, request_id)
    there = f", {files.kept:,} already there" if files.kept else ""
    click.echo(f"{files.downloaded:,} images downloaded, {files.size / 1e6:.1f} MB{there}", err=True)
    if files.failures:
        missing = ImageError(
            f"{len(files.failures):,} images can't be downloaded to {folder}; the same command retries"
        )
        missing.details = files.failures[:FAILURES_SHOWN]
        raise missing
    counts = {"downloaded": files.downloaded, "alreadyThere": files.kept, "bytes": files.size}
    return {"requestId": request_id, "images": str(folder), **counts}


async def _fetch_all(files: ImageFiles, client: Client, request_id: str) -> None:
    permits = asyncio.Semaphore(PARALLEL)
    try:
        async with asyncio.TaskGroup() as downloads:
            async for image in client.images(request_id, "succeeded"):
                await permits.acquire()
                downloads.create_task(files.fetch(image)).add_done_callback(lambda _: permits.release())
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None


def _sha256_of(path: Path) -> str | None:
    """None if there is no such file."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return None


@contextmanager
def _partial_of(path: Path) -> Iterator[BinaryIO]:
    """A file that becomes ``path`` if the block succeeds."""
    with tempfile.NamedTemporaryFile(
        dir=path.parent, prefix=PARTIAL_PREFIX, suffix=PARTIAL_SUFFIX, delete=False
    ) as file:
        partial = Path(file.name)
        try:
            yield cast("BinaryIO", file)
            file.close()
            partial.chmod(0o644)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def _prepare(folder: Path) -> None:
    """Make the folder, and delete the partial files of killed processes."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.glob(f"{PARTIAL_PREFIX}*{PARTIAL_SUFFIX}"):
            if time.time() - path.stat().st_mtime > PARTIAL_KEPT:
                path.unlink(missing_ok=True)
    except OSError as error:
        raise ImageError(f"{folder} can't be written: {error.strerror or error}") from None
