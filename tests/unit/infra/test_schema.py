"""Migrations: in order, complete, and safe to run twice."""

import re

from hypothesis import given
from hypothesis import strategies as st

from infra.cassandra.schema import migrations, statements


def test_the_migrations_are_numbered_without_a_gap() -> None:
    numbers = [number for number, _, _ in migrations()]
    assert numbers
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def test_every_statement_of_every_migration_may_be_repeated() -> None:
    for _, name, text in migrations():
        for statement in statements(text):
            condition = " IF EXISTS " if re.search(r"(^| )DROP ", statement) else " IF NOT EXISTS "
            assert condition in statement, f"{name}: {statement}"


def test_migration_is_split_without_comments() -> None:
    text = "-- first; of all\nCREATE TABLE a (x int); -- a comment\n\nCREATE TABLE b (\n  y int -- the y\n);\n;\n"
    assert [" ".join(statement.split()) for statement in statements(text)] == [
        "CREATE TABLE a (x int)",
        "CREATE TABLE b ( y int )",
    ]


@given(st.lists(st.from_regex(r"[A-Z]+( [a-z]+){1,3}", fullmatch=True), max_size=5), st.text("abc; \n", max_size=9))
def test_no_statement_is_lost_between_comments(wanted: list[str], comment: str) -> None:
    remark = "--" + comment.replace("\n", " ") + "\n"
    assert statements(remark + ";\n".join(remark + statement + " " + remark for statement in wanted)) == wanted
