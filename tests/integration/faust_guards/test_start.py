"""F9 and the start: what is missing is one clear line, and the app carries its guards anywhere."""

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import faust
import pytest
from faust.transport.drivers.aiokafka import credentials_to_aiokafka_auth
from pydantic import SecretStr

from infra.errors import EXIT_FATAL
from infra.faust import app as faust_app
from infra.kafka.client import connection_options
from infra.settings import Settings
from tests.integration.faust_guards.cluster import Cluster
from tests.integration.faust_guards.group import EXIT_SECONDS, Group
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

UNAVAILABLE = 69


def test_missing_topic_error_names_topic_and_command(
    new_group: Callable[..., Group],
) -> None:
    group = new_group(table=True, create=False)
    assert group.start().wait(EXIT_SECONDS) == UNAVAILABLE
    output = group.output()
    assert group.topic in output
    assert group.changelog in output
    assert "shrinkstream init" in output
    assert "Traceback" not in output


def test_worker_refuses_changelog_with_other_partitions(new_group: Callable[..., Group]) -> None:
    group = new_group(table=True, partitions=4, create=False)
    group.cluster.create_topic(group.topic, 4)
    group.cluster.create_topic(group.changelog, 8)
    assert group.start().wait(EXIT_SECONDS) == UNAVAILABLE
    assert "SHRINKSTREAM_PARTITIONS is 4, but topics have other" in group.output()


def test_unreachable_brokers_are_named(tmp_path: Path) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        group = Group(Cluster(address), tmp_path, create=False)
        try:
            assert group.start().wait(EXIT_SECONDS) == UNAVAILABLE
        finally:
            group.kill_all()
    assert f"Kafka can't be reached at {address}" in group.output()
    assert "Traceback" not in group.output()


def test_faust_command_runs_the_guarded_worker(new_group: Callable[..., Group]) -> None:
    group = new_group(in_flight=2)
    group.produce([b"", b""])
    app = "tests.integration.faust_guards.worker"
    worker = group.start("faust", "-A", app, "worker", "-l", "info")
    wait_until(lambda: len(group.finished()) == 2, "two events")
    assert group.stop(worker) == 0
    assert group.committed() == {0: 2}
    assert {path.name for path in group.folder.iterdir()} == {"data", "journal", "worker-0.log"}

    group.produce([b"raise"])
    assert group.start("faust", "-A", app, "worker", "-l", "info").wait(EXIT_SECONDS) == EXIT_FATAL


@pytest.mark.parametrize("setting", sorted(faust_app.FIXED))
def test_no_override_removes_a_guard(setting: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=setting):
        faust_app.create_app(
            "app", role="progress", settings=Settings(data_dir=tmp_path), partitions=1, **{setting: None}
        )


def test_other_version_of_faust_is_rejected(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(faust, "__version__", "0.15.4")
    with pytest.raises(RuntimeError, match=r"0\.15\.4"):
        faust_app.create_app("app", role="progress", settings=Settings(data_dir=tmp_path), partitions=1)


@pytest.mark.parametrize("protocol", ["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"])
def test_faust_uses_credentials_of_our_clients(
    protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"], tmp_path: Path
) -> None:
    settings = Settings(
        data_dir=tmp_path,
        kafka_brokers="one:9092, two:9093",
        kafka_security_protocol=protocol,
        kafka_sasl_mechanism="SCRAM-SHA-512",
        kafka_sasl_username="user",
        kafka_sasl_password=SecretStr("secret"),
    )
    conf = faust_app.create_app("app", role="progress", settings=settings, partitions=1).conf
    ours = connection_options(settings)
    theirs = {"ssl_context": None, **credentials_to_aiokafka_auth(conf.broker_credentials, conf.ssl_context)}
    assert [(url.host, url.port) for url in conf.broker] == [("one", 9092), ("two", 9093)]
    assert bool(theirs.pop("ssl_context")) == bool(ours["ssl_context"])
    assert theirs == {name: ours[name] for name in theirs}
    assert len(theirs) == (4 if protocol.startswith("SASL") else 1)
