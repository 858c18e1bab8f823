"""``/openapi.json``: OpenAPI 3.1 document of the route table and its models (https://spec.openapis.org/oas/v3.1.1)."""

import re
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, models_json_schema

from api.contract.routes import REQUEST_ID, REQUEST_PROBLEMS, Parameter, Response, Route
from api.http.problems import CONTENT_TYPE, ProblemDetails

Json = dict[str, Any]

_REFERENCES = "#/components/schemas/{model}"

# Error responses of every route that needs a key.
_UNAUTHORIZED = "The API key is missing or invalid."
_FORBIDDEN = "Rejected by CSRF or DNS-rebinding protection."
_TOO_MANY = "The rate limit of this key or address is exceeded; retry after `Retry-After` seconds."
_INTERNAL = "Internal server error; see the server's log."


class SchemaWithoutTitles(GenerateJsonSchema):
    """JSON schemas without the generated titles, which only repeat the field names."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def schemas_of(models: Iterable[type[BaseModel]]) -> Json:
    """Name → JSON schema of each model and of all models that it references."""
    _, document = models_json_schema(
        [(model, "serialization") for model in models], ref_template=_REFERENCES, schema_generator=SchemaWithoutTitles
    )
    definitions: Json = document["$defs"]
    return definitions


def document(
    routes: Iterable[Route],
    webhooks: Mapping[str, Json],
    webhook_models: Iterable[type[BaseModel]],
    *,
    version: str,
    server: str,
    with_keys: bool,
) -> Json:
    """The OpenAPI document. ``with_keys``: whether this API requires API keys."""
    expanded = [each for route in routes for each in route.expanded()]
    paths: dict[str, Json] = {}
    for number, route in enumerate(expanded):
        is_first = all(route.name != earlier.name for earlier in expanded[:number])
        name = route.name if is_first else f"{route.name}_{len(paths)}"
        paths.setdefault(_template(route.path), {})[route.method.lower()] = _operation(route, name, with_keys=with_keys)
    models = [
        *dict.fromkeys(
            kind
            for route in expanded
            for content in (route.body, *(response.content for response in route.responses.values()))
            for kind in content.values()
            if _is_model(kind)
        )
    ]
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "shrinkstream",
            "version": version,
            "summary": "Compresses product images: CSV in; compressed images, CSV and webhook out.",
            "description": "Upload a CSV of image URLs, poll its status until it is `completed`, download the CSV"
            " with the new URLs. Every step is an event on Kafka: see [the events](/docs/events).",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": server}],
        "tags": [{"name": tag} for tag in dict.fromkeys(route.tag for route in expanded)],
        "paths": paths,
        "webhooks": dict(webhooks),
        "components": {
            "schemas": schemas_of([*models, *webhook_models, ProblemDetails]),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "`Authorization: Bearer KEY`"},
                "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
        },
    }


def _template(path: str) -> str:
    """aiohttp's ``{name:pattern}`` as OpenAPI's ``{name}``."""
    return re.sub(r"\{(\w+):[^}]+\}", r"{\1}", path)


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _operation(route: Route, name: str, *, with_keys: bool) -> Json:
    parameters = (REQUEST_ID, *route.parameters) if _has_request_id(route) else route.parameters
    operation: Json = {
        "operationId": name,
        "tags": [route.tag],
        "summary": route.summary,
        "description": route.description,
        "parameters": [_parameter(parameter) for parameter in parameters],
        "responses": {
            **{str(status.value): _response(response) for status, response in route.responses.items()},
            **{
                str(status.value): _problem_response(description)
                for status, description in _problems(route, with_keys=with_keys)
            },
        },
        "security": [{"bearer": []}, {"header": []}] if with_keys and route.needs_key else [],
    }
    if route.body:
        operation["requestBody"] = {"required": True, "content": _content(route.body)}
    return operation


def _problems(route: Route, *, with_keys: bool) -> Iterable[tuple[HTTPStatus, str]]:
    yield from ({**REQUEST_PROBLEMS, **route.problems} if _has_request_id(route) else route.problems).items()
    if route.needs_key:
        if with_keys:
            yield HTTPStatus.UNAUTHORIZED, _UNAUTHORIZED
        else:
            yield HTTPStatus.FORBIDDEN, _FORBIDDEN
        yield HTTPStatus.TOO_MANY_REQUESTS, _TOO_MANY
    yield HTTPStatus.INTERNAL_SERVER_ERROR, _INTERNAL


def _has_request_id(route: Route) -> bool:
    return f"{{{REQUEST_ID.name}}}" in route.path


def _problem_response(description: str) -> Json:
    return {"description": description, "content": _content({CONTENT_TYPE: ProblemDetails})}


def _parameter(parameter: Parameter) -> Json:
    described = {
        "name": parameter.name,
        "in": parameter.where,
        "required": parameter.where == "path",
        "description": parameter.description,
        "schema": _schema(parameter.type),
    }
    return described if parameter.example is None else {**described, "example": parameter.example}


def _response(response: Response) -> Json:
    described: Json = {"description": response.description}
    if response.content:
        described["content"] = _content(response.content)
    if response.headers:
        described["headers"] = {
            name: {"description": text, "schema": {"type": "string"}} for name, text in response.headers.items()
        }
    return described


def _content(content: Mapping[str, Any]) -> Json:
    return {media_type: {"schema": _schema(kind)} for media_type, kind in content.items()}


def _schema(kind: Any) -> Json:
    if kind is bytes:
        return {}  # OpenAPI 3.1, 4.8.14.4: arbitrary content has no schema
    if _is_model(kind):
        return {"$ref": _REFERENCES.format(model=kind.__name__)}
    return TypeAdapter(kind).json_schema(mode="serialization", schema_generator=SchemaWithoutTitles)
