"""The commands. Each imports what it needs when it runs, so that ``--help`` and ``status`` are quick."""

import asyncio
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import click
from pydantic import SecretStr

from infra.errors import ExplainedError
from infra.logs import configure_logging
from infra.settings import MOST_PARTITIONS, Settings, SettingsError, load_settings, parse_webhook_secrets

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130


class CommandFailed(click.ClickException):
    """One clear line on standard error and a non-zero exit."""

    exit_code = EXIT_FAILED

    def show(self, file: Any = None) -> None:
        click.echo(f"shrinkstream: {self.message}", err=True)


def _settings(**overrides: Any) -> Settings:
    try:
        return load_settings(**{name: value for name, value in overrides.items() if value is not None})
    except SettingsError as error:
        raise CommandFailed(str(error)) from None


def _run(work: Coroutine[Any, Any, Any]) -> Any:
    """Run a command's work; what users can mend is one line, everything else a traceback."""
    try:
        return asyncio.run(work)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except ExplainedError as error:
        raise CommandFailed(str(error)) from None


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="shrinkstream")
def main() -> None:
    """Shrink product images: a CSV of image URLs in, compressed images, a CSV and a webhook out."""


def _an_id(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    from streams.events import is_request_id

    if value is not None and not is_request_id(value):
        raise click.BadParameter("a request's id has 1 to 64 letters, digits, - or _")
    return value


DATA_DIR = click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where servers, images and logs are kept.",
)
PORT = click.option("--port", type=click.IntRange(0, 65535), help="Port of the API; 0 takes any free one.")
WORKERS = click.option("--workers", type=click.IntRange(1, 64), default=1, show_default=True, help="Compress workers.")
SERVER = click.option("--server", metavar="URL", help="The API to talk to; default: SHRINKSTREAM_URL.")


@main.command()
@PORT
@DATA_DIR
@WORKERS
def up(port: int | None, data_dir: Path | None, workers: int) -> None:
    """Run the whole system on this machine until Ctrl-C."""
    from infra.cli.up import run_until_stopped

    settings = _settings(port=port, data_dir=data_dir)
    configure_logging(settings.log_level)
    _run(run_until_stopped(settings, workers))


@main.command()
@DATA_DIR
def demo(data_dir: Path | None) -> None:
    """Start everything, send the sample images through it, show what came out, stop everything."""
    from infra.cli.demo import run_demo

    settings = _settings(data_dir=data_dir, port=0)
    configure_logging("ERROR")
    _run(run_demo(settings, keep_data=data_dir is not None))


@main.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--webhook-url", metavar="URL", help="Who is told when the request is complete.")
@click.option(
    "--format",
    "image_format",
    type=click.Choice(["jpeg", "png", "webp", "avif"]),
    help="Format of all output images; default: that of each input image.",
)
@click.option("--quality", type=click.IntRange(1, 100), help="Quality of the images; default: that of the server.")
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="Where the output CSV goes.")
@click.option("--wait/--no-wait", default=True, help="Wait for the result, with a progress bar.")
@SERVER
def submit(
    file: Path,
    webhook_url: str | None,
    image_format: str | None,
    quality: int | None,
    output: Path | None,
    wait: bool,
    server: str | None,
) -> None:
    """Upload a CSV and wait for its result."""
    from infra.cli.requests import submit_file

    settings = _settings(url=server)
    _run(submit_file(settings, file, webhook_url, output, image_format=image_format, quality=quality, wait=wait))


@main.command()
@click.argument("request_id", metavar="ID")
@SERVER
def status(request_id: str, server: str | None) -> None:
    """Print a request's status as JSON."""
    from infra.cli.requests import print_status

    _run(print_status(_settings(url=server), request_id))


@main.command()
@click.argument("request_id", metavar="ID")
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="A file instead of standard output.")
@SERVER
def download(request_id: str, output: Path | None, server: str | None) -> None:
    """Download a completed request's output CSV."""
    from infra.cli.requests import download_csv

    _run(download_csv(_settings(url=server), request_id, output))


@main.command(name="list")
@click.option("--limit", type=click.IntRange(1, 200), default=20, show_default=True, help="How many at most.")
@SERVER
def list_requests(limit: int, server: str | None) -> None:
    """Print the newest requests, a line each."""
    from infra.cli.requests import print_list

    _run(print_list(_settings(url=server), limit))


@main.command()
@click.argument("request_id", metavar="ID")
@SERVER
def cancel(request_id: str, server: str | None) -> None:
    """Stop a request: images that are not done are not fetched any more."""
    from infra.cli.requests import cancel_request

    _run(cancel_request(_settings(url=server), request_id))


@main.command()
@click.argument("request_id", metavar="ID")
@click.option("--wait/--no-wait", default=True, help="Wait for the result, with a progress bar.")
@SERVER
def retry(request_id: str, wait: bool, server: str | None) -> None:
    """Process the failed images of a request again."""
    from infra.cli.requests import retry_request

    _run(retry_request(_settings(url=server), request_id, wait=wait))


@main.command()
def api() -> None:
    """Serve the HTTP API."""
    from api.app import serve

    settings = _settings()
    configure_logging(settings.log_level)
    _run(serve(settings))


@main.command()
@click.argument("app", type=click.Choice(["compress", "progress", "projections"]))
def worker(app: str) -> None:
    """Run one of the three Faust apps."""
    from infra.cli.worker import run_app

    settings = _settings()
    configure_logging(settings.log_level)
    try:
        sys.exit(run_app(app, settings))
    except ExplainedError as error:
        raise CommandFailed(str(error)) from None


@main.command()
@click.option("--port", type=click.IntRange(0, 65535), default=8090, show_default=True, help="0 takes any free one.")
@click.option("--secret", metavar="whsec_…", help="What signs them; default: SHRINKSTREAM_WEBHOOK_SECRET.")
def listen(port: int, secret: str | None) -> None:
    """Receive webhooks on this machine, verify and print them."""
    from infra.cli.listen import listen as run_listen

    given = SecretStr(secret) if secret else _settings().webhook_secret
    try:
        keys = parse_webhook_secrets(given.get_secret_value()) if given else []
    except ValueError as error:
        raise CommandFailed(f"--secret: {error}") from None
    try:
        _run(run_listen(port, keys))
    except OSError as error:
        raise CommandFailed(f"port {port} can't be used: {error.strerror}") from None


@main.command()
@click.option(
    "--partitions",
    type=click.IntRange(1, MOST_PARTITIONS),
    metavar="N",
    help="Grow the topic of waiting images, the limit of how many compress workers share the work; at any time.",
)
def init(partitions: int | None) -> None:
    """Create topics, keyspace and tables; what exists is left as it is."""
    from infra.cli.init import initialise

    for name in _run(initialise(_settings(), partitions)):
        click.echo(f"created {name}")


@main.command()
@click.argument("what", type=click.Choice(["progress", "history", "output"]))
@click.option("--request", "request_id", metavar="ID", callback=_an_id, help="Only what is about one request.")
@click.option("--verify", is_flag=True, help="Compare instead, and report differences.")
def replay(what: str, request_id: str | None, verify: bool) -> None:
    """Build a read model again from the topics, while everything else goes on."""
    from infra.cli.replay import replay as run_replay

    settings = _settings()
    configure_logging("ERROR")
    _run(run_replay(settings, what, request_id, verify=verify))


@main.group(name="dead-letters")
def dead_letters() -> None:
    """Records that could not be read."""


@dead_letters.command(name="list")
def list_dead_letters() -> None:
    """Print each with its place and what is wrong with it."""
    from infra.cli.dead_letters import list_dead_letters as run

    _run(run(_settings()))


@dead_letters.command(name="retry")
@click.option("--topic", help="Only those from this topic.")
def retry_dead_letters(topic: str | None) -> None:
    """Write them back to where they came from."""
    from infra.cli.dead_letters import retry_dead_letters as run

    _run(run(_settings(), topic))


@main.command(name="settings")
@click.option("--markdown", is_flag=True, help="Only names, defaults and meanings, as the documentation has them.")
def print_settings(markdown: bool) -> None:
    """Print every setting with its value, default and meaning."""
    from infra.cli.settings_table import print_markdown, print_table

    if markdown:
        print_markdown()
    else:
        print_table(_settings())
