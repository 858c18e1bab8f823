"""Authentication and TLS of an embedded server."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Security:
    """The only user of a server, and the PEM files for TLS."""

    keystore: Path  # the server's key (PKCS #8) and its certificate for 127.0.0.1
    cafile: Path  # the authority that signed the certificate
    username: str
    password: str
