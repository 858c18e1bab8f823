"""``shrinkstream``: the commands that run and maintain a system; those of its API are in ``requests``."""

import sys
from pathlib import Path

import click
from click.shell_completion import get_completion_class

import infra.cli.requests  # noqa: F401 - adds its commands, which come first
from infra.cli.group import (
    AS_JSON,
    DATA_DIR,
    MAINTENANCE,
    PORT,
    REQUEST_ID,
    SHELL,
    SYSTEM,
    WORKERS,
    CommandFailed,
    an_id,
    main,
    print_json,
    quiet_logs,
    run,
    server_logs,
    settings_of_system,
    settings_with,
)
from infra.errors import ExplainedError

__all__ = ["SHELLS", "main"]

SHELLS = ("bash", "zsh", "fish")


@main.section(SYSTEM)
@PORT
@DATA_DIR
@WORKERS
def up(port: int | None, data_dir: Path | None, workers: int) -> None:
    """Run the whole system on this machine until Ctrl-C."""
    from infra.cli.up import run_until_stopped

    settings = settings_with(port=port, data_dir=data_dir)
    server_logs(settings)
    run(run_until_stopped(settings, workers))


@main.section(SYSTEM)
@DATA_DIR
def demo(data_dir: Path | None) -> None:
    """Start the system, process the sample images, stop the system."""
    from infra.cli.demo import run_demo

    settings = settings_with(data_dir=data_dir, port=0)
    quiet_logs()
    run(run_demo(settings, keep_data=data_dir is not None))


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

    created = run(initialise(settings_with(), partitions))
    if as_json:
        print_json({"created": created})
        return
    for name in created:
        click.echo(f"created {name}")


@main.section(SYSTEM)
def api() -> None:
    """Serve the HTTP API."""
    from api.app import serve

    settings = settings_with()
    server_logs(settings)
    run(serve(settings))


@main.section(SYSTEM)
@click.argument("app", type=click.Choice(["compress", "progress", "projections"]))
def worker(app: str) -> None:
    """Run one of the three Faust apps."""
    from infra.cli.worker import run_app

    settings = settings_with()
    server_logs(settings)
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
        print_table(settings_with())


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

    settings = settings_of_system()
    quiet_logs()
    run(print_trace(settings, request_id, every_line=every_line, as_json=as_json))


@main.section(MAINTENANCE)
@click.argument("what", type=click.Choice(["progress", "history", "output"]))
@click.option("--request", "request_id", metavar="ID", callback=an_id, help="Only one request.")
@click.option("--verify", is_flag=True, help="Compare with the log instead, and report differences.")
@AS_JSON
def replay(what: str, request_id: str | None, verify: bool, as_json: bool) -> None:
    """Rebuild a read model from the log.

    The system keeps running. No webhook is sent again and no image is fetched.
    """
    from infra.cli.replay import replay as run_replay

    settings = settings_of_system()
    quiet_logs()
    run(run_replay(settings, what, request_id, verify=verify, as_json=as_json))


@main.group(name="dead-letters")
def dead_letters() -> None:
    """Records that could not be decoded."""


main.list_under(MAINTENANCE, dead_letters)


@dead_letters.command(name="list")
@AS_JSON
def list_dead_letters(as_json: bool) -> None:
    """Print each dead letter with its origin and its error."""
    from infra.cli.dead_letters import print_dead_letters

    run(print_dead_letters(settings_of_system(), as_json=as_json))


@dead_letters.command(name="retry")
@click.option("--topic", help="Only dead letters from this topic.")
def retry_dead_letters(topic: str | None) -> None:
    """Republish dead letters to their original topics."""
    from infra.cli.dead_letters import republish

    run(republish(settings_of_system(), topic))


@main.section(MAINTENANCE)
@click.option("--port", type=click.IntRange(0, 65535), default=8090, show_default=True, help="0 picks a free one.")
@click.option("--secret", metavar="whsec_…", help="Signing secret; default: SHRINKSTREAM_WEBHOOK_SECRET.")
def listen(port: int, secret: str | None) -> None:
    """Receive, verify and print webhooks on this machine."""
    from infra.cli.listen import listen as run_listen
    from infra.settings import parse_webhook_secrets

    try:
        keys = parse_webhook_secrets(secret) if secret else settings_with().signing_keys
    except ValueError as error:
        raise CommandFailed(f"--secret: {error}") from None
    try:
        run(run_listen(port, keys))
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

    settings = settings_with()
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
    script = get_completion_class(shell)
    assert script is not None, shell
    click.echo(script(main, {}, "shrinkstream", "_SHRINKSTREAM_COMPLETE").source())
