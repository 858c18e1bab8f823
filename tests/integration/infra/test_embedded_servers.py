"""The embedded Kafka and Cassandra keep their data, and never outlive the process that started them."""

import asyncio
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError, UnknownTopicOrPartitionError
from cassandra import DriverException
from cassandra.auth import PlainTextAuthProvider
from cassandra.cluster import EXEC_PROFILE_DEFAULT, Cluster, ExecutionProfile, NoHostAvailable
from cassandra.policies import WhiteListRoundRobinPolicy

from infra.cassandra.session import PROTOCOL_VERSION
from infra.devserver.cassandra import EmbeddedCassandra
from infra.devserver.kafka import EmbeddedKafka
from infra.devserver.security import Security
from infra.devserver.server import EmbeddedServer, EmbeddedServerError
from infra.devserver.servers import EmbeddedServers
from tests.support.processes import is_gone

pytestmark = pytest.mark.slow

END_SECONDS = 120.0

each_server = pytest.mark.parametrize("kind", [EmbeddedKafka, EmbeddedCassandra])


async def write_to_kafka(address: str, values: Sequence[str], then: Callable[[], None]) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=address)
    await admin.start()
    try:
        if "kept" not in await admin.list_topics():
            await admin.create_topics([NewTopic("kept", 1, 1)])
    finally:
        await admin.close()
    producer = AIOKafkaProducer(bootstrap_servers=address, acks="all", enable_idempotence=True)
    await producer.start()
    try:
        for value in values:
            await producer.send_and_wait("kept", value.encode())
        then()
    finally:
        await producer.stop()


async def read_from_kafka(address: str) -> list[str]:
    consumer = AIOKafkaConsumer(bootstrap_servers=address, auto_offset_reset="earliest")
    partition = TopicPartition("kept", 0)
    consumer.assign([partition])
    await consumer.start()
    try:
        end = (await consumer.end_offsets([partition]))[partition]
        values: list[str] = []
        async with asyncio.timeout(END_SECONDS):
            while len(values) < end:
                values += [
                    record.value.decode() for record in (await consumer.getmany(timeout_ms=500)).get(partition, ())
                ]
        return values
    finally:
        await consumer.stop()


def cluster_of(address: str) -> Cluster:
    host, port = address.split(":")
    profile = ExecutionProfile(WhiteListRoundRobinPolicy([host]))
    return Cluster(
        [host], int(port), protocol_version=PROTOCOL_VERSION, execution_profiles={EXEC_PROFILE_DEFAULT: profile}
    )


def write_to_cassandra(address: str, values: Sequence[str], then: Callable[[], None]) -> None:
    with cluster_of(address) as cluster:
        session = cluster.connect()
        session.execute(
            "CREATE KEYSPACE IF NOT EXISTS kept WITH replication = {'class': 'SimpleStrategy', 'replication_factor': 1}"
        )
        session.execute("CREATE TABLE IF NOT EXISTS kept.v (k int, v text, PRIMARY KEY (k, v))")
        insert = session.prepare("INSERT INTO kept.v (k, v) VALUES (0, ?)")
        for value in values:
            session.execute(insert, [value])
        then()


def read_from_cassandra(address: str) -> list[str]:
    with cluster_of(address) as cluster:
        return [row.v for row in cluster.connect().execute("SELECT v FROM kept.v WHERE k = 0")]


async def write(kind: type[EmbeddedServer], address: str, values: Sequence[str], then: Callable[[], None]) -> None:
    """Write each and wait for its acknowledgement; after the last do ``then`` at once."""
    if kind is EmbeddedKafka:
        await write_to_kafka(address, values, then)
    else:
        await asyncio.to_thread(write_to_cassandra, address, values, then)


async def read(server: EmbeddedServer) -> list[str]:
    if isinstance(server, EmbeddedKafka):
        return await read_from_kafka(server.address)
    return await asyncio.to_thread(read_from_cassandra, server.address)


PARENT = """
import asyncio, sys
from pathlib import Path
from infra.devserver.kafka import EmbeddedKafka
from infra.cassandra.session import PROTOCOL_VERSION
from infra.devserver.cassandra import EmbeddedCassandra

async def main():
    server = {"kafka": EmbeddedKafka, "cassandra": EmbeddedCassandra}[sys.argv[1]](Path(sys.argv[2]))
    await server.start()
    print(server.process.pid, server.address, flush=True)
    await server.process.wait()

asyncio.run(main())
"""


def children() -> set[psutil.Process]:
    """This process's, those of other tests' servers included."""
    return set(psutil.Process().children(recursive=True))


def listens_on(server: EmbeddedServer) -> set[str]:
    """Addresses, of which there is one for each port; the ports are checked."""
    process = psutil.Process(server.process.pid)
    listening = {c.laddr for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
    assert len(listening) == len(server.port_names)
    return {address.ip.removeprefix("::ffff:") for address in listening}


# One test for all that needs a started server: each start of one costs seconds of both cores.
@each_server
async def test_server_keeps_data_and_serves_only_its_owner(kind: type[EmbeddedServer], tmp_path: Path) -> None:
    data_dir = tmp_path / "data dir ü"  # neither a space nor a letter outside of ASCII does harm
    values = [f"{number:03}" for number in range(200)]
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, kind.server, str(data_dir)], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        started, address = (await asyncio.to_thread(parent.stdout.readline)).split()
        assert psutil.pid_exists(int(started))
        await write(kind, address, values[:100], then=parent.kill)

    # It died with its parent, and the next one starts at once.
    async with kind(data_dir) as server:
        assert is_gone(int(started))
        assert server.address == address
        assert await read(server) == values[:100]
        await write(kind, address, values[100:], then=lambda: os.kill(server.process.pid, signal.SIGKILL))
        assert await server.process.wait() == -signal.SIGKILL

    # Somebody else has the port now: the server moves to another one, with its data.
    taken = await asyncio.start_server(lambda _reader, _writer: None, *address.split(":"))
    before = children()
    async with taken, kind(data_dir) as server:
        assert server.address != address
        assert await read(server) == values
        assert listens_on(server) == {"127.0.0.1"}
        with pytest.raises(EmbeddedServerError, match=f"another {kind.name} is running on .*{kind.server}"):
            await kind(data_dir).start()
        assert server.process.returncode is None
    assert is_gone(server.process.pid)
    assert children() == before


@each_server
async def test_server_dying_at_start_is_reported_with_its_log(kind: type[EmbeddedServer], tmp_path: Path) -> None:
    server = kind(tmp_path)
    server.directory.mkdir()
    (server.directory / "data").write_text("not a directory")
    with pytest.raises(EmbeddedServerError) as failure:
        await server.start()
    message = str(failure.value)
    assert message.startswith(f"{kind.name} ended with status ")
    assert str(server.directory / "data") in message
    assert message.endswith(f"(log: {server.log_path})")
    assert "\n" not in message


@each_server
async def test_server_missing_its_start_deadline_is_stopped(kind: type[EmbeddedServer], tmp_path: Path) -> None:
    server = kind(tmp_path)
    with pytest.raises(EmbeddedServerError, match=r"no answer within 0\.05 s: .* \(log: "):
        await server.start(timeout=0.05)
    assert is_gone(server.process.pid)


async def test_failure_of_one_server_stops_the_other(tmp_path: Path) -> None:
    kafka, cassandra = EmbeddedKafka(tmp_path), EmbeddedCassandra(tmp_path)
    kafka.directory.mkdir()
    (kafka.directory / "data").write_text("not a directory")
    before = children()

    with pytest.raises(EmbeddedServerError, match=r"^Kafka ended"):
        async with EmbeddedServers(kafka, cassandra):
            pytest.fail("one of them can't start")
    assert children() == before


async def test_cluster_id_with_leading_dash_is_no_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dash_in_base64 = uuid.UUID(bytes=bytes([0b111110_00]) + bytes(15))
    monkeypatch.setattr(uuid, "uuid4", lambda: dash_in_base64)

    kafka = EmbeddedKafka(tmp_path)
    with pytest.raises(EmbeddedServerError, match="no answer"):  # it is formatted before that time counts
        await kafka.start(timeout=0.05)
    assert "cluster.id=-" in (kafka.directory / "data" / "meta.properties").read_text()


async def test_kafka_creates_no_topics_automatically(kafka_address: str) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=kafka_address, request_timeout_ms=3000)
    await producer.start()
    try:
        with pytest.raises(UnknownTopicOrPartitionError):
            await producer.send_and_wait("no-such-topic", b"lost?")
    finally:
        await producer.stop()


async def kafka_answers(address: str, **credentials: str) -> bool:
    client = AIOKafkaAdminClient(bootstrap_servers=address, request_timeout_ms=30000, **credentials)
    try:
        async with asyncio.timeout(60):
            await client.start()
            return bool((await client.describe_cluster())["brokers"])
    except (KafkaError, TimeoutError, OSError):
        return False
    finally:
        await client.close()


def cassandra_answers(address: str, login: PlainTextAuthProvider | None) -> bool:
    with cluster_of(address) as cluster:
        cluster.auth_provider = login
        try:
            return cluster.connect().execute("SELECT release_version FROM system.local").one() is not None
        except (NoHostAvailable, DriverException):
            return False


def plain_login(security: Security) -> dict[str, str]:
    return {
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_mechanism": "PLAIN",
        "sasl_plain_username": security.username,
        "sasl_plain_password": security.password,
    }


async def test_generated_password_keeps_other_local_users_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHRINKSTREAM_API_KEYS", "SECRET")
    security = Security.remembered(tmp_path / "password")
    wrong = replace(security, password="cassandra")
    for _ in range(2):  # a new data dir, and a used one
        assert Security.remembered(tmp_path / "password") == security
        kafka, cassandra = EmbeddedKafka(tmp_path, security), EmbeddedCassandra(tmp_path, security)
        async with EmbeddedServers(kafka, cassandra):
            controller = f"127.0.0.1:{kafka._ports['controller']}"
            assert await kafka_answers(kafka.address, **plain_login(security))
            assert not await kafka_answers(kafka.address)
            assert not await kafka_answers(controller)
            assert not await kafka_answers(kafka.address, **plain_login(wrong))
            for login, answers in (
                (PlainTextAuthProvider(security.username, security.password), True),
                (PlainTextAuthProvider(wrong.username, wrong.password), False),
                (None, False),
            ):
                assert await asyncio.to_thread(cassandra_answers, cassandra.address, login) is answers
            assert "SHRINKSTREAM" not in " ".join(psutil.Process(kafka.process.pid).environ())
    others = [path for path in (tmp_path / "kafka", tmp_path / "cassandra") if path.stat().st_mode & 0o077]
    assert (tmp_path / "password").stat().st_mode & 0o077 == 0
    assert others == []
