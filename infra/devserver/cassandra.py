"""Embedded Cassandra: one node on loopback, as a child process."""

import asyncio
import ssl
from pathlib import Path
from string import Template

from cassandra import DriverException
from cassandra.auth import PlainTextAuthProvider
from cassandra.cluster import EXEC_PROFILE_DEFAULT, Cluster, ExecutionProfile, NoHostAvailable
from cassandra.policies import WhiteListRoundRobinPolicy

from infra.devserver.ports import LOOPBACK
from infra.devserver.security import Security
from infra.devserver.server import HERE, EmbeddedServer

PROBE_SECONDS = 5.0
PROTOCOL_VERSION = 5  # the newest that Cassandra 5.0 speaks


SECURITY = Template("""\
authenticator: {class_name: PasswordAuthenticator}
role_manager: {class_name: CassandraRoleManager}
client_encryption_options:
  enabled: true
  optional: false
  require_client_auth: false
  ssl_context_factory: {class_name: org.apache.cassandra.security.PEMBasedSslContextFactory}
  keystore: "$keystore"
""")
FIRST_USER = "cassandra"  # name and password of the superuser that a new node creates


class EmbeddedCassandra(EmbeddedServer):
    """One Cassandra node; its only remote access is CQL on loopback, without JMX.

    ``security`` requires TLS and a login. Its user must be the superuser that a new node creates,
    ``cassandra`` with that password; clients may create others.
    """

    name = "Cassandra"
    server = "cassandra"
    port_names = ("client", "storage")
    stop_seconds = 30.0

    def __init__(self, data_dir: Path, security: Security | None = None) -> None:
        super().__init__(data_dir)
        if security is not None and (security.username, security.password) != (FIRST_USER, FIRST_USER):
            raise ValueError(f"the only user of a new Cassandra is {FIRST_USER}")
        self._security = security

    async def prepare(self) -> list[str]:
        config = self.write_config(
            "cassandra.yaml",
            host=LOOPBACK,
            client_port=self._ports["client"],
            storage_port=self._ports["storage"],
            security=SECURITY.substitute(keystore=self._security.keystore) if self._security else "",
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
        only_this = ExecutionProfile(WhiteListRoundRobinPolicy([LOOPBACK]), request_timeout=PROBE_SECONDS)
        with Cluster(
            [LOOPBACK],
            self.port,
            protocol_version=PROTOCOL_VERSION,
            connect_timeout=PROBE_SECONDS,
            control_connection_timeout=PROBE_SECONDS,
            execution_profiles={EXEC_PROFILE_DEFAULT: only_this},
            auth_provider=PlainTextAuthProvider(FIRST_USER, FIRST_USER) if self._security else None,
            ssl_context=ssl.create_default_context(cafile=self._security.cafile) if self._security else None,
        ) as cluster:
            try:
                return cluster.connect().execute("SELECT release_version FROM system.local").one() is not None
            except (NoHostAvailable, DriverException):
                return False
