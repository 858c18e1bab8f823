"""What an embedded server may ask of its clients: a password, over TLS."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Security:
    """The one user that a server knows, and what both sides need for TLS; PEM files."""

    keystore: Path  # the server's key (PKCS #8) and its certificate, which is good for 127.0.0.1
    cafile: Path  # the authority that signed the certificate
    username: str
    password: str
