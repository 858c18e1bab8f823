"""``shrinkstream settings``: every setting with its value, default and meaning."""

import click
from pydantic import SecretStr
from pydantic.fields import FieldInfo
from rich.console import Console
from rich.table import Table
from rich.text import Text

from infra.settings import PREFIX, Settings, origin_of


def print_table(settings: Settings) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("variable", "value", "default", "meaning"):
        table.add_column(column, overflow="fold")
    for name, field in Settings.model_fields.items():
        cells = (PREFIX + name.upper(), _shown(getattr(settings, name), name), _default(field), str(field.description))
        table.add_row(*map(Text, cells))  # as Text: rich would parse [fd00::1] as markup
    Console(width=None if Console().is_terminal else 200).print(table)


def print_markdown() -> None:
    """The table without values, for docs/settings.md."""
    click.echo("| variable | default | meaning |\n|---|---|---|")
    for name, field in Settings.model_fields.items():
        default = _default(field) if field.default in (None, "") or field.default_factory else f"`{_default(field)}`"
        click.echo(f"| `{PREFIX}{name.upper()}` | {default} | {field.description} |")


def _default(field: FieldInfo) -> str:
    return "machine-dependent" if field.default_factory else _shown(field.default)


def _shown(value: object, name: str = "") -> str:
    if value is None or value == "":
        return "unset"
    if name == "webhook_url":  # its path or query may contain a token
        return f"{origin_of(str(value))}/…"
    return "********" if isinstance(value, SecretStr) else str(value)
