"""Command definitions. Each command imports its dependencies lazily, so that ``--help`` and completion are fast."""

import signal
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from infra.errors import EXIT_FAILED, EXIT_INTERRUPTED, ExplainedError

if TYPE_CHECKING:
    from infra.settings import Settings

SHELLS = ("bash", "zsh", "fish")


class CommandFailed(click.ClickException):
    """Prints one line to standard error and exits with a non-zero code."""

    def __init__(self, error: ExplainedError | str) -> None:
        super().__init__(str(error))
        self.exit_code = error.exit_code if isinstance(error, ExplainedError) else EXIT_FAILED
        self._details = error.details if isinstance(error, ExplainedError) else ()

    def show(self, file: Any = None) -> None:
        from infra.cli.terminal import printable

        click.echo(f"shrinkstream: {printable(' '.join(self.message.split()), 1000)}", err=True)
        for line in self._details:
            click.echo(printable(line), err=True)


class Sections(click.Group):
    """A group whose help lists its commands under headings, in the order in which they were added."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.sections: dict[str, list[str]] = {}

    def section(self, heading: str, name: str | None = None) -> Callable[[Callable[..., Any]], click.Command]:
        """As ``command``, under a heading."""

        def add(function: Callable[..., Any]) -> click.Command:
            command: click.Command = self.command(name)(function)
            self.list_under(heading, command)
            return command

        return add

    def list_under(self, heading: str, command: click.Command) -> None:
        assert command.name is not None
        self.sections.setdefault(heading, []).append(command.name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for heading, names in self.sections.items():
            with formatter.section(heading):
                formatter.write_dl([(name, self.commands[name].get_short_help_str(100)) for name in names])


def _settings(**overrides: Any) -> "Settings":
    from infra.settings import SettingsError, load_settings

    try:
        return load_settings(**{name: value for name, value in overrides.items() if value is not None})
    except SettingsError as error:
        raise CommandFailed(error) from None


def _settings_of_system() -> "Settings":
    """As ``_settings``; without servers in the settings, those of an `up` on the same data dir."""
    from infra.cli.discovery import discover

    return discover(_settings())


def _quiet_logs() -> None:
    from infra.observability.logs import configure_logging

    configure_logging("ERROR")


def _server_logs(settings: "Settings") -> None:
    from infra.observability.logs import configure_logging

    configure_logging(settings.log_level)


def _run(work: Coroutine[Any, Any, Any]) -> Any:
    """Run a command; an ExplainedError is printed in one line, any other exception with a traceback."""
    import asyncio

    from infra.cancellation import no_stray_cancellation

    async def run() -> Any:
        with no_stray_cancellation():
            return await work

    try:
        return asyncio.run(run())
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except asyncio.CancelledError:
        sys.exit(128 + signal.SIGTERM)
    except ExplainedError as error:
        raise CommandFailed(error) from None


@click.group(cls=Sections, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="shrinkstream")
def main() -> None:
    """Compress product images: a CSV of image URLs in, compressed images, a CSV and a webhook out.

    Settings are environment variables (`shrinkstream settings`). Data goes to standard output, messages to standard
    error.

    \b
    Exit codes: 0 success; 1 failure; 2 usage error; 3 rejected by the server;
    4 some images failed; 5 the request was cancelled or has expired; 130 Ctrl-C.
    """


REQUESTS, SYSTEM, MAINTENANCE, SHELL = "Requests", "Running the system", "Maintenance", "Shell"


def _an_id(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    if value is None or context.resilient_parsing:
        return value
    from streams.events.base import is_request_id

    if not is_request_id(value):
        raise click.BadParameter("a request id has 1 to 64 letters, digits, - or _")
    return value


def _of_server(context: click.Context, parameter: click.Parameter, url: str | None) -> "Settings | None":
    return None if context.resilient_parsing else _settings(url=url)


DATA_DIR = click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Directory for servers, images and logs.",
)
PORT = click.option("--port", type=click.IntRange(0, 65535), help="Port of the API; 0 picks a free one.")
WORKERS = click.option("--workers", type=click.IntRange(1, 64), default=1, show_default=True, help="Compress workers.")
SERVER = click.option(
    "--server", "settings", metavar="URL", callback=_of_server, help="URL of the API; default: SHRINKSTREAM_URL."
)
REQUEST_ID = click.argument("request_id", metavar="ID", callback=_an_id)
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON, one document per line.")
WAIT = click.option("--wait/--no-wait", default=True, help="Wait for the result, with a progress bar (default).")
OUTPUT = click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="OUT.csv",
    help="Write the output CSV to a file instead of standard output.",
)


@main.section(REQUESTS)
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False), metavar="FILE.csv")
@click.option("--webhook-url", "webhookUrl", metavar="URL", help="Receiver of the completion webhook.")
@click.option(
    "--format",
    type=click.Choice(["jpeg", "png", "webp", "avif"]),
    help="Format of all output images; default: the format of each input image.",
)
@click.option("--quality", type=click.IntRange(1, 100), help="Quality of the output images; default: the server's.")
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
@SERVER
def submit(**given: Any) -> None:
    """Upload a CSV or spreadsheet and wait for its result.

    Prints the output CSV; with --json the last status and the failed images; with --no-wait the request id.
    Ctrl-C while waiting does not cancel the request.
    """
    from infra.cli.requests import submit_file

    _run(submit_file(**given))


@main.section(REQUESTS)
@REQUEST_ID
@OUTPUT
@AS_JSON
@SERVER
def watch(**given: Any) -> None:
    """Wait for a request that was submitted before.

    Output and exit code are those of `submit`.
    """
    from infra.cli.requests import watch_request

    _run(watch_request(**given))


@main.section(REQUESTS)
@REQUEST_ID
@AS_JSON
@SERVER
def status(**given: Any) -> None:
    """Print the status of a request as JSON.

    Indented; with --json on one line. Failures are grouped by reason on standard error.
    """
    from infra.cli.requests import print_status

    _run(print_status(**given))


@main.section(REQUESTS)
@REQUEST_ID
@click.option(
    "--status",
    "image_status",
    type=click.Choice(["succeeded", "failed", "pending", "cancelled"]),
    help="Only images with this status.",
)
@AS_JSON
@SERVER
def images(**given: Any) -> None:
    """Print the result of each image.

    One line per image, in CSV order.
    """
    from infra.cli.requests import print_images

    _run(print_images(**given))


@main.section(REQUESTS)
@REQUEST_ID
@OUTPUT
@click.option("--json", "as_json", is_flag=True, help="With --output: print path and size as JSON.")
@SERVER
def download(**given: Any) -> None:
    """Download the output CSV of a completed request, atomically."""
    from infra.cli.requests import download_csv

    if given["as_json"] and given["output"] is None:
        raise click.UsageError("--json requires --output: otherwise the CSV goes to standard output")
    _run(download_csv(**given))


@main.section(REQUESTS, "list")
@click.option("--limit", type=click.IntRange(1, 200), default=20, show_default=True, help="Maximum number.")
@AS_JSON
@SERVER
def list_requests(**given: Any) -> None:
    """Print the newest requests, one per line."""
    from infra.cli.requests import print_list

    _run(print_list(**given))


@main.section(REQUESTS)
@AS_JSON
@SERVER
def stats(**given: Any) -> None:
    """Print images, failures and bytes saved of the last 30 days, by day."""
    from infra.cli.requests import print_stats

    _run(print_stats(**given))


@main.section(REQUESTS)
@REQUEST_ID
@AS_JSON
@SERVER
def cancel(**given: Any) -> None:
    """Cancel a request: no more of its images are fetched."""
    from infra.cli.requests import cancel_request

    _run(cancel_request(**given))


@main.section(REQUESTS)
@REQUEST_ID
@click.option("--forget", is_flag=True, help="Also remove its product names and URLs from lists and histories.")
@click.option("--yes", is_flag=True, help="Don't ask for confirmation.")
@AS_JSON
@SERVER
def delete(*, yes: bool, **given: Any) -> None:
    """Delete the images and the output CSV of a request. Final."""
    from infra.cli.requests import delete_request

    if not yes:
        names = ", and its product names and URLs," if given["forget"] else ""
        click.confirm(f"Delete the images and the output CSV{names} of {given['request_id']}?", abort=True, err=True)
    _run(delete_request(**given))


@main.section(REQUESTS)
@REQUEST_ID
@click.option("--reason", metavar="CODE", help="Only the images that failed for this reason, such as fetch_timeout.")
@WAIT
@AS_JSON
@SERVER
def retry(**given: Any) -> None:
    """Retry the failed images of a request."""
    from infra.cli.requests import retry_request

    _run(retry_request(**given))


@main.section(SYSTEM)
@PORT
@DATA_DIR
@WORKERS
def up(port: int | None, data_dir: Path | None, workers: int) -> None:
    """Run the whole system on this machine until Ctrl-C."""
    from infra.cli.up import run_until_stopped

    settings = _settings(port=port, data_dir=data_dir)
    _server_logs(settings)
    _run(run_until_stopped(settings, workers))


@main.section(SYSTEM)
@DATA_DIR
def demo(data_dir: Path | None) -> None:
    """Start the system, process the sample images, stop the system."""
    from infra.cli.demo import run_demo

    settings = _settings(data_dir=data_dir, port=0)
    _quiet_logs()
    _run(run_demo(settings, keep_data=data_dir is not None))


def _partition_count(context: click.Context, parameter: click.Parameter, value: int | None) -> int | None:
    if value is not None and not context.resilient_parsing:
        from infra.settings import MAX_PARTITIONS

        if not 1 <= value <= MAX_PARTITIONS:
            raise click.BadParameter(f"{value} is not between 1 and {MAX_PARTITIONS}")
    return value


@main.section(SYSTEM)
@click.option(
    "--partitions",
    type=int,
    callback=_partition_count,
    metavar="N",
    help="Grow the image-requests topic, whose partitions limit the number of compress workers; safe at any time.",
)
@AS_JSON
def init(partitions: int | None, as_json: bool) -> None:
    """Create missing topics, keyspace and tables."""
    from infra.cli.init import initialise

    created = _run(initialise(_settings(), partitions))
    if as_json:
        from infra.cli.requests import print_json

        print_json({"created": created})
        return
    for name in created:
        click.echo(f"created {name}")


@main.section(SYSTEM)
def api() -> None:
    """Serve the HTTP API."""
    from api.app import serve

    settings = _settings()
    _server_logs(settings)
    _run(serve(settings))


@main.section(SYSTEM)
@click.argument("app", type=click.Choice(["compress", "progress", "projections"]))
def worker(app: str) -> None:
    """Run one of the three Faust apps."""
    from infra.cli.worker import run_app

    settings = _settings()
    _server_logs(settings)
    try:
        sys.exit(run_app(app, settings))
    except ExplainedError as error:
        raise CommandFailed(error) from None


@main.section(SYSTEM, "settings")
@click.option("--markdown", is_flag=True, help="Only names, defaults and meanings, for the documentation.")
def print_settings(markdown: bool) -> None:
    """Print every setting with its value, default and meaning."""
    from infra.cli.settings_table import print_markdown, print_table

    if markdown:
        print_markdown()
    else:
        print_table(_settings())


@main.section(MAINTENANCE)
@REQUEST_ID
@click.option("--all", "every_line", is_flag=True, help="One line per event, for requests of any size.")
@AS_JSON
def trace(request_id: str, every_line: bool, as_json: bool) -> None:
    """Print the events of a request from the log: time, event, offset, process.

    Marks duplicates (REPEAT) and gaps (GAP): images without a result, periods without an event, missing steps. For
    large requests, image events are counted over time intervals.
    """
    from infra.cli.trace import print_trace

    settings = _settings_of_system()
    _quiet_logs()
    _run(print_trace(settings, request_id, every_line=every_line, as_json=as_json))


@main.section(MAINTENANCE)
@click.argument("what", type=click.Choice(["progress", "history", "output"]))
@click.option("--request", "request_id", metavar="ID", callback=_an_id, help="Only one request.")
@click.option("--verify", is_flag=True, help="Compare with the log instead, and report differences.")
@AS_JSON
def replay(what: str, request_id: str | None, verify: bool, as_json: bool) -> None:
    """Rebuild a read model from the log.

    The system keeps running. No webhook is sent again and no image is fetched.
    """
    from infra.cli.replay import replay as run_replay

    settings = _settings_of_system()
    _quiet_logs()
    _run(run_replay(settings, what, request_id, verify=verify, as_json=as_json))


@main.group(name="dead-letters")
def dead_letters() -> None:
    """Records that could not be decoded."""


main.list_under(MAINTENANCE, dead_letters)


@dead_letters.command(name="list")
@AS_JSON
def list_dead_letters(as_json: bool) -> None:
    """Print each dead letter with its origin and its error."""
    from infra.cli.dead_letters import list_dead_letters as run

    _run(run(_settings_of_system(), as_json=as_json))


@dead_letters.command(name="retry")
@click.option("--topic", help="Only dead letters from this topic.")
def retry_dead_letters(topic: str | None) -> None:
    """Republish dead letters to their original topics."""
    from infra.cli.dead_letters import retry_dead_letters as run

    _run(run(_settings_of_system(), topic))


@main.section(MAINTENANCE)
@click.option("--port", type=click.IntRange(0, 65535), default=8090, show_default=True, help="0 picks a free one.")
@click.option("--secret", metavar="whsec_…", help="Signing secret; default: SHRINKSTREAM_WEBHOOK_SECRET.")
def listen(port: int, secret: str | None) -> None:
    """Receive, verify and print webhooks on this machine."""
    from infra.cli.listen import listen as run_listen
    from infra.settings import parse_webhook_secrets

    try:
        keys = parse_webhook_secrets(secret) if secret else _settings().signing_keys
    except ValueError as error:
        raise CommandFailed(f"--secret: {error}") from None
    try:
        _run(run_listen(port, keys))
    except OSError as error:
        raise CommandFailed(f"cannot listen on port {port}: {error.strerror}") from None


@main.section(MAINTENANCE)
@click.argument("owner")
def webhook_secret(owner: str) -> None:
    """Print the signing secret of an API key's owner, for its receiver.

    OWNER is the name of an API key; where SHRINKSTREAM_API_KEYS is not set, it is not checked. With several secrets,
    during a rotation, the newest is first.
    """
    from infra.settings import webhook_secret_text
    from streams.webhooks.signature import owner_keys

    settings = _settings()
    if settings.webhook_secret is None:
        raise CommandFailed("SHRINKSTREAM_WEBHOOK_SECRET is not set: webhooks are not signed")
    if settings.api_keys is None:  # as in the containers of projections, the only ones that have the secret
        click.echo(
            f"shrinkstream: SHRINKSTREAM_API_KEYS is not set here, so {owner!r} is not checked;"
            " an API without keys signs with SHRINKSTREAM_WEBHOOK_SECRET itself",
            err=True,
        )
    elif owner not in (names := settings.keys_by_owner):
        raise CommandFailed(f"no API key has the name {owner!r}: the names are {', '.join(names)}")
    click.echo(webhook_secret_text(owner_keys(settings.signing_keys, owner)))


@main.section(SHELL)
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print the completion script of a shell.

    \b
    bash: source <(shrinkstream completion bash)
    zsh:  source <(shrinkstream completion zsh)
    fish: shrinkstream completion fish | source
    """
    from infra.cli.completion import completion_script

    click.echo(completion_script(main, shell))
