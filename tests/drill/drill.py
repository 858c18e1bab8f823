"""Faults of all kinds while requests are under way; then everything is compared with what was uploaded."""

import asyncio
import csv
import io
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infra.settings import Settings
from streams.events.webhooks import WebhookDelivered
from streams.log.topics import Topics
from tests.drill.faults import ON_STORAGE, ROLES, Fault, Kind, can_mount, make, plan, small_storage
from tests.drill.servers import DrillServers
from tests.e2e.conftest import start_system, stop_system
from tests.support.published_clients import call, curl_form
from tests.support.shop import Shop
from tests.support.topic_reader import events_in

__all__ = ["HEADER", "ROLES", "Outcome", "run_drill"]

HEADER = "S. No.,Product Name,Input Image URLs\n"
FINISH_SECONDS = 300.0  # for healing, from the end of the last fault on
FILES = 20
UNDER_WAY = 72  # images that a compress worker has in hand: SHRINKSTREAM_FETCH_CONCURRENCY, and one for each partition
COPIES = 3.0  # events per image or per request on a topic, at most


@dataclass
class Outcome:
    """The result of a drill; `faults` is empty when all is well."""

    seed: int
    made: list[Fault] = field(default_factory=list)
    skipped: list[Kind] = field(default_factory=list)
    images: int = 0
    requests: dict[str, int] = field(default_factory=dict)  # request id → images
    seconds: float = 0.0
    healed: float = 0.0
    fetched: int = 0
    webhooks: int = 0
    per_image: dict[str, float] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def expect(self, what: str, found: object, wanted: object) -> None:
        if found != wanted:
            self.faults.append(f"{what}: {found!r} instead of {wanted!r}")


def run_drill(
    seed: int,
    *,
    images: int,
    more_images: int,
    faults: int,
    seconds: tuple[float, float],
    data_dir: Path,
    kinds: Iterable[Kind] = tuple(Kind),
) -> Outcome:
    """A request of ``images`` images, then one of ``more_images`` before each of ``faults`` faults of ``seconds`` each.

    Bounded in time, on loopback only.
    """
    mounted = can_mount()
    possible = [kind for kind in kinds if mounted or kind not in ON_STORAGE]
    outcome = Outcome(seed, skipped=[kind for kind in kinds if kind not in possible])
    with (
        Shop() as shop,
        small_storage(data_dir / "stored", mounted=mounted) as storage,
        DrillServers(data_dir / "servers") as servers,
    ):
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("SHRINKSTREAM_")},
            **servers.environment,
            "SHRINKSTREAM_DATA_DIR": str(data_dir / "system"),
            "SHRINKSTREAM_STORAGE_URL": storage.as_uri(),
            "SHRINKSTREAM_FETCH_ALLOW": shop.address,
            "SHRINKSTREAM_STALL_AFTER": "20",
            "SHRINKSTREAM_LOG_LEVEL": "WARNING",
        }
        process, url = start_system(environment, "--port", "0")
        try:
            for number in range(FILES):
                shop.add(f"drill-{number}.jpg")
            started = time.monotonic()
            _upload(outcome, url, shop, images)
            for fault in plan(seed, faults, seconds, possible):
                _upload(outcome, url, shop, more_images)
                make(fault, servers, storage)
                outcome.made.append(fault)
            ended = time.monotonic()
            statuses = _wait_until_complete(url, outcome.requests, ended + FINISH_SECONDS)
            _wait_until_ready(url, ended + FINISH_SECONDS)
            outcome.healed = time.monotonic() - ended
            outcome.seconds = time.monotonic() - started
            for request_id, count in outcome.requests.items():
                _check_request(outcome, url, request_id, count, statuses.get(request_id, {}), shop)
            _check_whole(outcome, url, shop, environment)
        finally:
            outcome.expect("exit code of `up`", stop_system(process), 0)
    return outcome


def _upload(outcome: Outcome, url: str, shop: Shop, images: int) -> None:
    """Upload with an Idempotency-Key until it is accepted, as a careful client does."""
    number = len(outcome.requests)
    rows = "".join(f"{n},Product {n},{shop.url}/files/drill-{n % FILES}.jpg?n={number}-{n}\n" for n in range(images))
    body, headers = curl_form(("file", "drill.csv", (HEADER + rows).encode()), ("webhookUrl", f"{shop.url}/webhook/x"))
    headers["Idempotency-Key"] = f"drill-{number}"
    deadline = time.monotonic() + FINISH_SECONDS
    answer: object = "no answer"
    while time.monotonic() < deadline:
        with suppress(OSError):
            found = call(url, "POST", "/api/upload", body, headers)
            answer = (found.status, found.body)
            if found.status == 202:
                outcome.requests[found.json["requestId"]] = images
                outcome.images += images
                return
            if found.status < 500 and found.status != 409:
                break
        time.sleep(0.5)
    raise AssertionError(f"upload {number} was not accepted: {answer}")


def _wait_until_complete(url: str, requests: Iterable[str], deadline: float) -> dict[str, Any]:
    """The last status of each request."""
    statuses: dict[str, Any] = {}
    waiting = list(requests)
    while waiting and time.monotonic() < deadline:
        request_id = waiting[0]
        with suppress(OSError):
            answer = call(url, "GET", f"/api/status/{request_id}")
            if answer.status == 200:
                statuses[request_id] = answer.json
                if answer.json["status"] == "completed" and answer.json["webhook"] == "delivered":
                    waiting.pop(0)
                    continue
        time.sleep(0.3)
    return statuses


def _wait_until_ready(url: str, deadline: float) -> None:
    """Every process that was ended last is started again."""
    while time.monotonic() < deadline:
        with suppress(OSError):
            if call(url, "GET", "/readyz").status == 200:
                return
        time.sleep(0.2)
    raise AssertionError("the API did not become ready again")


def _check_request(
    outcome: Outcome, url: str, request_id: str, images: int, status: dict[str, Any], shop: Shop
) -> None:
    """Status, history, output CSV and webhook of one request."""

    def expect(what: str, found: object, wanted: object) -> None:
        outcome.expect(f"{what} of {request_id} ({images} images)", found, wanted)

    wanted = {"status": "completed", "progress": 100, "total": images, "succeeded": images, "failed": 0}
    expect("status", {name: status.get(name) for name in wanted}, wanted)
    sizes = [len(shop.files[f"drill-{n}.jpg"]) for n in range(FILES)]
    expect("input bytes", status.get("inputBytes"), sum(sizes[n % FILES] for n in range(images)))
    content = call(url, "GET", f"/api/download/{request_id}").body
    rows = list(csv.reader(io.StringIO(content.decode("utf-8-sig"))))[1:]
    expect("rows of the output CSV", [row[0] for row in rows], [str(n) for n in range(images)])
    expect("empty places in the output CSV", sum(not row[3] for row in rows), 0)
    found: Counter[str] = Counter()
    cursor = ""
    while cursor is not None:
        query = f"?cursor={cursor}" if cursor else ""
        page = call(url, "GET", f"/api/requests/{request_id}/images{query}").json
        found.update(image["status"] for image in page["items"])
        cursor = page.get("nextCursor")
    expect("images in the history", dict(found), {"succeeded": images})
    # Killed between the receiver's answer and its event, projections repeats the POST with the same id.
    deliveries = shop.received(request_id)
    outcome.webhooks += len(deliveries)
    expect("different webhook ids", len({delivery.headers["webhook-id"] for delivery in deliveries}), 1)


def _check_whole(outcome: Outcome, url: str, shop: Shop, environment: dict[str, str]) -> None:
    """Fetches, events on each topic, confirmed webhooks, and `replay --verify`."""
    outcome.fetched = len(shop.fetched)
    under_way = len(outcome.made) * UNDER_WAY
    outcome.expect("fetches beyond those under way", max(0, outcome.fetched - outcome.images - under_way), 0)
    settings = Settings(kafka_brokers=environment["SHRINKSTREAM_KAFKA_BROKERS"])
    topics = Topics(settings.topic_prefix)
    per_request = {"requests": 2, "output-requests": 1, "webhooks": 2}  # with its events where nothing goes wrong
    for topic in (
        topics.image_requests,
        topics.image_results,
        topics.requests,
        topics.output_requests,
        topics.webhooks,
    ):
        name = topic.removeprefix(f"{topics.prefix}.")
        events = asyncio.run(events_in(settings, topic))
        usual = per_request[name] * len(outcome.requests) if name in per_request else outcome.images
        outcome.per_image[name] = len(events) / usual
        if len(events) > usual * COPIES + under_way:
            outcome.faults.append(f"{len(events)} events on {name}, where {usual} are usual")
        if topic == topics.webhooks:
            delivered = {event.id: event.subject for event in events if isinstance(event, WebhookDelivered)}
            confirmed = Counter(delivered.values())
            outcome.expect("confirmed webhooks", dict(confirmed), dict.fromkeys(outcome.requests, 1))
    for what in ("progress", "history", "output"):
        verified = subprocess.run(
            [sys.executable, "-m", "infra.cli", "replay", what, "--verify"],
            env={**environment, "SHRINKSTREAM_PUBLIC_URL": url},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if verified.returncode != 0:
            outcome.faults.append(f"replay {what} differs: {verified.stdout[-500:]}{verified.stderr[-500:]}")
