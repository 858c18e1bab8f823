"""``shrinkstream demo``: end-to-end demo with sample images and a webhook receiver."""

import asyncio
import csv
import io
import secrets
import shutil
import signal
import tempfile
from base64 import b64encode
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import click
from aiohttp import web
from pydantic import SecretStr
from rich.console import Console
from rich.table import Table
from rich.text import Text

from infra.cli.client import Client
from infra.cli.requests import follow, upload
from infra.cli.system import running_system
from infra.cli.terminal import summary
from infra.errors import ExplainedError
from infra.settings import Settings

SAMPLES = Path(__file__).parents[1] / "demo"
WEBHOOK_TIMEOUT = 30.0
STALL_SECONDS = 60.0
"""Seconds without progress after which the demo fails; with seven images even a slow machine needs less."""
LOG_LINES = 5


class DemoFailedError(ExplainedError):
    """The demo failed; the message says at which step, the details are the last lines of the logs."""

    def __init__(self, reason: str, details: Sequence[str] = ()) -> None:
        super().__init__(reason)
        self.details = details


async def run_demo(settings: Settings, *, keep_data: bool, stall_seconds: float = STALL_SECONDS) -> None:
    """Run the demo; without ``keep_data`` its data is deleted afterwards.

    Raises DemoFailedError, also after ``stall_seconds`` without progress.
    """
    console = Console(stderr=True)
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)  # as Ctrl-C: clean up
    data_dir = settings.data_dir if keep_data else Path(tempfile.mkdtemp(prefix="shrinkstream-demo-"))
    try:
        async with _shop(WebhookBox()) as shop:
            settings = settings.model_copy(
                update={
                    "data_dir": data_dir,
                    "fetch_allow": ",".join(filter(None, (settings.fetch_allow, shop.address))),
                    "webhook_secret": SecretStr("whsec_" + b64encode(secrets.token_bytes(24)).decode()),
                }
            )
            console.print("starting Kafka, Cassandra, the API and three workers on this machine …")
            async with running_system(settings, compress_workers=1) as ready:
                console.print(f"ready at http://{ready.own_address}")
                await _show(ready, shop, console, stall_seconds)
            console.print("all processes stopped")
    finally:
        if not keep_data:
            await asyncio.to_thread(shutil.rmtree, data_dir, ignore_errors=True)


class WebhookBox:
    """Queue of received webhooks."""

    def __init__(self) -> None:
        self.received: asyncio.Queue[dict[str, object]] = asyncio.Queue(maxsize=100)


class Shop:
    """Loopback server that serves the sample images and receives the webhook."""

    def __init__(self, address: str, box: WebhookBox) -> None:
        self.address = address
        self.webhooks = box.received

    def csv(self) -> bytes:
        return (SAMPLES / "products.csv").read_bytes().replace(b"http://SHOP", f"http://{self.address}".encode())


@asynccontextmanager
async def _shop(box: WebhookBox) -> AsyncIterator[Shop]:
    async def receive(request: web.Request) -> web.Response:
        box.received.put_nowait(
            {
                "id": request.headers.get("webhook-id"),
                "signature": request.headers.get("webhook-signature"),
                "body": await request.json(),
            }
        )
        return web.Response(status=204)

    app = web.Application()
    app.router.add_static("/images", SAMPLES)
    app.router.add_post("/webhook", receive)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        yield Shop(f"{host}:{port}", box)
    finally:
        await runner.cleanup()


async def _show(settings: Settings, shop: Shop, console: Console, stall_seconds: float) -> None:
    file = settings.data_dir / "products.csv"
    await asyncio.to_thread(file.write_bytes, shop.csv())
    async with Client(f"http://{settings.own_address}", settings.first_api_key) as client:
        try:
            async with asyncio.timeout(stall_seconds) as stall:
                request_id = await upload(client, file, {"webhookUrl": f"http://{shop.address}/webhook"})
                console.print(f"uploaded {file.name}: request {request_id}")
                status = await _follow(client, request_id, stall, stall_seconds)
        except TimeoutError:
            logs = await asyncio.to_thread(last_lines, settings.data_dir / "logs")
            raise DemoFailedError(f"no progress for {stall_seconds:g} s", logs) from None
        output = io.BytesIO()
        await client.download(request_id, output)
        _print_rows(output.getvalue())
        click.echo(summary(status))
    try:
        async with asyncio.timeout(WEBHOOK_TIMEOUT):
            webhook = await shop.webhooks.get()
    except TimeoutError:
        raise DemoFailedError(f"no webhook received within {WEBHOOK_TIMEOUT:g} s") from None
    body = webhook["body"]
    assert isinstance(body, dict)
    click.echo(f"webhook {webhook['id']} received: {body['type']}, signed {str(webhook['signature'])[:16]}…")
    if status["failed"]:
        raise DemoFailedError(f"{status['failed']} of the sample images failed")


async def _follow(client: Client, request_id: str, stall: asyncio.Timeout, seconds: float) -> dict[str, Any]:
    """Follow a request to its end; each settled image extends the ``stall`` deadline by ``seconds``."""
    settled = -1

    def extend_deadline(status: dict[str, Any]) -> None:
        nonlocal settled
        if (now := status["succeeded"] + status["failed"]) != settled:
            settled = now
            stall.reschedule(asyncio.get_running_loop().time() + seconds)

    return await follow(client, request_id, extend_deadline)


def last_lines(folder: Path) -> list[str]:
    """The last lines of each log in a folder, prefixed with the process name."""
    lines = []
    for file in sorted(folder.glob("*.log")):
        tail = file.read_text(errors="replace").splitlines()[-LOG_LINES:]
        lines += [f"{file.stem}: {line}" for line in tail]
    return lines


def _print_rows(content: bytes) -> None:
    rows = list(csv.reader(io.StringIO(content.decode("utf-8-sig"))))
    table = Table(show_lines=True)
    for name in rows[0]:
        table.add_column(name, overflow="fold")
    for row in rows[1:]:
        table.add_row(*(Text(cell.replace(",", ",\n")) for cell in row))
    Console(width=160).print(table)
