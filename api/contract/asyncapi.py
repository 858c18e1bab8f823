"""``/asyncapi.json``: AsyncAPI 3.1 document of the topics and their events.

https://www.asyncapi.com/docs/reference/specification/v3.1.0
"""

from collections.abc import Mapping
from typing import Any

from api.contract.openapi import schemas_of
from streams.events.base import CONTENT_TYPE, Event
from streams.events.registry import EVENT_CLASSES
from streams.events.trace_context import HEADER as TRACEPARENT
from streams.log.producer import WORKER
from streams.log.topics import Topics

Json = dict[str, Any]

# Topic, as in the event classes → description.
_CHANNELS = {
    "requests": "Life cycle of requests. Keyed by request id.",
    "image_requests": "Images to fetch and compress. Keyed by image id, which spreads a request over all partitions.",
    "image_results": "Result of each image. Keyed by request id.",
    "output_requests": "From progress to projections: output CSVs to write. Keyed by request id.",
    "webhooks": "Delivery attempts and outcomes of webhooks. Keyed by request id.",
    "progress": "Facts about requests in the progress table. Keyed by request id.",
    "maintenance": "Operator commands and their results, kept for a week: no facts. Keyed by request or command id.",
}

_HEADERS = {
    "content-type": f"`{CONTENT_TYPE}`",
    TRACEPARENT: "W3C Trace Context: the request's trace, with this event as the parent span of the events it causes",
    WORKER: "the process that produced the record: `role@host-pid`",
}


def document(topics: Topics, *, version: str) -> Json:
    """The AsyncAPI document of the topics under one prefix; it omits the broker addresses, which are not public."""
    return {
        "asyncapi": "3.1.0",
        "info": {
            "title": "shrinkstream events",
            "version": version,
            "description": "Each record is one event, a JSON object of CloudEvents 1.0. Delivery is at least once: drop"
            " duplicates by `id`. Fields are added over time: ignore unknown ones.",
            "license": {"name": "MIT"},
            "externalDocs": {"url": "https://cloudevents.io"},
        },
        "defaultContentType": CONTENT_TYPE,
        "channels": {
            **{name: _channel(getattr(topics, name), text, _events_of(name)) for name, text in _CHANNELS.items()},
            "dead_letters": _dead_letters(topics),
        },
        "operations": {
            f"publish_{name}": {
                "action": "send",
                "channel": {"$ref": f"#/channels/{name}"},
                "summary": f"shrinkstream writes to {getattr(topics, name)}",
            }
            for name in (*_CHANNELS, "dead_letters")
        },
        "components": {
            "messages": {event.__name__: _message(event) for event in EVENT_CLASSES},
            "schemas": schemas_of(EVENT_CLASSES),
        },
    }


def _events_of(topic: str) -> list[type[Event]]:
    return [event for event in EVENT_CLASSES if event.topic == topic]


def _channel(address: str, description: str, events: list[type[Event]]) -> Json:
    return {
        "address": address,
        "description": description,
        "messages": {event.__name__: {"$ref": f"#/components/messages/{event.__name__}"} for event in events},
    }


def _headers(descriptions: Mapping[str, str]) -> Json:
    properties = {name: {"type": "string", "description": description} for name, description in descriptions.items()}
    return {"type": "object", "properties": properties}


def _message(event: type[Event]) -> Json:
    return {
        "name": event.event_type(),
        "title": event.__name__,
        "summary": (event.__doc__ or "").partition("\n")[0],
        "contentType": CONTENT_TYPE,
        "headers": _headers(_HEADERS),
        "payload": event.envelope_schema({"$ref": f"#/components/schemas/{event.__name__}"}),
        "bindings": {"kafka": {"key": {"type": "string", "description": "the request id, or image id"}}},
    }


def _dead_letters(topics: Topics) -> Json:
    headers = {
        "dead-letter-topic": "original topic",
        "dead-letter-partition": "original partition",
        "dead-letter-offset": "original offset",
        "dead-letter-error": "decoding error",
    }
    return {
        "address": topics.dead_letters,
        "description": "Dead-letter topic: records that can't be decoded, unchanged.",
        "messages": {
            "DeadLetter": {
                "name": "DeadLetter",
                "title": "DeadLetter",
                "contentType": "application/octet-stream",
                "payload": {},
                "headers": {**_headers(headers), "required": [*headers]},
            }
        },
    }
