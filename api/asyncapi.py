"""``/asyncapi.json``: the topics and their events as AsyncAPI 3.1 (https://www.asyncapi.com/docs/reference/specification/v3.1.0)."""

from collections.abc import Mapping
from typing import Any

from api.openapi import schemas_of
from streams.event_log import WORKER
from streams.events import CONTENT_TYPE, EVENT_CLASSES, Event
from streams.topics import Topics
from streams.trace_context import HEADER as TRACEPARENT

Json = dict[str, Any]

# Topic, as the event classes name it → what it is for.
_CHANNELS = {
    "requests": "The life of requests. By request id.",
    "image_requests": "Images to fetch and compress. By image id, which spreads a request over all partitions.",
    "image_results": "What came of each image. By request id.",
    "output_requests": "From progress to projections: output CSVs to write. By request id.",
    "webhooks": "What came of telling receivers. By request id.",
    "progress_tasks": "What progress is to do or has done. By request id.",
}

_HEADERS = {
    "content-type": f"`{CONTENT_TYPE}`",
    TRACEPARENT: "W3C Trace Context: the request's trace, and this event as the parent of whatever follows from it",
    WORKER: "the process that wrote the record: `role@host-pid`",
}


def document(topics: Topics, *, version: str) -> Json:
    """The whole document, for the topics under one prefix. Where the brokers are is not everybody's business."""
    return {
        "asyncapi": "3.1.0",
        "info": {
            "title": "shrinkstream events",
            "version": version,
            "description": "Everything that happens is one of these events, a JSON object of CloudEvents 1.0. Delivery"
            " is at least once: drop repeats by `id`. Fields are added over time; pass over those that you don't know.",
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
        "dead-letter-topic": "the topic that it stood on",
        "dead-letter-partition": "its partition there",
        "dead-letter-offset": "its offset there",
        "dead-letter-error": "why it can't be read",
    }
    return {
        "address": topics.dead_letters,
        "description": "Records that can't be read, as they were.",
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
