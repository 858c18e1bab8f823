"""Kafka as a child process: one KRaft node on loopback."""

import asyncio
import base64
import uuid

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from infra.embedded.ports import LOOPBACK
from infra.embedded.server import EmbeddedServer, EmbeddedServerError

ASK_SECONDS = 5.0
FORMAT_SECONDS = 60.0
JVM_OPTIONS = ("-Xms64m", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:+ExitOnOutOfMemoryError")


class EmbeddedKafka(EmbeddedServer):
    """One Kafka broker and controller with unlimited retention; topics are not created by themselves."""

    name = "Kafka"
    server = "kafka"
    port_names = ("client", "controller")
    stop_seconds = 15.0

    async def prepare(self) -> list[str]:
        properties = self.write_config(
            "kafka.properties",
            host=LOOPBACK,
            client_port=self._ports["client"],
            controller_port=self._ports["controller"],
        )
        if not (self.directory / "data" / "meta.properties").exists():
            cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode()
            # With "=": an id may begin with a dash, and one in 64 does.
            await self._run("kafka.tools.StorageTool", "format", f"--cluster-id={cluster_id}", "-c", str(properties))
        return [*JVM_OPTIONS, "kafka.Kafka", str(properties)]

    async def _run(self, *command: str) -> None:
        tool = self.java(*JVM_OPTIONS, *command)
        await tool.start()
        try:
            if await asyncio.wait_for(tool.wait(), FORMAT_SECONDS) != 0:
                raise EmbeddedServerError(tool.last_words())
        finally:
            await tool.stop(0)

    async def answers(self) -> bool:
        admin = AIOKafkaAdminClient(bootstrap_servers=self.address, request_timeout_ms=int(ASK_SECONDS * 1000))
        try:
            await admin.start()
            return bool((await admin.describe_cluster())["brokers"])
        except (KafkaError, TimeoutError, OSError):
            return False
        finally:
            await admin.close()
