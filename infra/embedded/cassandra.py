"""Cassandra as a child process: one node on loopback."""

import asyncio

from cassandra import DriverException
from cassandra.cluster import EXEC_PROFILE_DEFAULT, Cluster, ExecutionProfile, NoHostAvailable
from cassandra.policies import WhiteListRoundRobinPolicy

from infra.embedded.ports import LOOPBACK
from infra.embedded.server import HERE, EmbeddedServer

ASK_SECONDS = 5.0
PROTOCOL_VERSION = 5  # the newest that Cassandra 5.0 speaks


class EmbeddedCassandra(EmbeddedServer):
    """One Cassandra node without authentication, JMX or other remote access than CQL on loopback."""

    name = "Cassandra"
    server = "cassandra"
    port_names = ("client", "storage")
    stop_seconds = 30.0

    async def prepare(self) -> list[str]:
        config = self.write_config(
            "cassandra.yaml",
            host=LOOPBACK,
            client_port=self._ports["client"],
            storage_port=self._ports["storage"],
        )
        jamm = next(jar for jar in self._class_path if jar.name.startswith("jamm-"))
        return [
            f"@{HERE / 'cassandra-jvm.options'}",
            f"-javaagent:{jamm}",
            f"-Dcassandra.config={config.as_uri()}",
            f"-Dcassandra.storagedir={self.directory}",
            "-Dcassandra-foreground=yes",
            "org.apache.cassandra.service.CassandraDaemon",
        ]

    async def answers(self) -> bool:
        return await asyncio.to_thread(self._answers)

    def _answers(self) -> bool:
        only_this = ExecutionProfile(WhiteListRoundRobinPolicy([LOOPBACK]), request_timeout=ASK_SECONDS)
        with Cluster(
            [LOOPBACK],
            self.port,
            protocol_version=PROTOCOL_VERSION,
            connect_timeout=ASK_SECONDS,
            control_connection_timeout=ASK_SECONDS,
            execution_profiles={EXEC_PROFILE_DEFAULT: only_this},
        ) as cluster:
            try:
                return cluster.connect().execute("SELECT release_version FROM system.local").one() is not None
            except (NoHostAvailable, DriverException):
                return False
