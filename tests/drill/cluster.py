"""A cluster of embedded servers: three Kafka brokers with controllers, and three Cassandra nodes."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cassandra import ConsistencyLevel, DriverException
from cassandra.cluster import EXEC_PROFILE_DEFAULT, Cluster, ExecutionProfile, NoHostAvailable
from cassandra.policies import WhiteListRoundRobinPolicy
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from infra.cassandra.session import PROTOCOL_VERSION
from infra.devserver.cassandra import EmbeddedCassandra
from infra.devserver.kafka import JVM_OPTIONS, EmbeddedKafka
from infra.devserver.ports import remembered_ports
from infra.devserver.server import EmbeddedServer

NODES = 3
CLUSTER_ID = "c2hyaW5rc3RyZWFtLWRyaQ=="
HEAP = "-Xmx384m"
PROBE_SECONDS = 10.0
PREFERRED_LEADERS = """
leader.imbalance.check.interval.seconds=5
leader.imbalance.per.broker.percentage=0
"""

# A new node has its share of the ring at once, without streaming; a restarted one waits until gossip has settled, and
# announces its stop, as in production.
TOKENS = tuple(str(-(2**63) + number * (2**64 // NODES)) for number in range(1, NODES + 1))
RING_OPTIONS = (
    "-Dcassandra.skip_wait_for_gossip_to_settle=-1",
    "-Dcassandra.shutdown_announce_in_ms=2000",
    "-Dcassandra.ring_delay_ms=30000",  # how long a starting node looks for another one
)


class ProxiedKafka(EmbeddedKafka):
    """A broker whose clients are sent to a proxy."""

    proxy_address = ""

    def write_config(self, name: str, **values: object) -> Path:
        path = super().write_config(name, **values)
        _replace(
            path,
            (f"advertised.listeners=CLIENT://{self.address}", f"advertised.listeners=CLIENT://{self.proxy_address}"),
        )
        return path


class ClusterKafka(ProxiedKafka):
    """A broker and controller of a cluster. Brokers reach each other without the proxies."""

    port_names = ("client", "controller", "internal")

    def __init__(self, data_dir: Path, number: int, nodes: Sequence["ClusterKafka"]) -> None:
        """``nodes``: all of the cluster, once they are made; ``number`` counts from 1."""
        super().__init__(data_dir / str(number))
        self.number = number
        self._nodes = nodes
        self.directory.mkdir(mode=0o700, parents=True)
        self._chosen = remembered_ports(self.directory / "ports.json", self.port_names)

    def choose_ports(self) -> dict[str, int]:
        return self._chosen  # all nodes know them before the first one starts

    def write_config(self, name: str, **values: object) -> Path:
        path = super().write_config(name, **values)
        internal = f"INTERNAL://{self.host}:{self._chosen['internal']}"
        quorum = ",".join(f"{node.number}@{node.host}:{node._chosen['controller']}" for node in self._nodes)
        text = path.read_text()
        text = re.sub(r"(?m)^node.id=.*$", f"node.id={self.number}", text)
        text = re.sub(r"(?m)^controller.quorum.voters=.*$", f"controller.quorum.voters={quorum}", text)
        text = re.sub(r"(?m)^((?:advertised\.)?listeners=.*)$", rf"\1,{internal}", text)
        text = re.sub(r"(?m)^(listener.security.protocol.map=.*)$", r"\1,INTERNAL:PLAINTEXT", text)
        text = text.replace("inter.broker.listener.name=CLIENT", "inter.broker.listener.name=INTERNAL")
        text = re.sub(r"(?m)^(.*replication\.factor)=1$", rf"\1={NODES}", text)
        text = re.sub(r"(?m)^(.*min\.isr)=1$", rf"\1={NODES - 1}", text)
        path.write_text(text + PREFERRED_LEADERS)
        return path

    async def _run(self, *command: str) -> None:
        ours = (f"--cluster-id={CLUSTER_ID}" if each.startswith("--cluster-id=") else each for each in command)
        await super()._run(*ours)

    async def prepare(self) -> list[str]:
        arguments = await super().prepare()
        return [*JVM_OPTIONS, HEAP, *arguments[len(JVM_OPTIONS) :]]


class ClusterCassandra(EmbeddedCassandra):
    """A node at an address of its own, with the ports of all others; clients are sent to ``proxy_host``."""

    def __init__(self, data_dir: Path, number: int, ports: dict[str, int]) -> None:
        super().__init__(data_dir / str(number))
        self.host = f"127.0.0.{number}"
        self.proxy_host = f"127.0.1.{number}"
        self._token = TOKENS[number - 1]
        self._chosen = ports

    def choose_ports(self) -> dict[str, int]:
        return self._chosen

    def write_config(self, name: str, **values: object) -> Path:
        path = super().write_config(name, **values)
        seed = f"127.0.0.1:{self._chosen['storage']}"
        _replace(
            path,
            (f'seeds: "{self.host}:{self._chosen["storage"]}"', f'seeds: "{seed}"'),
            (
                f"rpc_address: {self.host}",
                f"rpc_address: {self.host}\nbroadcast_rpc_address: {self.proxy_host}\nauto_bootstrap: false",
            ),
            ("num_tokens: 1", f'num_tokens: 1\ninitial_token: "{self._token}"'),
        )
        return path

    async def prepare(self) -> list[str]:
        arguments = await super().prepare()
        return [arguments[0], HEAP, *RING_OPTIONS, *arguments[1:]]


def _replace(path: Path, *changes: tuple[str, str]) -> None:
    text = path.read_text()
    for old, new in changes:
        assert old in text, f"{path.name} lacks {old}"
        text = text.replace(old, new)
    path.write_text(text)


def is_in_sync(addresses: str, brokers: int) -> bool:
    """Whether all of so many brokers run, and each partition has all of its replicas in sync."""
    found = _metadata(addresses)
    return (
        found is not None
        and len(found.brokers) == brokers
        and all(len(each.isrs) == len(each.replicas) for each in _partitions(found))
    )


def has_preferred_leaders(addresses: str) -> bool:
    """Whether each partition has the leader that it had at first."""
    found = _metadata(addresses)
    return found is not None and all(each.leader == each.replicas[0] for each in _partitions(found))


def _metadata(addresses: str) -> Any:
    try:
        return AdminClient({"bootstrap.servers": addresses, "log_level": 0}).list_topics(timeout=PROBE_SECONDS)
    except KafkaException:
        return None


def _partitions(found: Any) -> Iterator[Any]:
    for topic in found.topics.values():
        yield from topic.partitions.values()


def is_answered_by_all(node: EmbeddedServer, keyspace: str) -> bool:
    """Whether every replica answers a query that this node coordinates."""
    profile = ExecutionProfile(
        WhiteListRoundRobinPolicy([node.host]), consistency_level=ConsistencyLevel.ALL, request_timeout=PROBE_SECONDS
    )
    with Cluster(
        [node.host],
        node.port,
        protocol_version=PROTOCOL_VERSION,
        connect_timeout=PROBE_SECONDS,
        control_connection_timeout=PROBE_SECONDS,
        execution_profiles={EXEC_PROFILE_DEFAULT: profile},
    ) as cluster:
        try:
            cluster.connect().execute(f"SELECT number FROM {keyspace}.schema_migrations")
        except (NoHostAvailable, DriverException):
            return False
        return True
