"""``submit``, ``status``, ``download``, ``list``, ``cancel`` and ``retry``: the API from the command line."""

import asyncio
from pathlib import Path
from typing import Any
from uuid import uuid4

import click
import orjson
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from api.client import Client, ServerUnreachableError
from infra.errors import ExplainedError
from infra.settings import Settings

UPLOAD_ATTEMPTS = 3


class RequestCancelledError(ExplainedError):
    """Somebody cancelled the request that was waited for."""


async def submit_file(
    settings: Settings,
    file: Path,
    webhook_url: str | None,
    output: Path | None,
    *,
    image_format: str | None,
    quality: int | None,
    wait: bool,
) -> None:
    async with _client(settings) as client:
        request_id = await upload(client, file, webhook_url, image_format=image_format, quality=quality)
        click.echo(f"request {request_id}", err=True)
        if not wait:
            click.echo(request_id)
            return
        status = await follow(client, request_id, Console(stderr=True))
        if status["status"] == "cancelled":
            raise RequestCancelledError(f"the request was cancelled: {summary(status)}")
        content = await client.download(request_id)
    await _write(content, output)
    click.echo(summary(status), err=True)


async def upload(
    client: Client,
    file: Path,
    webhook_url: str | None,
    *,
    image_format: str | None = None,
    quality: int | None = None,
) -> str:
    """Upload a file; an answer that was lost on the way doesn't make a second request of it."""
    key = str(uuid4())
    for attempt in range(1, UPLOAD_ATTEMPTS + 1):
        try:
            return await client.upload(
                file, webhook_url=webhook_url, image_format=image_format, quality=quality, idempotency_key=key
            )
        except ServerUnreachableError:
            if attempt == UPLOAD_ATTEMPTS:
                raise
            await asyncio.sleep(attempt)
    raise AssertionError("unreachable")


async def follow(client: Client, request_id: str, console: Console) -> dict[str, Any]:
    """Show a progress bar until the request is not processed any more; returns its last status."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.fields[saved]}"), console=console) as progress:
        bar = progress.add_task("images", total=None, saved="")
        status: dict[str, Any] = {}
        async for status in client.follow(request_id):
            progress.update(
                bar,
                total=status["total"],
                completed=status["succeeded"] + status["failed"],
                saved=saved(status),
            )
    return status


async def print_status(settings: Settings, request_id: str) -> None:
    async with _client(settings) as client:
        status = await client.status(request_id)
    click.echo(orjson.dumps(status, option=orjson.OPT_INDENT_2).decode())


async def print_list(settings: Settings, limit: int) -> None:
    async with _client(settings) as client:
        requests = await client.requests(limit)
    for status in requests:
        click.echo(f"{status['requestId']}  {status['createdAt']}  {status['status']:<10}  {summary(status)}")


async def cancel_request(settings: Settings, request_id: str) -> None:
    async with _client(settings) as client:
        status = await client.cancel(request_id)
    click.echo(f"cancelled: {summary(status)}", err=True)


async def retry_request(settings: Settings, request_id: str, *, wait: bool) -> None:
    async with _client(settings) as client:
        await client.retry(request_id)
        if wait:
            status = await follow(client, request_id, Console(stderr=True))
            click.echo(summary(status), err=True)


async def download_csv(settings: Settings, request_id: str, output: Path | None) -> None:
    async with _client(settings) as client:
        content = await client.download(request_id)
    await _write(content, output)


def saved(status: dict[str, Any]) -> str:
    """How many bytes compressing saved, as in `1.2 of 3.4 MB saved (35%)`."""
    before, after = status["inputBytes"], status["outputBytes"]
    if not before:
        return ""
    return f"{(before - after) / 1e6:.1f} of {before / 1e6:.1f} MB saved ({(before - after) * 100 // before}%)"


def summary(status: dict[str, Any]) -> str:
    text = f"{status['succeeded']} of {status['total']} images compressed, {status['failed']} failed"
    return ", ".join(filter(None, (text, saved(status))))


def _client(settings: Settings) -> Client:
    return Client(settings.url, settings.first_api_key)


async def _write(content: bytes, output: Path | None) -> None:
    if output is None:
        click.echo(content, nl=False)
    else:
        await asyncio.to_thread(output.write_bytes, content)
