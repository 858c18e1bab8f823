"""``shrinkstream settings``: every setting with its value, default and meaning."""

from pydantic import SecretStr
from rich.console import Console
from rich.table import Table

from infra.settings import PREFIX, Settings


def print_table(settings: Settings) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("variable", "value", "default", "meaning"):
        table.add_column(column, overflow="fold")
    for name, field in Settings.model_fields.items():
        table.add_row(PREFIX + name.upper(), _shown(getattr(settings, name)), _shown(field.default), field.description)
    Console(width=None if Console().is_terminal else 200).print(table)


def _shown(value: object) -> str:
    if value is None or value == "":
        return "unset"
    return "********" if isinstance(value, SecretStr) else str(value)
