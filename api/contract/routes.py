"""Route table: one entry both registers a route and documents it in OpenAPI."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import Any, Literal

from aiohttp import web
from aiohttp.typedefs import Handler

from api.http.protocol_errors import expect

Content = Mapping[str, Any]
"""Media type → a type that pydantic can describe; ``bytes``: any content, without a schema."""


@dataclass(frozen=True)
class Parameter:
    """A path, query or header parameter; ``type`` is any type that pydantic can describe."""

    name: str
    where: Literal["path", "query", "header"]
    type: Any
    description: str
    example: Any = None


REQUEST_ID = Parameter(
    "request_id", "path", str, "`requestId` of the upload's response", "b2da3e5f-e062-435c-aaa5-a9d67346ed1d"
)
REQUEST_PROBLEMS = {
    HTTPStatus.NOT_FOUND: "There is no such request, or it belongs to another API key.",
    HTTPStatus.SERVICE_UNAVAILABLE: "Kafka or Cassandra is unavailable; retry after `Retry-After` seconds.",
}


@dataclass(frozen=True)
class Response:
    """A success response; ``headers`` maps each header to its description."""

    description: str
    content: Content = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Route:
    """One operation of the API.

    ``problems`` describes the error statuses of this route. Those of every route (401, 403, 429, 500), and the
    parameter and problems of a path with a request id, are added in ``openapi.py``. ``aliases`` are further paths of
    the same operation. ``needs_key`` False: no authentication and no rate limit.
    """

    method: Literal["GET", "POST", "DELETE"]
    path: str
    handler: Handler
    tag: str
    summary: str
    responses: Mapping[HTTPStatus, Response]
    problems: Mapping[HTTPStatus, str] = field(default_factory=dict)
    description: str = ""
    parameters: tuple[Parameter, ...] = ()
    body: Content = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    needs_key: bool = True

    @property
    def name(self) -> str:
        """The OpenAPI operationId, used by generated clients."""
        return self.handler.__name__

    def expanded(self) -> Iterable["Route"]:
        """This route and each alias as a separate route."""
        yield replace(self, aliases=())
        for path in self.aliases:
            note = f"Alias of `{self.method} {self.path}`, for clients of other systems."
            yield replace(self, path=path, aliases=(), description=note)

    def definitions(self) -> list[web.RouteDef]:
        """aiohttp route definitions; GET includes HEAD."""
        add = {"GET": web.get, "POST": web.post, "DELETE": web.delete}[self.method]
        return [add(path, self.handler, expect_handler=expect) for path in (self.path, *self.aliases)]
