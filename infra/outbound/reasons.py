"""Why a request to another host failed: stable codes and their errors."""

from enum import StrEnum


class Reason(StrEnum):
    """Reason code of a failed request. Stable, since events contain it; `http_reason` adds ``fetch_http_<status>``."""

    BAD_URL = "fetch_bad_url"
    FORBIDDEN_SCHEME = "fetch_forbidden_scheme"
    FORBIDDEN_PORT = "fetch_forbidden_port"
    FORBIDDEN_ADDRESS = "fetch_forbidden_address"
    DNS_FAILED = "fetch_dns_failed"
    CONNECT_FAILED = "fetch_connect_failed"
    TLS_FAILED = "fetch_tls_failed"
    TIMEOUT = "fetch_timeout"
    TOO_MANY_REDIRECTS = "fetch_too_many_redirects"
    INCOMPLETE = "fetch_incomplete"
    BAD_ENCODING = "fetch_bad_encoding"
    BAD_RESPONSE = "fetch_bad_response"
    TOO_LARGE = "too_large"


def http_reason(status: int) -> str:
    """Reason code of a response without a success status."""
    return f"fetch_http_{status}"


class OutboundError(Exception):
    """No usable response.

    ``reason`` is a stable code; ``detail`` explains it to people and contains no credentials, query strings
    or resolved addresses; ``retryable`` says whether the same request may succeed later; ``retry_after`` is
    the server's Retry-After in seconds.
    """

    def __init__(self, reason: str, detail: str, *, retryable: bool = False, retry_after: float | None = None) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = str(reason)
        self.detail = detail
        self.retryable = retryable
        self.retry_after = retry_after


class ForbiddenUrl(OutboundError):
    """The URL must not be requested. Permanent."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(reason, detail)


def no_address(host: str) -> OutboundError:
    """The error of a name without an address that may be requested.

    The same whether it doesn't exist or is one of a private network: a tenant must not learn which names exist there.
    """
    return OutboundError(Reason.DNS_FAILED, f"{host} has no address, or none that may be requested")
