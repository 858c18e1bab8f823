"""Jars come from a Maven repository (here: one on loopback), are checked against the lock, and stay installed."""

import hashlib
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.devserver import jars
from infra.devserver.jars import Jar, JarError


@dataclass
class Repository:
    """A Maven repository of files that counts what it is asked, and can be out of order for some requests."""

    root: Path
    url: str = ""
    asked: list[str] = field(default_factory=list)
    failures: int = 0

    def publish(self, coordinates: str, content: bytes, *dependencies: str) -> Jar:
        """Put a jar and its POM there; the jar as a lock would describe it."""
        jar = Jar.parse(coordinates, hashlib.sha256(content).hexdigest())
        path = self.root / jar.repository_path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        needs = "".join(
            f"<dependency><groupId>{d.group}</groupId><artifactId>{d.artifact}</artifactId>"
            f"<version>{d.version}</version></dependency>"
            for d in (Jar.parse(dependency, "") for dependency in dependencies)
        )
        path.with_name(f"{jar.artifact}-{jar.version}.pom").write_text(
            f"<project><modelVersion>4.0.0</modelVersion><groupId>{jar.group}</groupId>"
            f"<artifactId>{jar.artifact}</artifactId><version>{jar.version}</version>"
            f"<dependencies>{needs}</dependencies></project>"
        )
        return jar


class Handler(SimpleHTTPRequestHandler):
    def __init__(self, repository: Repository, *arguments: object) -> None:
        self.repository = repository
        super().__init__(*arguments, directory=str(repository.root))  # type: ignore[arg-type]  # as socketserver does

    def do_GET(self) -> None:
        self.repository.asked.append(self.path)
        if self.repository.failures:
            self.repository.failures -= 1
            self.send_error(503)
        else:
            super().do_GET()

    def log_message(self, *_: object) -> None:
        """Not into the test's output."""


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Repository]:
    """A repository that jgo's own configuration file names in place of its default one."""
    repository = Repository(tmp_path / "repository")
    repository.root.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, repository)) as server:
        serving = threading.Thread(target=server.serve_forever, args=(0.05,))
        serving.start()
        repository.url = f"http://127.0.0.1:{server.server_port}"
        point_jgo_to(repository.url, tmp_path, monkeypatch)
        try:
            yield repository
        finally:
            server.shutdown()
            serving.join()


def point_jgo_to(url: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "jgo.conf").write_text(f"[repositories]\ncentral = {url}\n")
    monkeypatch.setenv("JGO_CONFIG_FILE", str(folder / "jgo.conf"))


def test_second_install_fetches_no_jar(repository: Repository, tmp_path: Path) -> None:
    wanted = [repository.publish(f"org.example:part{n}:1.{n}", b"content %d" % n) for n in range(20)]
    wanted.append(repository.publish("org.example:native:osx:2", b"with a classifier"))
    installed = tmp_path / "environment" / "jars"

    assert jars.install(wanted, installed) == 21
    assert len(repository.asked) == 21
    assert {path.name for path in installed.iterdir()} == {jar.filename for jar in wanted}
    assert (installed / "part7-1.7.jar").read_bytes() == b"content 7"
    assert (installed / "native-2-osx.jar").read_bytes() == b"with a classifier"

    assert jars.install(wanted, installed) == 0
    assert len(repository.asked) == 21


def test_jar_contradicting_the_lock_is_rejected(repository: Repository, tmp_path: Path) -> None:
    jar = repository.publish("org.example:part:1", b"what was locked")
    (repository.root / jar.repository_path).write_bytes(b"what somebody put there")

    with pytest.raises(JarError, match=rf"part-1\.jar has SHA-256 .*, not the {jar.sha256} of the lock") as refusal:
        jars.install([jar], tmp_path / "jars")
    assert "\n" not in str(refusal.value)
    assert list((tmp_path / "jars").iterdir()) == []
    assert len(repository.asked) == 1  # asking again would not make it right


def test_damaged_jar_is_fetched_again(repository: Repository, tmp_path: Path) -> None:
    jar = repository.publish("org.example:part:1", b"right")
    jars.install([jar], tmp_path)
    (tmp_path / jar.filename).write_bytes(b"wrong")

    assert jars.install([jar], tmp_path) == 1
    assert (tmp_path / jar.filename).read_bytes() == b"right"


@pytest.mark.slow
def test_transient_failure_is_retried(repository: Repository, tmp_path: Path) -> None:
    jar = repository.publish("org.example:part:1", b"right")
    repository.failures = 1

    assert jars.install([jar], tmp_path / "jars") == 1
    assert len(repository.asked) == 2


@pytest.mark.slow
def test_missing_jar_is_one_error_after_bounded_attempts(repository: Repository, tmp_path: Path) -> None:
    jar = Jar.parse("org.example:nowhere:1", "0" * 64)
    with pytest.raises(JarError, match=r"^cannot fetch org\.example:nowhere:1 \(3 attempts\): 404") as failure:
        jars.install([jar], tmp_path / "jars")
    assert "\n" not in str(failure.value)
    assert len(repository.asked) == jars.ATTEMPTS


@pytest.mark.slow
def test_command_without_repository_exits_1_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    point_jgo_to("http://127.0.0.1:1", tmp_path, monkeypatch)  # tcpmux: nobody listens there
    monkeypatch.setattr(jars, "INSTALLED", tmp_path / "jars")

    assert jars.main([]) == 1
    first, *rest = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"\d+ jars for Kafka .* and Cassandra .* …", first)
    assert len(rest) == 1
    assert re.match(r"error: cannot fetch \S+ \(3 attempts\): .*refused", rest[0])


def test_lock_holds_dependencies_of_roots_and_installs_from_it(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kafka = repository.publish("org.example:kafka:1", b"kafka", "org.example:shared:3")
    cassandra = repository.publish("org.example:cassandra:2", b"cassandra", "org.example:shared:3")
    shared = repository.publish("org.example:shared:3", b"shared")
    monkeypatch.setattr(jars, "ROOTS", {"kafka": [kafka.coordinates], "cassandra": [cassandra.coordinates]})
    lock, installed = tmp_path / "jars.toml", tmp_path / "jars"

    jars.write_lock(lock)

    assert jars.read_lock("kafka", lock) == [kafka, shared]
    assert jars.read_lock("cassandra", lock) == [cassandra, shared]
    assert jars.ensure_jars("kafka", lock=lock, directory=installed) == [
        installed / "kafka-1.jar",
        installed / "shared-3.jar",
    ]


@pytest.mark.parametrize("server", ["kafka", "cassandra"])
def test_committed_lock_matches_roots_and_has_every_checksum(server: jars.Server) -> None:
    locked = jars.read_lock(server)
    assert set(jars.ROOTS[server]) <= {jar.coordinates for jar in locked}
    assert all(re.fullmatch("[0-9a-f]{64}", jar.sha256) for jar in locked)


def test_jars_of_committed_lock_have_distinct_file_names() -> None:
    locked = {*jars.read_lock("kafka"), *jars.read_lock("cassandra")}
    assert len({jar.filename for jar in locked}) == len(locked)


part = st.text("abcxyz019._", min_size=1)


@given(group=part, artifact=part, classifier=st.one_of(st.just(""), part), version=part)
def test_coordinates_survive_a_round_trip(group: str, artifact: str, classifier: str, version: str) -> None:
    jar = Jar(group, artifact, version, classifier, "")
    assert Jar.parse(jar.coordinates, "") == jar


@pytest.mark.parametrize("coordinates", ["", "a", "a:b", "a:b:c:d:e"])
def test_malformed_coordinates_are_rejected(coordinates: str) -> None:
    with pytest.raises(JarError, match="group:artifact"):
        Jar.parse(coordinates, "")


def test_native_code_of_other_platforms_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    classifiers = ["", "native", "shaded", "linux-x86_64", "linux-aarch_64", "osx-aarch_64", "windows-x86_64"]
    for system, machine, own in (
        ("linux", "x86_64", "linux-x86_64"),
        ("linux", "aarch64", "linux-aarch_64"),
        ("darwin", "arm64", "osx-aarch_64"),
    ):
        monkeypatch.setattr("sys.platform", system)
        monkeypatch.setattr("platform.machine", lambda machine=machine: machine)
        kept = [c for c in classifiers if Jar("g", "a", "1", c, "").is_for_this_machine]
        assert kept == ["", "native", "shaded", own]
