"""``/openapi.json``: the route table and the models of the answers as OpenAPI 3.1 (https://spec.openapis.org/oas/v3.1.1)."""

import re
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, models_json_schema

from api.problems import CONTENT_TYPE, ProblemDetails
from api.routes import Answer, Parameter, Route

Json = dict[str, Any]

_REFERENCES = "#/components/schemas/{model}"

# What any route that is asked for a key may answer with, whatever it does.
_UNAUTHORIZED = "The key is missing or unknown."
_FOREIGN = "A web page of somebody else has made the request."
_TOO_MANY = "Too many requests with this key, or from this address; `Retry-After` says when there is room again."
_INTERNAL = "Something went wrong on the server, and was logged there."


class SchemaWithoutTitles(GenerateJsonSchema):
    """The generated titles repeat the names of the fields."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def schemas_of(models: Iterable[type[BaseModel]], mode: JsonSchemaMode = "serialization") -> Json:
    """Name → JSON schema of each model and of every one that it mentions."""
    _, document = models_json_schema(
        [(model, mode) for model in models], ref_template=_REFERENCES, schema_generator=SchemaWithoutTitles
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
    """The whole document. ``with_keys``: whether this API asks for keys."""
    spelled_out = [spelled for route in routes for spelled in route.spelled_out()]
    paths: dict[str, Json] = {}
    for number, route in enumerate(spelled_out):
        is_first = all(route.name != earlier.name for earlier in spelled_out[:number])
        name = route.name if is_first else f"{route.name}_{len(paths)}"
        paths.setdefault(_template(route.path), {})[route.method.lower()] = _operation(route, name, with_keys=with_keys)
    models = [
        *dict.fromkeys(
            kind
            for route in spelled_out
            for content in (route.body, *(answer.content for answer in route.answers.values()))
            for kind in content.values()
            if _is_model(kind)
        )
    ]
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "shrinkstream",
            "version": version,
            "summary": "Shrinks product images: CSV in; compressed images, CSV and webhook out.",
            "description": "Upload a CSV of image URLs, ask for its status until it is `completed`, download the CSV"
            " with the new URLs. What happens in between is on Kafka: see [the events](/docs/events).",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": server}],
        "tags": [{"name": tag} for tag in dict.fromkeys(route.tag for route in spelled_out)],
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
    operation: Json = {
        "operationId": name,
        "tags": [route.tag],
        "summary": route.summary,
        "description": route.description,
        "parameters": [_parameter(parameter) for parameter in route.parameters],
        "responses": {
            **{str(status.value): _answer(answer) for status, answer in route.answers.items()},
            **{
                str(status.value): problem_answer(description)
                for status, description in _problems(route, with_keys=with_keys)
            },
        },
        "security": [{"bearer": []}, {"header": []}] if with_keys and route.needs_key else [],
    }
    if route.body:
        operation["requestBody"] = {"required": True, "content": _content(route.body)}
    return operation


def _problems(route: Route, *, with_keys: bool) -> Iterable[tuple[HTTPStatus, str]]:
    yield from route.problems.items()
    if route.needs_key:
        if with_keys:
            yield HTTPStatus.UNAUTHORIZED, _UNAUTHORIZED
        else:
            yield HTTPStatus.FORBIDDEN, _FOREIGN
        yield HTTPStatus.TOO_MANY_REQUESTS, _TOO_MANY
    yield HTTPStatus.INTERNAL_SERVER_ERROR, _INTERNAL


def problem_answer(description: str) -> Json:
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


def _answer(answer: Answer) -> Json:
    described: Json = {"description": answer.description}
    if answer.content:
        described["content"] = _content(answer.content)
    if answer.headers:
        described["headers"] = {
            name: {"description": text, "schema": {"type": "string"}} for name, text in answer.headers.items()
        }
    return described


def _content(content: Mapping[str, Any]) -> Json:
    return {media_type: {"schema": _schema(kind)} for media_type, kind in content.items()}


def _schema(kind: Any) -> Json:
    if kind is bytes:
        return {}  # OpenAPI 3.1, 4.8.14.4: content of any form has no schema
    if _is_model(kind):
        return {"$ref": _REFERENCES.format(model=kind.__name__)}
    return TypeAdapter(kind).json_schema(mode="serialization", schema_generator=SchemaWithoutTitles)
