"""The worked example of docs/adding-a-projection.md, done as a newcomer would do it: in a checkout, step by step."""

import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from infra.cassandra.schema import migrations
from infra.cassandra.session import Session
from infra.settings import PREFIX, Settings, environment_of
from streams.events.base import Event
from streams.log.producer import EventLog
from streams.log.reader import LogReader
from streams.log.topics import Topics
from tests.support import markdown
from tests.support.examples import failed, processed, requested
from tests.support.markdown import ROOT
from tests.support.shell import reader_folder, run_blocks
from tests.support.waiting import eventually

pytestmark = pytest.mark.slow

DOCUMENT = markdown.read("docs/adding-a-projection.md")
HOSTS = ("slow.example", "gone.example", "empty.example")
FAILURES = 600


class Newcomer:
    """Somebody with a checkout of their own, into which the files of the document are copied."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.folder = reader_folder(folder, settings.data_dir)
        (folder / "infra").unlink()
        for name in ("api", "infra", "streams", "tests"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", folder)
        self.files = {block.file: block.text for block in DOCUMENT.blocks if block.file}
        for name, text in self.files.items():
            assert not (folder / name).exists(), f"{name} is taken"
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text)
        told = environment_of(settings)
        (settings.data_dir / "env").write_text("".join(f"export {name}='{told[name]}'\n" for name in told))
        plain = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
        # Of the installed package, the one in this checkout is found first.
        self.environment = {**plain, "PYTHONPATH": str(folder)}
        self.enter, *self.commands = [block.text for block in DOCUMENT.of_language("sh")]

    def run(self, command: str, **variables: str) -> str:
        """The command of the document that has this in it, in the second terminal."""
        (block,) = [block for block in self.commands if command in block]
        return run_blocks([self.enter, block], folder=self.folder, environment={**self.environment, **variables})[1]

    @contextmanager
    def worker(self) -> Iterator["subprocess.Popen[bytes]"]:
        (block,) = [block for block in DOCUMENT.of_language("sh") if block.needs == "keeps-running"]
        script = f"{self.enter}exec {block.text}"
        with (self.folder / "worker.log").open("ab") as log:
            process = subprocess.Popen(
                ["bash", "-ec", script], cwd=self.folder, env=self.environment, stdout=log, stderr=log
            )
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def shown(self) -> Counter[tuple[str, str]]:
        lines = [line.split() for line in self.run("failures show").splitlines()]
        return Counter({(host, reason): int(count) for host, reason, count in lines})

    @property
    def log(self) -> str:
        return (self.folder / "worker.log").read_text()[-3000:]


@pytest.fixture
def newcomer(settings: Settings, tmp_path: Path) -> Newcomer:
    return Newcomer(tmp_path / "checkout", settings)


def failures(request_id: str) -> list[Event]:
    images = (
        requested(request_id, index, input_url=f"https://{HOSTS[index % len(HOSTS)]}/{index}.jpg")
        for index in range(FAILURES)
    )
    return [failed(image, "fetch_timeout" if image.index % 2 else "fetch_http_404") for image in images]


async def append(settings: Settings, events: Sequence[Event]) -> None:
    log = EventLog(settings)
    await log.start()
    for written in [await log.enqueue(event) for event in events]:
        await written
    await log.stop()


async def committed(settings: Settings) -> int:
    """How many events the app is done with, for ever."""
    topics = Topics(settings.topic_prefix)
    async with LogReader.open(settings) as reader:
        offsets = await reader.committed(topics.group("failures"), topics.image_results)
    return sum(max(0, offset) for offset in offsets.values())


async def rows(settings: Settings) -> int:
    session = await Session.connect(settings)
    try:
        ((count,),) = await session.execute("SELECT COUNT(*) FROM failures_by_host")
        return int(count)
    finally:
        await session.close()


async def forget_all(settings: Settings) -> None:
    session = await Session.connect(settings)
    try:
        for table in ("failures_by_host", "failing_hosts"):
            await session.execute_script(f"TRUNCATE {table}")
    finally:
        await session.close()


async def wait_for(
    newcomer: Newcomer, worker: "subprocess.Popen[bytes]", count: Callable[[], Coroutine[Any, Any, int]], least: int
) -> None:
    async def is_reached() -> bool:
        assert worker.poll() is None, newcomer.log
        return await count() >= least

    try:
        await eventually(is_reached)
    except TimeoutError:
        raise AssertionError(newcomer.log) from None


async def test_worked_example_survives_a_kill_and_a_replay(
    newcomer: Newcomer, settings: Settings, request_id: str
) -> None:
    events = failures(request_id)
    wanted = Counter((HOSTS[n % 3], "fetch_timeout" if n % 2 else "fetch_http_404") for n in range(FAILURES))
    (migration,) = [Path(name).name for name in newcomer.files if name.endswith(".cql")]
    assert migration.startswith(f"{migrations()[-1][0] + 1:04}_"), "it is to have the next number"
    assert newcomer.run("shrinkstream init") == f"created {migration}\n"

    await append(settings, events)
    with newcomer.worker() as killed:
        await wait_for(newcomer, killed, lambda: rows(settings), 1)
        killed.send_signal(signal.SIGKILL)
    assert await committed(settings) < FAILURES, "some of what it had done comes again"

    again = [*events[::7], processed(requested(request_id, FAILURES))]
    await append(settings, again)
    with newcomer.worker() as worker:
        # Meanwhile Kafka notices that the one before is dead.
        servers = {"TEST_KAFKA": str(settings.kafka_brokers), "TEST_CASSANDRA": str(settings.cassandra_hosts)}
        assert " passed" in newcomer.run("pytest", **servers)
        await wait_for(newcomer, worker, lambda: committed(settings), FAILURES + len(again))
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(120) == 0, newcomer.log
    assert newcomer.shown() == wanted

    await forget_all(settings)
    assert await rows(settings) == 0
    assert newcomer.run("failures replay") == f"{FAILURES + len(again)} events\n"
    assert newcomer.shown() == wanted


def test_worked_example_passes_ruff(newcomer: Newcomer) -> None:
    names = [name for name in newcomer.files if name.endswith(".py")]
    for check in (["check"], ["format", "--check"]):
        ran = subprocess.run(
            [sys.executable, "-m", "ruff", *check, *names],
            cwd=newcomer.folder,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
