"""``shrinkstream settings``: every setting with its value, default and meaning."""

import click
from pydantic import SecretStr
from pydantic.fields import FieldInfo
from rich.console import Console
from rich.table import Table

from infra.settings import PREFIX, Settings


def print_table(settings: Settings) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("variable", "value", "default", "meaning"):
        table.add_column(column, overflow="fold")
    for name, field in Settings.model_fields.items():
        table.add_row(PREFIX + name.upper(), _shown(getattr(settings, name)), _default(field), field.description)
    Console(width=None if Console().is_terminal else 200).print(table)


def print_markdown() -> None:
    """The same without values, as docs/settings.md has it."""
    click.echo("| variable | default | meaning |\n|---|---|---|")
    for name, field in Settings.model_fields.items():
        default = _default(field) if field.default in (None, "") or field.default_factory else f"`{_default(field)}`"
        click.echo(f"| `{PREFIX}{name.upper()}` | {default} | {field.description} |")


def _default(field: FieldInfo) -> str:
    return "of the machine" if field.default_factory else _shown(field.default)


def _shown(value: object) -> str:
    if value is None or value == "":
        return "unset"
    return "********" if isinstance(value, SecretStr) else str(value)
