"""Running APIs, as processes of their own, on the servers that all tests share; no worker runs beside them."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from infra.settings import Settings, environment_of
from tests.integration.conftest import system_with_topics
from tests.support import processes
from tests.support.published_clients import Answer, call

KEY, OTHER_KEY = "sesame", "open"


@dataclass(frozen=True)
class Api:
    """Where it is, and its settings; requests are made with its first key."""

    url: str
    settings: Settings
    process: "subprocess.Popen[bytes]" = field(repr=False)

    def call(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        """Header names are written with underscores."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        return call(self.url, method, path, body, {"X-API-Key": KEY, **given})

    def spooled(self) -> list[Path]:
        """The spool files that there are just now."""
        return list((self.settings.data_dir / "spool").glob("*"))


@contextmanager
def running_api(settings: Settings, **changes: Any) -> Iterator[Api]:
    """Start an API with these settings but for the ``changes``; end it with the block."""
    settings = settings.model_copy(update=changes)
    with processes.running_api({**os.environ, **environment_of(settings)}) as (process, url):
        yield Api(url, settings, process)


@pytest.fixture(scope="session")
def api(
    kafka_address: str, cassandra_address: str, keyspace: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Api]:
    """An API with two keys, which may be asked as often as one likes."""
    system = system_with_topics(kafka_address, tmp_path_factory.mktemp("api"))
    with running_api(
        system,
        cassandra_hosts=cassandra_address,
        cassandra_keyspace=keyspace,
        api_keys=SecretStr(f"shop:{KEY},other:{OTHER_KEY}"),
        max_upload_bytes=1024 * 1024,
        max_uploads=60,  # 15 for each key
        rate_limit=0,
    ) as running:
        yield running


@pytest.fixture(scope="session")
def strict_api(api: Api) -> Iterator[Api]:
    """Another on the same system, without keys: two uploads at once, and one friendly origin."""
    with running_api(api.settings, cors_origins="https://shop.example", api_keys=None, max_uploads=2) as running:
        yield running


@pytest.fixture
def limited_api(api: Api) -> Iterator[Api]:
    """Another on the same system, without keys, with a small rate limit that no other test has used up."""
    with running_api(api.settings, api_keys=None, rate_limit=0.5, rate_limit_burst=12) as running:
        yield running
