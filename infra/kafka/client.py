"""Connection to Kafka: options from the settings, start and stop of aiokafka's clients."""

import asyncio
import logging
import ssl
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol

from infra.cancellation import no_stray_cancellation, run_to_end
from infra.errors import ExplainedError
from infra.settings import Settings
from infra.tls import tls_context

# SASL_PLAINTEXT is the operator's choice, or that of `up` on loopback; not a warning for each connection.
logging.getLogger("aiokafka.conn").addFilter(lambda record: record.msg != "Sending username and password in the clear")

REQUEST_TIMEOUT_MS = 30_000


class KafkaUnavailableError(ExplainedError):
    """The brokers can't be reached or refuse the connection; the message names them."""


def require_brokers(settings: Settings) -> str:
    """The bootstrap servers; KafkaUnavailableError if none are set."""
    if not settings.kafka_brokers:
        raise KafkaUnavailableError(
            "SHRINKSTREAM_KAFKA_BROKERS is not set (only `shrinkstream up` and `demo` start a Kafka of their own)"
        )
    return settings.kafka_brokers


def ssl_context(settings: Settings) -> ssl.SSLContext | None:
    """The TLS context for the brokers; None if the security protocol has no TLS."""
    if settings.kafka_security_protocol not in ("SSL", "SASL_SSL"):
        return None
    files = (settings.kafka_ssl_cafile, settings.kafka_ssl_certfile, settings.kafka_ssl_keyfile)
    return tls_context("Kafka", *files, KafkaUnavailableError)


class KafkaClient(Protocol):
    """Common interface of aiokafka's consumers, producers and admin clients."""

    def start(self) -> Coroutine[Any, Any, None]: ...


async def start_client(client: KafkaClient, timeout: float) -> None:
    """Start an aiokafka client; TimeoutError after ``timeout`` seconds.

    Trap: ``start()`` creates tasks as its last step. If one is cancelled before its first step, ``stop()`` raises its
    CancelledError in the caller. Since Python 3.12 ``wait_for`` doesn't yield to the event loop in between.
    Trap: a ``start()`` that is cancelled leaves its first connection open, so a cancellation waits for its end.
    """
    await run_to_end(client.start(), timeout)
    await asyncio.sleep(0)


async def stop_client(
    stop: Callable[[], Coroutine[Any, Any, None]], timeout: float = REQUEST_TIMEOUT_MS / 1000 + 5
) -> None:
    """Stop an aiokafka client, also if the caller is cancelled meanwhile: its connections would stay open.

    TimeoutError after ``timeout`` seconds, StrayCancellationError as in `start_client`.
    """
    with no_stray_cancellation():
        await run_to_end(stop(), timeout)


def connection_options(settings: Settings) -> dict[str, Any]:
    """Connection options of every aiokafka client."""
    options: dict[str, Any] = {
        "bootstrap_servers": require_brokers(settings),
        "security_protocol": settings.kafka_security_protocol,
        "ssl_context": ssl_context(settings),
        "client_id": "shrinkstream",
    }
    if settings.kafka_security_protocol.startswith("SASL"):
        password = settings.kafka_sasl_password
        options |= {
            "sasl_mechanism": settings.kafka_sasl_mechanism,
            "sasl_plain_username": settings.kafka_sasl_username,
            "sasl_plain_password": password.get_secret_value() if password else None,
        }
    return options


def unreachable(settings: Settings, error: Exception, messages: Sequence[str] = ()) -> KafkaUnavailableError:
    """``messages``: aiokafka's log messages, which have the cause if its error only says that no broker answered."""
    cause = (messages[-1] if messages else str(error) or "no answer").splitlines()[0]
    return KafkaUnavailableError(f"Kafka can't be reached at {settings.kafka_brokers}: {cause}")
