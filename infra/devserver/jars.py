"""Jars of the embedded servers: downloaded once into the Python environment, verified against the lock.

``python -m infra.devserver.jars`` installs the missing jars; ``--lock`` resolves the dependencies again and
rewrites ``infra/locks/jars.toml``. jgo (a Maven resolver in Python) resolves them and provides the
repositories, including a mirror in its configuration file. Its downloader is not used: it opens
two connections per jar and leaves a truncated file behind when one fails (30 s against 1 s for 144 jars).
"""

import argparse
import hashlib
import platform
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import requests
from jgo.config import GlobalSettings
from jgo.maven import MavenContext
from requests.adapters import HTTPAdapter

from infra.errors import ExplainedError

Server = Literal["kafka", "cassandra"]

KAFKA_VERSION = "4.1.1"
CASSANDRA_VERSION = "5.0.5"

# Kafka's jars include no logging backend; this is Cassandra's, so both log the same way.
ROOTS: Mapping[Server, tuple[str, ...]] = {
    "kafka": (
        f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}",
        "org.slf4j:slf4j-api:1.7.36",
        "ch.qos.logback:logback-classic:1.2.12",
    ),
    "cassandra": (f"org.apache.cassandra:cassandra-all:{CASSANDRA_VERSION}",),
}

LOCK = Path(__file__).parent.parent / "locks" / "jars.toml"
INSTALLED = Path(sys.prefix) / "share" / "shrinkstream" / "jars"

CONNECTIONS = 6
ATTEMPTS = 3
CONNECT_SECONDS, READ_SECONDS, JAR_SECONDS = 10, 30, 300
MAX_JAR_BYTES = 100 * 1024 * 1024

_OPERATING_SYSTEMS = {"linux": "linux", "darwin": "osx"}
_MACHINES = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "aarch_64", "arm64": "aarch_64"}


class JarError(ExplainedError):
    """A jar can't be installed; the message says which and why."""


@dataclass(frozen=True)
class Jar:
    """One jar of a Maven repository, with its expected SHA-256."""

    group: str
    artifact: str
    version: str
    classifier: str
    sha256: str

    @classmethod
    def parse(cls, coordinates: str, sha256: str) -> "Jar":
        """Read ``group:artifact[:classifier]:version``."""
        match coordinates.split(":"):
            case [group, artifact, version]:
                return cls(group, artifact, version, "", sha256)
            case [group, artifact, classifier, version]:
                return cls(group, artifact, version, classifier, sha256)
        raise JarError(f"{coordinates!r} in the jar lock is not group:artifact[:classifier]:version")

    @property
    def coordinates(self) -> str:
        return ":".join(filter(None, (self.group, self.artifact, self.classifier, self.version)))

    @property
    def filename(self) -> str:
        return "-".join(filter(None, (self.artifact, self.version, self.classifier))) + ".jar"

    @property
    def repository_path(self) -> str:
        """Its path in a Maven repository (Maven's default repository layout)."""
        return f"{self.group.replace('.', '/')}/{self.artifact}/{self.version}/{self.filename}"

    @property
    def is_for_this_machine(self) -> bool:
        """False for native code of another platform: netty names the platform in the classifier."""
        system, _, machine = self.classifier.partition("-")
        if system not in {"linux", "osx", "windows"}:
            return True
        return system == _OPERATING_SYSTEMS.get(sys.platform) and machine == _MACHINES.get(platform.machine().lower())


def read_lock(server: Server, lock: Path = LOCK) -> list[Jar]:
    """The locked jars of one server for this platform, in class-path order."""
    with lock.open("rb") as file:
        jars = [Jar.parse(coordinates, sha256) for coordinates, sha256 in tomllib.load(file)[server].items()]
    return [jar for jar in jars if jar.is_for_this_machine]


def ensure_jars(server: Server, *, lock: Path = LOCK, directory: Path = INSTALLED) -> list[Path]:
    """The class path of a server; downloads missing or damaged jars, and needs no network otherwise.

    Raises JarError. Blocks: for seconds if jars are missing, else for some 50 ms of hashing.
    """
    jars = read_lock(server, lock)
    install(jars, directory)
    return [directory / jar.filename for jar in jars]


def install(jars: Iterable[Jar], directory: Path = INSTALLED) -> int:
    """Download into ``directory`` each jar that is missing or has a wrong checksum; returns their number.

    A file is renamed into place only when complete and verified, so concurrent installs do no harm.
    """
    missing = [jar for jar in jars if not is_intact(directory / jar.filename, jar.sha256)]
    if missing:
        directory.mkdir(parents=True, exist_ok=True)
        _fetch_all(missing, directory)
    return len(missing)


def is_intact(path: Path, sha256: str) -> bool:
    """Whether the file exists and has this checksum."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == sha256
    except FileNotFoundError:
        return False


def _repositories() -> dict[str, str]:
    """Name → URL: repositories of jgo's configuration file, then jgo's defaults unless one of that name replaces it."""
    configured = GlobalSettings.load().repositories
    return {**configured, **{k: v for k, v in MavenContext().remote_repos.items() if k not in configured}}


def _fetch_all(jars: Sequence[Jar], directory: Path) -> list[str]:
    """Download each into ``directory``; returns the SHA-256 of each. The first failure cancels the rest."""
    repositories = list(_repositories().values())
    with (
        tempfile.TemporaryDirectory(dir=directory, prefix=".partial-") as partial,
        requests.Session() as session,
        ThreadPoolExecutor(CONNECTIONS, "fetch-jar") as pool,
    ):
        adapter = HTTPAdapter(pool_maxsize=CONNECTIONS, pool_block=True)
        session.mount("https://", adapter)
        session.mount("http://", adapter)

        def fetch(jar: Jar) -> str:
            sha256 = _fetch(session, repositories, jar, Path(partial) / jar.filename)
            (Path(partial) / jar.filename).replace(directory / jar.filename)
            return sha256

        try:
            return list(pool.map(fetch, jars))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _fetch(session: requests.Session, repositories: Sequence[str], jar: Jar, path: Path) -> str:
    """Download one jar from the first repository that has it; transient errors are retried."""
    failure = "no repository is configured"
    for attempt in range(ATTEMPTS):
        time.sleep(attempt)
        for repository in repositories:
            url = f"{repository.rstrip('/')}/{jar.repository_path}"
            try:
                sha256 = _download(session, url, path)
            except (requests.RequestException, OSError) as error:
                failure = str(error)
                continue
            if jar.sha256 not in ("", sha256):
                raise JarError(f"{url} has SHA-256 {sha256}, not the {jar.sha256} of the lock; not installed")
            return sha256
    raise JarError(f"cannot fetch {jar.coordinates} ({ATTEMPTS} attempts): {failure}")


def _download(session: requests.Session, url: str, path: Path) -> str:
    deadline = time.monotonic() + JAR_SECONDS
    digest = hashlib.sha256()
    with session.get(url, stream=True, timeout=(CONNECT_SECONDS, READ_SECONDS)) as response, path.open("wb") as file:
        response.raise_for_status()
        for chunk in response.iter_content(1 << 16):
            digest.update(chunk)
            file.write(chunk)
            if file.tell() > MAX_JAR_BYTES or time.monotonic() > deadline:
                raise JarError(f"{url} is larger than {MAX_JAR_BYTES} bytes or takes over {JAR_SECONDS} s")
    return digest.hexdigest()


def resolve(roots: Iterable[str]) -> list[Jar]:
    """Run-time dependencies of the roots by Maven's resolution, without checksums."""
    with tempfile.TemporaryDirectory() as cache:
        context = MavenContext(repo_cache=Path(cache), remote_repos=_repositories())
        direct, transitive = context.resolver.resolve([context.create_dependency(root) for root in roots])
        needed = [*direct, *(d for d in transitive if d.scope in ("compile", "runtime"))]
        return [Jar(d.groupId, d.artifactId, d.version, d.classifier, "") for d in needed]


def write_lock(lock: Path = LOCK) -> None:
    """Resolve every server's jars again and write the lock with the checksums of the downloaded files."""
    lines = ["# Written by `make lock` (python -m infra.devserver.jars --lock): the SHA-256 of each jar."]
    for server, roots in ROOTS.items():
        jars = resolve(roots)
        with tempfile.TemporaryDirectory() as scratch:
            checksums = _fetch_all(jars, Path(scratch))
        lines += ["", f"[{server}]"]
        lines += [f'"{jar.coordinates}" = "{sha256}"' for jar, sha256 in zip(jars, checksums, strict=True)]
    lock.write_text("\n".join(lines) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m infra.devserver.jars", description=__doc__)
    parser.add_argument("--lock", action="store_true", help="resolve again and rewrite the lock, install nothing")
    started = time.monotonic()

    def say(text: str) -> None:
        sys.stderr.write(f"{text}\n")

    try:
        if parser.parse_args(arguments).lock:
            say("resolving the jars of Kafka and Cassandra (half a minute) …")
            write_lock(LOCK)
            say(f"wrote {LOCK} ({time.monotonic() - started:.1f} s)")
            return 0
        # A jar of both servers is in both lists and is downloaded once.
        jars = list(dict.fromkeys(jar for server in get_args(Server) for jar in read_lock(server, LOCK)))
        say(f"{len(jars)} jars for Kafka {KAFKA_VERSION} and Cassandra {CASSANDRA_VERSION} …")
        fetched = install(jars, INSTALLED)
    except JarError as error:
        say(f"error: {error}")
        return 1
    say(f"{fetched} jars fetched, {len(jars) - fetched} already installed ({time.monotonic() - started:.1f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
