"""The checks after a drill: what was found is compared with what was uploaded. Pure, so that they are tested, too."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

COPIES = 3.0  # events per image or per request on a topic, at most
UNDER_WAY = 72  # images that a compress worker has in hand: SHRINKSTREAM_FETCH_CONCURRENCY, and one for each partition
PER_REQUEST = {"requests": 2, "output-requests": 1, "webhooks": 2}
"""Events of a request on the topics where they are not one for each image, where nothing goes wrong."""


@dataclass
class RequestFound:
    """One request as a client sees it. ``images``: uploaded; ``input_bytes``: of all of them."""

    images: int
    input_bytes: int
    status: Mapping[str, Any] = field(default_factory=dict)
    csv_rows: list[list[str]] = field(default_factory=list)  # without the header
    history: Counter[str] = field(default_factory=Counter)  # images by their status in the history
    webhook_ids: list[str] = field(default_factory=list)  # of each POST


@dataclass
class Found:
    """What there is after a drill; ``events`` by topic, ``confirmed`` the WebhookDelivered events by request id."""

    faults: int  # that were made
    requests: dict[str, RequestFound] = field(default_factory=dict)
    fetched: int = 0
    events: dict[str, int] = field(default_factory=dict)
    confirmed: Counter[str] = field(default_factory=Counter)
    replays: dict[str, str] = field(default_factory=dict)  # what → the differences that `replay --verify` reports

    @property
    def images(self) -> int:
        return sum(request.images for request in self.requests.values())

    @property
    def under_way(self) -> int:
        """Images that faults may have processed once more."""
        return self.faults * UNDER_WAY

    def usual(self, topic: str) -> int:
        """Events on a topic where nothing goes wrong."""
        return PER_REQUEST[topic] * len(self.requests) if topic in PER_REQUEST else self.images

    def wrong(self) -> list[str]:
        """What is lost, doubled or unequal; empty when all is well."""
        return [*self._wrong_requests(), *self._wrong_totals()]

    def _wrong_requests(self) -> Iterator[str]:
        for request_id, found in self.requests.items():
            wanted: dict[str, tuple[object, object]] = {
                "status": (
                    {name: found.status.get(name) for name in ("status", "progress", "total", "succeeded", "failed")},
                    {
                        "status": "completed",
                        "progress": 100,
                        "total": found.images,
                        "succeeded": found.images,
                        "failed": 0,
                    },
                ),
                "webhook in the status": (found.status.get("webhook"), "delivered"),
                "input bytes": (found.status.get("inputBytes"), found.input_bytes),
                "rows of the output CSV": (
                    [row[0] for row in found.csv_rows],
                    [str(number) for number in range(found.images)],
                ),
                "empty places in the output CSV": (sum(not row[3] for row in found.csv_rows), 0),
                "images in the history": (dict(found.history), {"succeeded": found.images}),
                # Killed between the receiver's answer and its event, projections repeats the POST with the same id.
                "different webhook ids": (len(set(found.webhook_ids)), 1),
                "confirmed webhooks": (self.confirmed[request_id], 1),
            }
            for name, (is_, should_be) in wanted.items():
                if is_ != should_be:
                    yield f"{name} of {request_id} ({found.images} images): {is_!r} instead of {should_be!r}"

    def _wrong_totals(self) -> Iterator[str]:
        if self.fetched < self.images:
            yield f"{self.fetched} fetches of {self.images} images"
        if self.fetched > self.images + self.under_way:
            yield f"{self.fetched} fetches of {self.images} images, {self.under_way} of them perhaps twice"
        if unknown := set(self.confirmed) - set(self.requests):
            yield f"confirmed webhooks of requests that were not uploaded: {sorted(unknown)}"
        for topic, events in self.events.items():
            if events < (usual := self.usual(topic)):
                yield f"{events} events on {topic}, where {usual} are the least"
            if events > usual * COPIES + self.under_way * (topic not in PER_REQUEST):
                yield f"{events} events on {topic}, where {usual} are usual"
        for what, differences in self.replays.items():
            if differences:
                yield f"replay {what} differs: {differences}"
