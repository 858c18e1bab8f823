"""Client commands of the API: ``submit``, ``watch``, ``status``, ``images``, ``download`` and the others.

Data goes to standard output, messages for people to standard error.
"""

import asyncio
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

import click
import orjson

from infra.cli.client import ApiError, Client
from infra.cli.progress_display import progress_display
from infra.cli.terminal import printable, stats_table, summary
from infra.errors import EXIT_IMAGES_FAILED, EXIT_STOPPED, ExplainedError
from infra.settings import Settings, load_settings

FAILURES_SHOWN = 10
FAILURES_IN_JSON = 100
BAD_ROWS_SHOWN = 10

UploadOptions = Mapping[str, str | int | None]
"""Form fields of an upload by name; None: not given."""


class ImagesFailedError(ExplainedError):
    """The awaited request is completed, but some of its images failed."""

    exit_code = EXIT_IMAGES_FAILED


class RequestStoppedError(ExplainedError):
    """The awaited request was cancelled or has expired."""

    exit_code = EXIT_STOPPED


class FileError(ExplainedError):
    """A file can't be read or written."""


async def submit_file(
    settings: Settings,
    file: Path,
    *,
    output: Path | None,
    wait: bool,
    as_json: bool,
    **options: str | int | None,
) -> None:
    """``options``: see UploadOptions."""
    _require_directory(output)
    async with _client(settings) as client:
        request_id = await upload(client, file, options)
        click.echo(f"request {request_id}", err=True)
        if wait:
            await _wait(settings, client, request_id, output, as_json=as_json)
        elif as_json:
            print_json({"requestId": request_id})
        else:
            click.echo(request_id)


async def watch_request(settings: Settings, request_id: str, output: Path | None, *, as_json: bool) -> None:
    """Wait for a request that was submitted before."""
    _require_directory(output)
    async with _client(settings) as client:
        await client.status(request_id)  # fails at once for an unknown request
        await _wait(settings, client, request_id, output, as_json=as_json)


async def retry_request(settings: Settings, request_id: str, *, reason: str | None, wait: bool, as_json: bool) -> None:
    async with _client(settings) as client:
        await client.retry(request_id, reason)
        if wait:
            await _wait(settings, client, request_id, None, as_json=as_json, prints_csv=False)
        elif as_json:
            print_json({"requestId": request_id})
        else:
            click.echo("the failed images are processed again", err=True)


async def upload(client: Client, file: Path, options: UploadOptions) -> str:
    """Upload a file; returns the request's id. Raises ApiError, with the bad rows of a rejected CSV as details."""
    _require_regular(file)
    try:
        return await client.upload(file, options=options, idempotency_key=str(uuid4()))
    except OSError as error:
        raise FileError(f"{file} can't be read: {error.strerror or error}") from None
    except ApiError as error:
        error.details = list(_bad_rows(error.problem))
        raise
    except asyncio.CancelledError:
        click.echo("upload interrupted: `shrinkstream list` shows whether it was accepted", err=True)
        raise


async def follow(
    client: Client, request_id: str, on_status: Callable[[dict[str, Any]], None] = lambda _: None
) -> dict[str, Any]:
    """Show the progress until the request ends; returns its last status. ``on_status`` is called at each change."""
    status: dict[str, Any] = {}
    with progress_display() as display:
        async for status in client.follow(request_id, on_error=display.show_error):
            display.show(status)
            on_status(status)
    return status


async def _wait(
    settings: Settings,
    client: Client,
    request_id: str,
    output: Path | None,
    *,
    as_json: bool,
    prints_csv: bool = True,
) -> None:
    """Wait for the end of a request, write its output CSV and print the result."""
    try:
        status = await follow(client, request_id)
    except asyncio.CancelledError:
        server = f" --server {settings.url}" if settings.url != load_settings().url else ""
        click.echo(f"the request continues; to resume waiting: shrinkstream watch {request_id}{server}", err=True)
        raise
    failed = []
    if status["failed"]:
        failed = [image async for image in _first(client.images(request_id, "failed"), FAILURES_IN_JSON)]
    if status["status"] == "completed" and (output is not None or (prints_csv and not as_json)):
        await _write_output(client, request_id, output)
    if as_json:
        print_json({**status, "failures": failed})
    click.echo(summary(status), err=True)
    for image in failed[:FAILURES_SHOWN]:
        click.echo(f"failed: {_describe_failure(image)}", err=True)
    if status["failed"] > FAILURES_SHOWN:
        click.echo(f"… all {status['failed']:,}: shrinkstream images {request_id} --status failed", err=True)
    if status["status"] != "completed":
        raise RequestStoppedError(f"the request is {printable(status['status'])}")
    if status["failed"]:
        raise ImagesFailedError(f"{status['failed']:,} of {status['total']:,} images failed")


async def print_status(settings: Settings, request_id: str, *, as_json: bool) -> None:
    async with _client(settings) as client:
        status = await client.status(request_id)
        if as_json:
            print_json(status)
            return
        click.echo(orjson.dumps(status, option=orjson.OPT_INDENT_2).decode())
        if status["failed"]:
            await _print_reasons(client, request_id)


async def _print_reasons(client: Client, request_id: str) -> None:
    _print_failures(await client.failures(request_id))


def _print_failures(groups: Sequence[dict[str, Any]]) -> None:
    """Failures by reason with advice, on standard error."""
    for group in groups:
        told = f"{group['images']:,} x {group['title']} ({group['reason']}): {group['advice']}"
        click.echo(printable(told), err=True)


async def print_list(settings: Settings, limit: int, *, as_json: bool) -> None:
    async with _client(settings) as client:
        requests = await client.requests(limit)
    for status in requests:
        if as_json:
            print_json(status)
        else:
            line = f"{status['requestId']}  {status['createdAt']}  {status['status']:<10}  {summary(status)}"
            click.echo(printable(line))


async def print_stats(settings: Settings, *, as_json: bool) -> None:
    async with _client(settings) as client:
        stats = await client.stats()
    if as_json:
        print_json(stats)
        return
    for line in stats_table(stats):
        click.echo(printable(line))
    _print_failures(stats["failures"])


async def print_images(settings: Settings, request_id: str, image_status: str | None, *, as_json: bool) -> None:
    async with _client(settings) as client:
        async for image in client.images(request_id, image_status):
            if as_json:
                print_json(image)
            elif image["status"] == "failed":
                click.echo(f"{image['index']}  failed     {_describe_failure(image)}")
            else:
                urls = f"{image['inputUrl']} → {image['outputUrl']}" if image["outputUrl"] else ""
                click.echo(printable(f"{image['index']}  {image['status']:<9}  {urls}".rstrip(), 2000))


async def cancel_request(settings: Settings, request_id: str, *, as_json: bool) -> None:
    async with _client(settings) as client:
        status = await client.cancel(request_id)
    if as_json:
        print_json(status)
    click.echo(f"cancelled: {summary(status)}", err=True)


async def delete_request(settings: Settings, request_id: str, *, forget: bool, as_json: bool) -> None:
    async with _client(settings) as client:
        status = await client.delete(request_id, forget=forget)
    if as_json:
        print_json(status)
    click.echo(f"{'deleted and forgotten' if forget else 'deleted'}: {summary(status)}", err=True)


async def download_csv(settings: Settings, request_id: str, output: Path | None, *, as_json: bool) -> None:
    async with _client(settings) as client:
        size = await _write_output(client, request_id, output)
    if as_json:
        print_json({"requestId": request_id, "output": str(output), "bytes": size})


async def _write_output(client: Client, request_id: str, output: Path | None) -> int:
    """Write the output CSV atomically to a file or to standard output; returns its bytes."""
    if output is None:
        with tempfile.TemporaryFile() as file:
            size = await client.download(request_id, file)
            file.seek(0)
            await asyncio.to_thread(shutil.copyfileobj, file, sys.stdout.buffer)
            sys.stdout.buffer.flush()
        return size
    try:
        with _replacing(output) as file:
            return await client.download(request_id, file)
    except OSError as error:
        raise FileError(f"{output} can't be written: {error.strerror or error}") from None


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that atomically replaces ``path`` on success. A device such as /dev/stdout is written to instead."""
    if path.exists() and not path.is_file():
        with tempfile.TemporaryFile() as file, path.open("wb") as target:
            yield file
            file.seek(0)
            shutil.copyfileobj(file, target)
        return
    partial_path = path.with_name(f".{path.name}.{uuid4().hex[:8]}.part")
    try:
        with partial_path.open("xb") as file:
            yield file
        partial_path.replace(path)
    finally:
        partial_path.unlink(missing_ok=True)


def print_json(value: object) -> None:
    """Print one JSON document on one line."""
    click.echo(orjson.dumps(value))


async def _first(items: AsyncIterator[dict[str, Any]], limit: int) -> AsyncIterator[dict[str, Any]]:
    taken = 0
    async for item in items:
        yield item
        taken += 1
        if taken == limit:
            return


def _describe_failure(image: dict[str, Any]) -> str:
    why = f"{image['reason']}: {image['detail']}" if image["detail"] else image["reason"]
    row = f"row {image['row'] + 1}, S. No. {image['serial']}" if image["row"] is not None else "?"
    return printable(f"{row}: {image['inputUrl']} ({why})", 500)


def _require_regular(file: Path) -> None:
    # A retry of the upload reads the file again, which a pipe doesn't allow.
    if not file.is_file():
        raise FileError(f"{file} is not a regular file")


def _require_directory(output: Path | None) -> None:
    # Fail before the wait, not after it.
    if output is not None and not output.parent.is_dir():
        raise FileError(f"{output} can't be written: {output.parent} is not a directory")


def _bad_rows(problem: dict[str, Any]) -> Iterator[str]:
    for row in islice(problem.get("errors") or [], BAD_ROWS_SHOWN):
        column = f", {row['column']}" if row.get("column") else ""
        yield f"line {row['row']}{column}: {row['message']}"
    if (count := problem.get("errorCount", 0)) > BAD_ROWS_SHOWN:
        yield f"… {count:,} rows in all"


def _client(settings: Settings) -> Client:
    return Client(settings.url, settings.first_api_key)
