"""Authentication by API key, and the ownership of requests."""

import hmac
from collections.abc import Collection
from ipaddress import ip_address

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from api.http.csrf import CsrfGuard
from api.http.problems import Problem, ProblemCode
from api.http.rate_limit import RateLimit, address_of
from infra.settings import Settings, SettingsError

OWNER = web.RequestKey("owner", str)


def keys_middleware(settings: Settings, limit: RateLimit, open_handlers: Collection[Handler]) -> Middleware:
    """Authenticate by API key, set the request's owner, and apply the rate limit of each client.

    ``open_handlers`` need no key: probes, documents, and images, whose URLs are in the output CSVs.
    """
    csrf = CsrfGuard(settings)
    keys = settings.keys_by_owner

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        request[OWNER] = ""
        if request.match_info.handler in open_handlers:
            return await handler(request)
        if keys:
            owner = _owner_of(_sent_key(request), keys)
            if owner is None:
                limit.require(f"address {address_of(request)}")  # slows down brute force
                raise _unauthorized()
            request[OWNER] = owner
        else:
            csrf.check(request)
        limit.require(f"key {request[OWNER]}" if keys else f"address {address_of(request)}")
        return await handler(request)

    return check


def _sent_key(request: web.Request) -> str:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else request.headers.get("X-API-Key", "")


def _owner_of(sent: str, keys: dict[str, str]) -> str | None:
    # Every key is compared, in constant time, against timing attacks.
    encoded = sent.encode(errors="surrogateescape")
    matches = [name for name, key in keys.items() if hmac.compare_digest(encoded, key.encode())]
    return matches[0] if matches else None


def _unauthorized() -> Problem:
    return Problem(
        ProblemCode.UNAUTHORIZED,
        "send a valid key as `Authorization: Bearer KEY` or `X-API-Key: KEY`",
        headers={"WWW-Authenticate": "Bearer"},
    )


def require_safe_address(settings: Settings) -> None:
    """Raise SettingsError for an API without keys that listens beyond loopback."""
    if settings.api_keys or settings.open_network or _is_loopback(settings.host):
        return
    raise SettingsError(
        f"SHRINKSTREAM_HOST={settings.host} is open to the network: set SHRINKSTREAM_API_KEYS,"
        " or SHRINKSTREAM_OPEN_NETWORK=true if a firewall or proxy restricts access"
    )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
