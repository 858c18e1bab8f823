"""Embedded Cassandra: one node on loopback, as a child process."""

import asyncio
import ssl
from pathlib import Path
from string import Template

from cassandra import DriverException
from cassandra.auth import PlainTextAuthProvider
from cassandra.cluster import EXEC_PROFILE_DEFAULT, Cluster, ExecutionProfile, NoHostAvailable
from cassandra.policies import WhiteListRoundRobinPolicy

from infra.cassandra.session import PROTOCOL_VERSION
from infra.devserver.security import USERNAME, Security
from infra.devserver.server import HERE, EmbeddedServer
from infra.observability.logs import silenced

PROBE_SECONDS = 5.0

# Without the cache, a changed password is valid at once.
SECURITY = """\
authenticator: {class_name: PasswordAuthenticator}
role_manager: {class_name: CassandraRoleManager}
credentials_validity: 0ms
"""
TLS = Template("""\
client_encryption_options:
  enabled: true
  optional: false
  require_client_auth: false
  ssl_context_factory: {class_name: org.apache.cassandra.security.PEMBasedSslContextFactory}
  keystore: "$keystore"
""")
FIRST_PASSWORD = USERNAME  # of the superuser that a new node creates
CHEAP_HASHES = "-Dcassandra.auth_bcrypt_gensalt_log2_rounds=4"
"""A generated password can't be guessed: hashing it slowly would only cost each connection some 0.1 s."""


class EmbeddedCassandra(EmbeddedServer):
    """One Cassandra node; its only remote access is CQL on loopback, without JMX.

    ``security`` requires a login, over TLS if it has certificates. Its user must be the superuser that a new node
    creates, whose password is changed before the node counts as ready; clients may create others.
    """

    name = "Cassandra"
    server = "cassandra"
    port_names = ("client", "storage")
    batch_bytes = 40 * 1024
    """Largest batch of history writes that the thresholds of its cassandra.yaml allow for."""
    stop_seconds = 30.0

    def __init__(self, data_dir: Path, security: Security | None = None) -> None:
        super().__init__(data_dir)
        if security is not None and security.username != USERNAME:
            raise ValueError(f"the only user of a new Cassandra is {USERNAME}")
        self._security = security

    async def prepare(self) -> list[str]:
        config = self.write_config(
            "cassandra.yaml",
            host=self.host,
            client_port=self._ports["client"],
            storage_port=self._ports["storage"],
            security=self._security_config(),
        )
        jamm = next(jar for jar in self._class_path if jar.name.startswith("jamm-"))
        return [
            f"@{HERE / 'cassandra-jvm.options'}",
            f"-javaagent:{jamm}",
            f"-Dcassandra.config={config.as_uri()}",
            f"-Dcassandra.storagedir={self.directory}",
            "-Dcassandra-foreground=yes",
            *([CHEAP_HASHES] if self._security else []),
            "org.apache.cassandra.service.CassandraDaemon",
        ]

    async def answers(self) -> bool:
        return await asyncio.to_thread(self._answers)

    def _security_config(self) -> str:
        if self._security is None:
            return ""
        return SECURITY + (TLS.substitute(keystore=self._security.keystore) if self._security.keystore else "")

    def _answers(self) -> bool:
        password = self._security.password if self._security else None
        if self._execute(password, "SELECT release_version FROM system.local"):
            return True
        if password is not None and password != FIRST_PASSWORD:
            self._execute(FIRST_PASSWORD, f"ALTER ROLE {USERNAME} WITH PASSWORD = '{password}'")
        return False

    def _execute(self, password: str | None, cql: str) -> bool:
        """Run a statement on this node; whether it was possible."""
        only_this = ExecutionProfile(WhiteListRoundRobinPolicy([self.host]), request_timeout=PROBE_SECONDS)
        cafile = self._security.cafile if self._security else None
        with Cluster(
            [self.host],
            self.port,
            protocol_version=PROTOCOL_VERSION,
            connect_timeout=PROBE_SECONDS,
            control_connection_timeout=PROBE_SECONDS,
            execution_profiles={EXEC_PROFILE_DEFAULT: only_this},
            auth_provider=PlainTextAuthProvider(USERNAME, password) if password else None,
            ssl_context=ssl.create_default_context(cafile=cafile) if cafile else None,
        ) as cluster:
            try:
                # Until a new node has its password, each attempt would be two tracebacks in the log.
                with silenced("cassandra.cluster"):
                    cluster.connect().execute(cql)
            except (NoHostAvailable, DriverException):
                return False
            return True
