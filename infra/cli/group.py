"""The command group, and what its commands share: options, settings, errors, exit codes.

Modules with commands import their dependencies lazily, so that ``--help`` and completion are fast.
"""

import functools
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from infra.errors import EXIT_FAILED, EXIT_INTERRUPTED, ExplainedError

if TYPE_CHECKING:
    from infra.settings import Settings


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


def settings_with(**overrides: Any) -> "Settings":
    from infra.settings import SettingsError, load_settings

    try:
        return load_settings(**{name: value for name, value in overrides.items() if value is not None})
    except SettingsError as error:
        raise CommandFailed(error) from None


def settings_of_system() -> "Settings":
    """As ``settings_with``; without servers in the settings, those of an `up` on the same data dir."""
    from infra.cli.discovery import discover

    return discover(settings_with())


def quiet_logs() -> None:
    from infra.observability.logs import configure_logging

    configure_logging("ERROR")


def server_logs(settings: "Settings") -> None:
    from infra.observability.logs import configure_logging

    configure_logging(settings.log_level)


def run(work: Coroutine[Any, Any, Any]) -> Any:
    """Run a command; an ExplainedError is printed in one line, any other exception with a traceback."""
    import asyncio

    from infra.cancellation import no_stray_cancellation

    async def guarded() -> Any:
        with no_stray_cancellation():
            return await work

    try:
        return asyncio.run(guarded())
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except asyncio.CancelledError:
        sys.exit(128 + signal.SIGTERM)
    except ExplainedError as error:
        raise CommandFailed(error) from None


def print_json(value: object) -> None:
    """Print one JSON document on one line."""
    import orjson

    click.echo(orjson.dumps(value))


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


def an_id(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    if value is None or context.resilient_parsing:
        return value
    from streams.events.base import is_request_id

    if not is_request_id(value):
        raise click.BadParameter("a request id has 1 to 64 letters, digits, - or _")
    return value


def _of_server(context: click.Context, parameter: click.Parameter, url: str | None) -> "Settings | None":
    return None if context.resilient_parsing else settings_with(url=url)


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
REQUEST_ID = click.argument("request_id", metavar="ID", callback=an_id)
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON, one document per line.")
WAIT = click.option("--wait/--no-wait", default=True, help="Wait for the result, with a progress bar (default).")
OUTPUT = click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="OUT.csv",
    help="Write the output CSV to a file instead of standard output.",
)


def with_client(function: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """A command that gets a client of the server that ``--server`` names."""

    @SERVER
    @functools.wraps(function)
    def command(settings: "Settings", **given: Any) -> None:
        from infra.cli.client import Client

        async def work() -> None:
            async with Client(settings.url, settings.first_api_key) as client:
                await function(client, **given)

        run(work())

    return command
