"""Commands of the API: ``submit``, ``watch``, ``status``, ``images``, ``download`` and the others.

Data goes to standard output, messages for people to standard error.
"""

import asyncio
import json
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from uuid import uuid4

import click

from infra.cli.group import AS_JSON, OUTPUT, REQUEST_ID, REQUESTS, WAIT, main, print_json, settings_with, with_client
from infra.cli.progress_display import progress_display
from infra.cli.terminal import printable, stats_table, summary
from infra.errors import EXIT_IMAGES_FAILED, EXIT_STOPPED, ExplainedError

if TYPE_CHECKING:
    from infra.cli.client import Client

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


class Quality(click.ParamType):
    """1 to 100, or ``auto``."""

    name = "1..100|auto"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        if value == "auto":
            return value
        try:
            number: int = click.IntRange(1, 100).convert(value, param, ctx)
        except click.BadParameter:
            self.fail(f"{value!r} is neither an integer from 1 to 100 nor auto", param, ctx)
        return number


class FileError(ExplainedError):
    """A file can't be read or written."""


@main.section(REQUESTS)
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False), metavar="FILE.csv")
@click.option("--webhook-url", "webhookUrl", metavar="URL", help="Receiver of the completion webhook.")
@click.option(
    "--format",
    type=click.Choice(["jpeg", "png", "webp", "avif"]),
    help="Format of all output images; default: the format of each input image.",
)
@click.option(
    "--quality",
    type=Quality(),
    help="Quality of the output images, or auto: chosen for each image; default: the server's.",
)
@click.option(
    "--max-width",
    "maxWidth",
    type=click.IntRange(0, 65_535),
    help="Largest width of the output images in pixels, 0: no limit; default: the server's.",
)
@click.option("--max-height", "maxHeight", type=click.IntRange(0, 65_535), help="Largest height, as --max-width.")
@click.option(
    "--columns",
    metavar="MAPPING",
    help="Names of the file's columns by role: serial, product, urls. Example: 'product:Title,urls:Image Src'.",
)
@OUTPUT
@WAIT
@AS_JSON
@with_client
async def submit(
    client: "Client", file: Path, output: Path | None, *, wait: bool, as_json: bool, **options: str | int | None
) -> None:
    """Upload a CSV or spreadsheet and wait for its result.

    Prints the output CSV; with --json the last status and the failed images; with --no-wait the request id.
    Ctrl-C while waiting does not cancel the request.
    """
    _require_directory(output)
    request_id = await upload(client, file, options)
    click.echo(f"request {request_id}", err=True)
    if wait:
        await _wait(client, request_id, output, as_json=as_json)
    elif as_json:
        print_json({"requestId": request_id})
    else:
        click.echo(request_id)


@main.section(REQUESTS)
@REQUEST_ID
@OUTPUT
@AS_JSON
@with_client
async def watch(client: "Client", request_id: str, output: Path | None, *, as_json: bool) -> None:
    """Wait for a request that was submitted before.

    Output and exit code are those of `submit`.
    """
    _require_directory(output)
    await client.status(request_id)  # fails at once for an unknown request
    await _wait(client, request_id, output, as_json=as_json)


@main.section(REQUESTS)
@REQUEST_ID
@AS_JSON
@with_client
async def status(client: "Client", request_id: str, *, as_json: bool) -> None:
    """Print the status of a request as JSON.

    Indented; with --json on one line. Failures are grouped by reason on standard error.
    """
    current = await client.status(request_id)
    if as_json:
        print_json(current)
        return
    click.echo(json.dumps(current, indent=2, ensure_ascii=False))
    if current["failed"]:
        _print_failures(await client.failures(request_id))


@main.section(REQUESTS)
@REQUEST_ID
@click.option(
    "--status",
    "image_status",
    type=click.Choice(["succeeded", "failed", "pending", "cancelled"]),
    help="Only images with this status.",
)
@AS_JSON
@with_client
async def images(client: "Client", request_id: str, image_status: str | None, *, as_json: bool) -> None:
    """Print the result of each image.

    One line per image, in CSV order.
    """
    async for image in client.images(request_id, image_status):
        if as_json:
            print_json(image)
        elif image["status"] == "failed":
            click.echo(f"{image['index']}  failed     {_describe_failure(image)}")
        else:
            urls = f"{image['inputUrl']} → {image['outputUrl']}" if image["outputUrl"] else ""
            click.echo(printable(f"{image['index']}  {image['status']:<9}  {urls}".rstrip(), 2000))


@main.section(REQUESTS)
@REQUEST_ID
@OUTPUT
@click.option(
    "--images",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Download the images to this folder instead; what is there is kept.",
)
@click.option("--json", "as_json", is_flag=True, help="With --output or --images: print the result as JSON.")
@with_client
async def download(
    client: "Client", request_id: str, output: Path | None, folder: Path | None, *, as_json: bool
) -> None:
    """Download the output CSV of a completed request, or its images, atomically."""
    if folder is not None:
        from infra.cli.image_files import download_images

        if output is not None:
            raise click.UsageError("--images and --output exclude each other")
        result = await download_images(client, request_id, folder)
        if as_json:
            print_json(result)
        return
    if as_json and output is None:
        raise click.UsageError("--json requires --output: otherwise the CSV goes to standard output")
    size = await _write_output(client, request_id, output)
    if as_json:
        print_json({"requestId": request_id, "output": str(output), "bytes": size})


@main.section(REQUESTS, "list")
@click.option("--limit", type=click.IntRange(1, 200), default=20, show_default=True, help="Maximum number.")
@AS_JSON
@with_client
async def list_requests(client: "Client", limit: int, *, as_json: bool) -> None:
    """Print the newest requests, one per line."""
    for request in await client.requests(limit):
        if as_json:
            print_json(request)
        else:
            line = f"{request['requestId']}  {request['createdAt']}  {request['status']:<10}  {summary(request)}"
            click.echo(printable(line))


@main.section(REQUESTS)
@AS_JSON
@with_client
async def stats(client: "Client", *, as_json: bool) -> None:
    """Print images, failures and bytes saved of the last 30 days, by day."""
    sums = await client.stats()
    if as_json:
        print_json(sums)
        return
    for line in stats_table(sums):
        click.echo(printable(line))
    _print_failures(sums["failures"])


@main.section(REQUESTS)
@REQUEST_ID
@AS_JSON
@with_client
async def cancel(client: "Client", request_id: str, *, as_json: bool) -> None:
    """Cancel a request: no more of its images are fetched."""
    _print_outcome("cancelled", await client.cancel(request_id), as_json=as_json)


def _confirm(context: click.Context, parameter: click.Parameter, yes: bool) -> None:
    # Not in the command, whose event loop would hold back a Ctrl-C at the prompt.
    if not yes and not context.resilient_parsing:
        names = ", and its product names and URLs," if context.params["forget"] else ""
        of = context.params["request_id"]
        click.confirm(f"Delete the images and the output CSV{names} of {of}?", abort=True, err=True)


@main.section(REQUESTS)
@REQUEST_ID
@click.option("--forget", is_flag=True, help="Also remove its product names and URLs from lists and histories.")
@click.option("--yes", is_flag=True, callback=_confirm, expose_value=False, help="Don't ask for confirmation.")
@AS_JSON
@with_client
async def delete(client: "Client", request_id: str, *, forget: bool, as_json: bool) -> None:
    """Delete the images and the output CSV of a request. Final."""
    status = await client.delete(request_id, forget=forget)
    _print_outcome("deleted and forgotten" if forget else "deleted", status, as_json=as_json)


@main.section(REQUESTS)
@REQUEST_ID
@click.option("--reason", metavar="CODE", help="Only the images that failed for this reason, such as fetch_timeout.")
@WAIT
@AS_JSON
@with_client
async def retry(client: "Client", request_id: str, *, reason: str | None, wait: bool, as_json: bool) -> None:
    """Retry the failed images of a request."""
    await client.retry(request_id, reason)
    if wait:
        await _wait(client, request_id, None, as_json=as_json, prints_csv=False)
    elif as_json:
        print_json({"requestId": request_id})
    else:
        click.echo("the failed images are processed again", err=True)


async def upload(client: "Client", file: Path, options: UploadOptions) -> str:
    """Upload a file; returns the request's id. Raises ApiError, with the bad rows of a rejected CSV as details."""
    from infra.cli.client import ApiError

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
    client: "Client", request_id: str, on_status: Callable[[dict[str, Any]], None] = lambda _: None
) -> dict[str, Any]:
    """Show the progress until the request ends; returns its last status. ``on_status`` is called at each change."""
    status: dict[str, Any] = {}
    with progress_display() as display:
        async for status in client.follow(request_id, on_error=display.show_error):
            display.show(status)
            on_status(status)
    return status


async def _wait(
    client: "Client",
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
        server = f" --server {client.server}" if client.server != settings_with().url else ""
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


def _print_outcome(outcome: str, status: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(status)
    click.echo(f"{outcome}: {summary(status)}", err=True)


def _print_failures(groups: Sequence[dict[str, Any]]) -> None:
    """Failures by reason with advice, on standard error."""
    for group in groups:
        line = f"{group['images']:,} x {group['title']} ({group['reason']}): {group['advice']}"
        click.echo(printable(line), err=True)


async def _write_output(client: "Client", request_id: str, output: Path | None) -> int:
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
