"""The commands themselves: that they are documented, start quickly, and what they show of a request's progress."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from infra import errors
from infra.cli import main
from infra.cli.group import Sections
from infra.cli.main import SHELLS
from infra.cli.terminal import PACE_SECONDS, Pace, clock, details, printable
from infra.settings import parse_webhook_secrets
from streams.webhooks.signature import owner_keys

DOCUMENT = Path(__file__).parents[3] / "docs" / "command-line.md"

# What takes long to import, and no command needs in order to say what it does.
HEAVY = ("faust", "cassandra", "aiohttp", "aiokafka", "pydantic", "structlog", "rich", "PIL", "orjson")


def leaves(command: click.Command, name: str = "") -> Iterator[tuple[str, click.Command]]:
    """Each command with its whole name."""
    if not isinstance(command, click.Group):
        yield name, command
        return
    for child in command.commands.values():
        yield from leaves(child, f"{name} {child.name}".strip())


COMMANDS = dict(leaves(main))


def section_of(name: str) -> str:
    found = re.findall(rf"^### `{re.escape(name)}(?: [A-Z][^`]*)?`\n(.*?)(?=^##|\Z)", DOCUMENT.read_text(), re.M | re.S)
    assert len(found) == 1, name
    return str(found[0])


def test_every_command_is_documented_and_every_documented_one_exists() -> None:
    headings = re.findall(r"^### `([^`]+)`$", DOCUMENT.read_text(), re.MULTILINE)
    documented = {" ".join(word for word in heading.split() if word == word.lower()) for heading in headings}
    assert documented == COMMANDS.keys()


@pytest.mark.parametrize("name", COMMANDS)
def test_command_line_page_matches_options_of_commands(name: str) -> None:
    command = COMMANDS[name]
    section = section_of(name)
    rows = "".join(re.findall(r"^\| (`-.*?) \|", section, re.MULTILINE))
    options = {
        text
        for parameter in command.params
        if isinstance(parameter, click.Option)
        for text in (*parameter.opts, *parameter.secondary_opts)
    }
    assert set(re.findall(r"`(--[a-z-]+)", rows)) == options
    arguments = [parameter for parameter in command.params if isinstance(parameter, click.Argument)]
    heading = re.search(rf"^### `{re.escape(name)}(.*)`$", DOCUMENT.read_text(), re.MULTILINE)
    assert heading is not None
    assert len(heading[1].split()) == len(arguments)


def test_every_exit_code_is_documented() -> None:
    documented = set(map(int, re.findall(r"^\| (\d+) \|", DOCUMENT.read_text(), re.MULTILINE)))
    assert documented == {0} | {value for name, value in vars(errors).items() if name.startswith("EXIT_")}


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_every_command_and_option_says_what_it_is_for(name: str) -> None:
    command = COMMANDS[name] if name else main
    assert command.help
    for parameter in command.params:
        assert not isinstance(parameter, click.Option) or parameter.help, parameter.name


def test_the_help_has_every_command_under_a_heading() -> None:
    assert isinstance(main, Sections)
    placed = [name for names in main.sections.values() for name in names]
    assert sorted(placed) == sorted(main.commands)


def test_help_imports_nothing_that_takes_long() -> None:
    program = f"""
import sys
from infra.cli import main
main(["submit", "--help"], standalone_mode=False)
print([name for name in {HEAVY!r} if name in sys.modules])
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout.splitlines()[-1] == "[]"


@pytest.mark.slow
def test_status_imports_no_faust_and_no_cassandra() -> None:
    program = """
import sys
from infra.cli import main
try:
    main(["status", "some-id", "--server", "http://127.0.0.1:1"], standalone_mode=False)
except Exception as error:
    assert "no answer" in str(error), error
print([name for name in ("faust", "cassandra", "aiokafka", "rich", "PIL") if name in sys.modules])
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout.splitlines()[-1] == "[]"


def test_program_ends_without_finalizing_python() -> None:
    """A thread of obstore that is answered meanwhile would abort it, some 5 times in 100."""
    program = """
import atexit, sys
from infra.cli.__main__ import run
atexit.register(print, "finalized")
sys.argv = ["shrinkstream", "settings", "--markdown"]
run()
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert "SHRINKSTREAM_KAFKA_BROKERS" in ended.stdout
    assert "finalized" not in ended.stdout


STEPS = st.lists(st.tuples(st.floats(0.01, 5), st.integers(0, 100)), min_size=1, max_size=100)


@given(STEPS)
def test_pace_is_within_recent_extremes(steps: list[tuple[float, int]]) -> None:
    pace, now, done = Pace(), 0.0, 0
    pace.note(now, done)
    rates = []
    for seconds, images in steps:
        now, done = now + seconds, done + images
        pace.note(now, done)
        rates.append((now, images / seconds))
    rate = pace.per_second(now)
    recent = [each for at, each in rates if at > now - PACE_SECONDS - 5]
    if rate is None:
        assert not any(recent)
    else:
        assert min(recent) * 0.999 <= rate <= max(recent) * 1.001


def test_a_pace_forgets_what_was_long_ago() -> None:
    pace = Pace()
    for second in range(100):
        pace.note(second, second * 50)
    for second in range(100, 200):
        pace.note(second, 99 * 50 + (second - 99) * 2)
    assert pace.per_second(199) == 2
    assert pace.seconds_left(199, 20) == 10


def test_details_show_rate_savings_and_time_left() -> None:
    pace = Pace()
    pace.note(0, 0)
    pace.note(10, 20)
    sums = {"total": 50, "succeeded": 19, "failed": 1, "inputBytes": 4_000_000, "outputBytes": 1_000_000}
    shown = "2.0 images/s, 3.0 of 4.0 MB saved (75%)"
    assert details({"status": "processing", **sums}, pace, 10) == f"{shown}, 0:15 left"
    assert details({"status": "completed", **sums}, pace, 10) == shown


def test_pace_restarts_with_retry() -> None:
    pace = Pace()
    for second, done in ((0, 0), (1, 100), (2, 90), (3, 91)):
        pace.note(second, done)
    assert pace.per_second(3) == 1


def test_a_pace_of_nothing_is_none() -> None:
    pace = Pace()
    assert pace.per_second(0) is None
    pace.note(0, 5)
    pace.note(9, 5)
    assert pace.per_second(9) is None
    assert pace.seconds_left(9, 5) is None


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (125, "2:05"), (3600, "1:00:00")])
def test_durations_are_formatted_as_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


@given(st.text(max_size=400))
def test_printable_text_is_one_line_without_control_codes(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert len(shown) <= 300
    if text.isprintable() and len(text) <= 300:
        assert shown == text


def test_an_escape_sequence_is_shown_and_not_obeyed() -> None:
    assert printable("a\x1b[31mred\n") == "a\\x1b[31mred\\n"


BASH = shutil.which("bash")


@pytest.mark.slow
@pytest.mark.skipif(BASH is None, reason="there is no bash")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["shrinkstream", "su"], {"submit"}),
        (["shrinkstream", "submit", "--no"], {"--no-wait"}),
        (["shrinkstream", "dead-letters", ""], {"list", "retry"}),
        (["shrinkstream", "worker", "pro"], {"progress", "projections"}),
    ],
)
def test_bash_completes_the_commands_after_reading_the_script(words: list[str], expected: set[str]) -> None:
    assert BASH is not None
    # What bash does at the press of the tab key: call the function that `complete` has named for the program.
    program = """
        source <(shrinkstream completion bash)
        function=$(complete -p shrinkstream | sed 's/.*-F \\([^ ]*\\) .*/\\1/')
        COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
        "$function" shrinkstream
        printf '%s\\n' "${COMPREPLY[@]}"
    """
    ended = subprocess.run(
        [BASH, "--norc", "-c", program, "bash", *words],
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert set(ended.stdout.split()) == expected


@pytest.mark.parametrize("shell", SHELLS)
def test_there_is_a_script_for_every_shell(shell: str) -> None:
    assert "_SHRINKSTREAM_COMPLETE" in CliRunner().invoke(main, ["completion", shell]).stdout


@pytest.fixture
def _webhook_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SHRINKSTREAM_WEBHOOK_SECRET", "whsec_bmV3,whsec_b2xk")
    monkeypatch.setenv("SHRINKSTREAM_API_KEYS", "alice:one,bob:two")
    monkeypatch.setenv("SHRINKSTREAM_WEBHOOK_URL", "https://hooks.example/services/T0KEN?token=s3cret")


@pytest.mark.usefixtures("_webhook_settings")
def test_webhook_secret_signs_as_the_worker_does() -> None:
    printed = CliRunner().invoke(main, ["webhook-secret", "alice"])
    assert printed.exit_code == 0
    assert parse_webhook_secrets(printed.stdout.strip()) == owner_keys([b"new", b"old"], "alice")


@pytest.mark.usefixtures("_webhook_settings")
def test_webhook_secret_refuses_unknown_owners() -> None:
    refused = CliRunner().invoke(main, ["webhook-secret", "mallory"])
    assert refused.exit_code == 1
    assert "no API key has the name 'mallory': the names are alice, bob" in refused.stderr


@pytest.mark.usefixtures("_webhook_settings")
def test_webhook_secret_names_the_missing_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SHRINKSTREAM_WEBHOOK_SECRET")
    refused = CliRunner().invoke(main, ["webhook-secret", "alice"])
    assert refused.exit_code == 1
    assert "SHRINKSTREAM_WEBHOOK_SECRET is not set" in refused.stderr


@pytest.mark.usefixtures("_webhook_settings")
def test_webhook_secret_needs_no_api_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    # The projections container has the secret, and no API keys.
    monkeypatch.setenv("SHRINKSTREAM_API_KEYS", "")
    printed = CliRunner().invoke(main, ["webhook-secret", "alice"])
    assert printed.exit_code == 0
    assert parse_webhook_secrets(printed.stdout.strip()) == owner_keys([b"new", b"old"], "alice")
    assert "'alice' is not checked" in printed.stderr


@pytest.mark.usefixtures("_webhook_settings")
def test_settings_show_the_host_of_the_default_receiver() -> None:
    printed = CliRunner().invoke(main, ["settings"]).stdout
    assert "https://hooks.example/…" in printed
    assert "T0KEN" not in printed
    assert "s3cret" not in printed
