"""Embedded Kafka: one KRaft node on loopback, as a child process."""

import asyncio
import base64
import ssl
import uuid
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from string import Template
from typing import Any, ClassVar, Literal

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from infra.devserver.ports import LOOPBACK
from infra.devserver.security import Security
from infra.devserver.server import EmbeddedServer, EmbeddedServerError

PROBE_SECONDS = 5.0
FORMAT_SECONDS = 60.0
JVM_OPTIONS = (
    *("-Xms64m", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:+ExitOnOutOfMemoryError"),
    "-XX:-UsePerfData",  # nobody reads the samples that it takes 20 times a second
    "-DZstdTempFolder=.",  # zstd's native library: the machine's temporary folder may forbid execution
)


# The controller requires the same user: a client of the controller may change everything.
SECURITY = Template("""\
sasl.enabled.mechanisms=PLAIN
sasl.mechanism.inter.broker.protocol=PLAIN
sasl.mechanism.controller.protocol=PLAIN
listener.name.client.plain.sasl.jaas.config=$login
listener.name.controller.plain.sasl.jaas.config=$login
""")
LOGIN = Template("""\
org.apache.kafka.common.security.plain.PlainLoginModule required \
username="$username" password="$password" user_$username="$password";""")
TLS = Template("""\
ssl.keystore.type=PEM
ssl.keystore.location=$keystore
ssl.truststore.type=PEM
ssl.truststore.location=$cafile
""")


class EmbeddedKafka(EmbeddedServer):
    """One Kafka broker and controller with unlimited retention, without automatic creation of topics.

    ``security`` requires SASL with the mechanism PLAIN, over TLS if it has certificates.
    """

    name = "Kafka"
    server = "kafka"
    port_names: ClassVar[Sequence[str]] = ("client", "controller")
    stop_seconds = 15.0

    def __init__(self, data_dir: Path, security: Security | None = None) -> None:
        super().__init__(data_dir)
        self._security = security

    async def prepare(self) -> list[str]:
        properties = self.write_config(
            "kafka.properties",
            host=LOOPBACK,
            client_port=self._ports["client"],
            controller_port=self._ports["controller"],
            client_protocol=self.protocol,
            controller_protocol="SASL_PLAINTEXT" if self._security else "PLAINTEXT",
            security=self._security_config(),
        )
        if not (self.directory / "data" / "meta.properties").exists():
            cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode()
            # With "=", since one id in 64 begins with a dash.
            await self._run("kafka.tools.StorageTool", "format", f"--cluster-id={cluster_id}", "-c", str(properties))
        return [*JVM_OPTIONS, "kafka.Kafka", str(properties)]

    async def _run(self, *command: str) -> None:
        tool = self.java(*JVM_OPTIONS, *command)
        await tool.start()
        try:
            async with asyncio.timeout(FORMAT_SECONDS):
                status = await tool.wait()
            if status != 0:
                raise EmbeddedServerError(tool.exit_summary())
        finally:
            await tool.stop(0)

    async def answers(self) -> bool:
        admin = AIOKafkaAdminClient(
            bootstrap_servers=self.address, request_timeout_ms=int(PROBE_SECONDS * 1000), **self._credentials()
        )
        try:
            await admin.start()
            return bool((await admin.describe_cluster())["brokers"])
        except (KafkaError, TimeoutError, OSError):
            return False
        finally:
            await admin.close()

    @property
    def protocol(self) -> Literal["PLAINTEXT", "SASL_PLAINTEXT", "SASL_SSL"]:
        """Security protocol for clients."""
        if self._security is None:
            return "PLAINTEXT"
        return "SASL_SSL" if self._security.keystore else "SASL_PLAINTEXT"

    def _security_config(self) -> str:
        if self._security is None:
            return ""
        values = asdict(self._security)
        config = SECURITY.substitute(login=LOGIN.substitute(values))
        return config + TLS.substitute(values) if self._security.keystore else config

    def _credentials(self) -> dict[str, Any]:
        if self._security is None:
            return {}
        return {
            "security_protocol": self.protocol,
            "ssl_context": ssl.create_default_context(cafile=self._security.cafile)
            if self._security.keystore
            else None,
            "sasl_mechanism": "PLAIN",
            "sasl_plain_username": self._security.username,
            "sasl_plain_password": self._security.password,
        }
