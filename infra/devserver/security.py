"""Authentication and TLS of an embedded server."""

import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Self

USERNAME = "cassandra"
"""The superuser that a new Cassandra creates; Kafka's only user has the same name."""


@dataclass(frozen=True)
class Security:
    """The only user of a server, and the PEM files for TLS; without them the server speaks plaintext on loopback."""

    username: str
    password: str
    keystore: Path | None = None  # the server's key (PKCS #8) and its certificate for 127.0.0.1
    cafile: Path | None = None  # the authority that signed the certificate

    @classmethod
    def remembered(cls, file: Path) -> Self:
        """A generated password, kept in ``file`` for this user only: a data dir is opened with the same one again."""
        if not file.exists():
            # Complete or not there: a crash must not leave a part of it behind.
            partial = file.with_suffix(".partial")
            partial.unlink(missing_ok=True)
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as opened:
                opened.write(secrets.token_urlsafe(32))
            partial.replace(file)
        return cls(USERNAME, file.read_text())
