"""``python -m tests.support.docs_tables``: write the tables of docs/ that are made from the code."""

import re
from collections.abc import Sequence
from pathlib import Path

import yaml
from click.testing import CliRunner

from api.http.problems import ProblemCode
from api.uploads.csv.problems import CsvProblem
from infra.cli.main import main
from infra.observability.metrics import DEFINITIONS, ROLES
from streams.request.failures import FAILURES, failure_of
from tests.support.markdown import ROOT


def settings() -> str:
    return CliRunner().invoke(main, ["settings", "--markdown"], catch_exceptions=False).output


def errors() -> str:
    rows = [(f"`{one.code}`", str(one.status.value), one.meaning) for one in ProblemCode]
    return _table(("code", "status", "error"), rows)


def csv_problems() -> str:
    return _table(("code", "cause"), [(f"`{one}`", one.meaning) for one in CsvProblem])


def failures() -> str:
    rows = [(f"`{reason}`", *failure_of(reason)) for reason in FAILURES]
    others = [(f"other `fetch_http_{kind}xx`", f"{kind}xx", failure_of(f"fetch_http_{kind}99").advice) for kind in "45"]
    return _table(("reason", "in words", "what to do"), [*rows, *others])


def metrics() -> str:
    return _table(
        ("metric", "kind", "labels", "of", "meaning"),
        [
            (
                f"`{one.name}`",
                one.kind,
                ", ".join(f"`{label}`" for label in one.labels),
                "all" if one.roles == ROLES else ", ".join(one.roles),
                one.meaning,
            )
            for one in DEFINITIONS
        ],
    )


def alerts() -> str:
    groups = yaml.safe_load((ROOT / "infra" / "monitoring" / "alerts.yml").read_text())["groups"]
    return _table(
        ("alert", "severity", "for", "what to do"),
        [
            (
                f"`{rule['alert']}`",
                rule["labels"]["severity"],
                rule.get("for", "at once"),
                rule["annotations"]["runbook"],
            )
            for group in groups
            for rule in group["rules"]
        ],
    )


TABLES = {
    "api.md": [errors],
    "limits-and-reasons.md": [failures, csv_problems],
    "monitoring.md": [alerts, metrics],
    "settings.md": [settings],
}


def path_of(name: str) -> Path:
    return ROOT / "docs" / name


def up_to_date(name: str) -> str:
    """The text of a document with its tables as the code has them; a table is found by its header row."""
    text = path_of(name).read_text()
    for table in TABLES[name]:
        rows = table()
        header = rows.partition("\n")[0]
        pattern = re.compile(rf"^{re.escape(header)}\n(?:\|.*\n)+", re.MULTILINE)
        (found,) = pattern.findall(text)
        text = text.replace(found, rows)
    return text


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |\n" for row in (header, *rows)]
    return "".join([lines[0], f"|{'---|' * len(header)}\n", *lines[1:]])


if __name__ == "__main__":
    for name in TABLES:
        path_of(name).write_text(up_to_date(name))
