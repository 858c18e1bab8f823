"""API keys: who may use the API, and whose request is whose."""

import hmac
from http import HTTPStatus
from ipaddress import ip_address

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from api.problems import Problem
from infra.settings import Settings, SettingsError, parse_api_keys

OWNER = web.RequestKey("owner", str)

# Probes for machines, and the images, whose addresses stand in the output CSVs for everybody.
OPEN_PREFIXES = ("/healthz", "/readyz", "/metrics", "/images/", "/docs", "/openapi.json", "/asyncapi.json")


def keys_middleware(settings: Settings) -> Middleware:
    """Ask for a key where keys are set, and put its name into the request."""
    keys = parse_api_keys(settings.api_keys.get_secret_value()) if settings.api_keys else {}

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        request[OWNER] = ""
        if keys and request.path != "/" and not request.path.startswith(OPEN_PREFIXES):
            request[OWNER] = _owner_of(_sent_key(request), keys)
        return await handler(request)

    return check


def _sent_key(request: web.Request) -> str:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else request.headers.get("X-API-Key", "")


def _owner_of(sent: str, keys: dict[str, str]) -> str:
    # Every key is compared, in constant time, so that the time taken tells nothing.
    matches = [name for name, key in keys.items() if hmac.compare_digest(sent.encode(), key.encode())]
    if not matches:
        raise Problem(
            HTTPStatus.UNAUTHORIZED,
            "unauthorized",
            "send a valid key as `Authorization: Bearer KEY` or `X-API-Key: KEY`",
            headers={"WWW-Authenticate": "Bearer"},
        )
    return matches[0]


def require_safe_address(settings: Settings) -> None:
    """Raise SettingsError where anybody on the network could use an API without keys."""
    if settings.api_keys or settings.open_network or _is_loopback(settings.host):
        return
    raise SettingsError(
        f"SHRINKSTREAM_HOST={settings.host} is open to the network: set SHRINKSTREAM_API_KEYS,"
        " or SHRINKSTREAM_OPEN_NETWORK=true if something else keeps strangers out"
    )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
