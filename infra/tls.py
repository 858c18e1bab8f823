"""TLS contexts of connections to Kafka and Cassandra, from PEM files."""

import ssl
from pathlib import Path

from infra.errors import ExplainedError


def tls_context(
    server: str, ca: Path | None, certificate: Path | None, key: Path | None, unavailable: type[ExplainedError]
) -> ssl.SSLContext:
    """Raises ``unavailable`` for files that can't be used; without ``ca``, the system's authorities are trusted."""
    try:
        context = ssl.create_default_context(cafile=ca)
        if certificate:
            context.load_cert_chain(certificate, key)
    except OSError as error:
        raise unavailable(f"the certificates for {server} can't be used: {error}") from None
    return context
