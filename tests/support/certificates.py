"""An authority made for one test run, and the files that an embedded server and its clients need of it."""

from pathlib import Path

import trustme
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from infra.devserver.ports import LOOPBACK


def write_certificates(folder: Path) -> tuple[Path, Path]:
    """The server's key and certificate, and the authority's certificate; PEM."""
    authority = trustme.CA()
    issued = authority.issue_cert(LOOPBACK)
    keystore, cafile = folder / "server.pem", folder / "authority.pem"
    authority.cert_pem.write_to_path(cafile)
    # Java reads PKCS #8 and no other kind of key.
    key = load_pem_private_key(issued.private_key_pem.bytes(), None)
    keystore.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        + b"".join(certificate.bytes() for certificate in issued.cert_chain_pems)
    )
    return keystore, cafile
