"""The words of the route table: one entry registers a route and documents it, so that neither is without the other."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import Any, Literal

from aiohttp import web
from aiohttp.typedefs import Handler

from api.broken_http import expect

Content = Mapping[str, Any]
"""Media type → a type that pydantic can describe; ``bytes`` is content of any form."""


@dataclass(frozen=True)
class Parameter:
    """A part of a request's path, query or headers; ``type`` is anything that pydantic can describe."""

    name: str
    where: Literal["path", "query", "header"]
    type: Any
    description: str
    example: Any = None


@dataclass(frozen=True)
class Answer:
    """What a client is told where all is well; ``headers`` has a description for each."""

    description: str
    content: Content = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Route:
    """One thing that the API does.

    ``problems`` has what each error status means here; those that any route may answer with (401, 403, 429, 500) are
    added to the documents, not here. ``aliases`` are further paths that do the same. ``needs_key`` False: it
    answers without a key and without a limit.
    """

    method: Literal["GET", "POST"]
    path: str
    handler: Handler
    tag: str
    summary: str
    answers: Mapping[HTTPStatus, Answer]
    problems: Mapping[HTTPStatus, str] = field(default_factory=dict)
    description: str = ""
    parameters: tuple[Parameter, ...] = ()
    body: Content = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    needs_key: bool = True

    @property
    def name(self) -> str:
        """What generated clients call it."""
        return self.handler.__name__

    def spelled_out(self) -> Iterable["Route"]:
        """This route and each alias as a route of its own."""
        yield replace(self, aliases=())
        for path in self.aliases:
            note = f"The same as `{self.method} {self.path}`, under the name that other systems' clients know."
            yield replace(self, path=path, aliases=(), description=note)

    def definitions(self) -> list[web.RouteDef]:
        """What aiohttp registers; HEAD is answered wherever GET is."""
        add = {"GET": web.get, "POST": web.post}[self.method]
        return [add(path, self.handler, expect_handler=expect) for path in (self.path, *self.aliases)]
