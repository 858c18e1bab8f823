"""``shrinkstream listen``: local webhook receiver for development."""

import asyncio
import signal
from collections.abc import Sequence
from datetime import UTC, datetime
from http import HTTPStatus

import click
import orjson
from aiohttp import web

from streams.webhooks.signature import VerificationError, verify

HOST = "127.0.0.1"
MAX_BODY = 1024 * 1024


async def listen(port: int, keys: Sequence[bytes]) -> None:
    """Verify and print each webhook until SIGTERM or SIGINT; without ``keys``, only print.

    Answers 204 to a valid signature and 401 to an invalid one. OSError: the port is in use.
    """

    async def receive(request: web.Request) -> web.Response:
        body = await request.read()
        headers = {name.lower(): value for name, value in request.headers.items()}
        try:
            if keys:
                verify(keys, headers, body, datetime.now(UTC))
        except VerificationError as error:
            click.echo(f"refused  {headers.get('webhook-id', '(no webhook-id)')[:100]!r}: {error}")
            return web.Response(status=HTTPStatus.UNAUTHORIZED, text=f"{error}\n")
        click.echo(f"{'verified' if keys else 'unsigned'} {headers.get('webhook-id', '(no webhook-id)')[:100]!r}")
        click.echo(_indented(body))
        return web.Response(status=HTTPStatus.NO_CONTENT)

    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    app = web.Application(client_max_size=MAX_BODY)
    app.router.add_post("/{path:.*}", receive)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, HOST, port).start()
        address = "{}:{}".format(*runner.addresses[0][:2])
        click.echo(f"listening on http://{address}/ (the sender needs SHRINKSTREAM_FETCH_ALLOW={address})")
        await stopped.wait()
    finally:
        await runner.cleanup()


def _indented(body: bytes) -> str:
    try:
        return orjson.dumps(orjson.loads(body), option=orjson.OPT_INDENT_2).decode()
    except orjson.JSONDecodeError:
        return repr(body[:1000])
