"""Faults of all kinds while requests are under way; then everything is compared with what was uploaded."""

import asyncio
import csv
import io
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from infra.cli.system import TARGETS
from infra.devserver.ports import free_ports
from infra.settings import Settings
from streams.events.webhooks import WebhookDelivered
from streams.log.topics import Topics
from tests.drill.checks import Found, RequestFound
from tests.drill.faults import CLOCKS, OF_CLUSTER, ON_STORAGE, ROLES, Fault, Kind, can_mount, make, plan, small_storage
from tests.drill.servers import DrillServers
from tests.drill.watch import Outage, Watch
from tests.e2e.conftest import start_system, stop_system
from tests.support.published_clients import call, curl_form
from tests.support.shop import Shop
from tests.support.topic_reader import events_in
from tests.support.waiting import wait_until

__all__ = ["HEADER", "ROLES", "Made", "Outcome", "run_drill"]

HEADER = "S. No.,Product Name,Input Image URLs\n"
FINISH_SECONDS = 300.0  # for healing, from the end of the last fault on
FILES = 20
CLOCK = Path(__file__).with_name("clock")
FATAL = re.compile(r'"level": ?"critical"')  # in the last line of a worker that ended itself
SECOND_WORKERS = ("progress", "projections")
"""Roles that have a second worker, so that the first one that is away has a successor."""


@dataclass
class Made:
    """A fault that was made ``at`` a time until ``ended``, and what was not ready from then on (seconds since start).

    ``accepted``: how long the next upload took, repeated until it was accepted.
    """

    fault: Fault
    at: float
    ended: float
    outages: list[Outage] = field(default_factory=list)
    accepted: float | None = None


@dataclass
class Outcome:
    """The result of a drill; ``wrong`` is empty when all is well."""

    seed: int
    made: list[Made] = field(default_factory=list)
    skipped: list[Kind] = field(default_factory=list)
    images: int = 0
    requests: dict[str, int] = field(default_factory=dict)  # request id → images
    seconds: float = 0.0
    healed: float = 0.0
    fetched: int = 0
    webhooks: int = 0
    events: dict[str, float] = field(default_factory=dict)  # on a topic, per event that is usual
    wrong: list[str] = field(default_factory=list)


def run_drill(
    seed: int,
    *,
    images: int,
    more_images: int,
    faults: int,
    seconds: tuple[float, float],
    data_dir: Path,
    kinds: Iterable[Kind] = tuple(Kind),
    cluster: bool = False,
) -> Outcome:
    """A request of ``images`` images, then one of ``more_images`` before each of ``faults`` faults of ``seconds`` each.

    Bounded in time, on loopback only.
    """
    mounted = can_mount()
    possible = [kind for kind in kinds if mounted or kind not in ON_STORAGE]
    outcome = Outcome(seed, skipped=[kind for kind in kinds if kind not in possible])
    possible = [kind for kind in possible if cluster or kind not in OF_CLUSTER]
    clocks = data_dir / CLOCKS
    clocks.mkdir(parents=True)
    with (
        Shop() as shop,
        small_storage(data_dir / "stored", mounted=mounted) as storage,
        DrillServers(data_dir / "servers", cluster=cluster) as servers,
    ):
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("SHRINKSTREAM_")},
            **servers.environment,
            "SHRINKSTREAM_DATA_DIR": str(data_dir / "system"),
            "SHRINKSTREAM_STORAGE_URL": storage.as_uri(),
            "SHRINKSTREAM_FETCH_ALLOW": shop.address,
            "SHRINKSTREAM_STALL_AFTER": "20",
            "SHRINKSTREAM_LOG_LEVEL": "WARNING",
            "PYTHONPATH": os.pathsep.join(filter(None, (str(CLOCK), os.environ.get("PYTHONPATH")))),
            "DRILL_CLOCKS": str(clocks),
        }
        process, url = start_system(environment, "--port", "0")
        try:
            for number in range(FILES):
                shop.add(f"drill-{number}.jpg")
            addresses = _addresses(data_dir / "system")
            for role, port in zip(SECOND_WORKERS, free_ports(), strict=False):
                own = {"SHRINKSTREAM_PUBLIC_URL": url, "SHRINKSTREAM_WORKER_PORT": str(port)}
                servers.start_worker(role, data_dir / "system/logs" / f"{role}-2.log", {**environment, **own})
                addresses[f"{role}-2"] = f"127.0.0.1:{port}"
            with Watch(addresses) as watch:
                wait_until(lambda: not watch.not_ready, "all workers are ready", FINISH_SECONDS)
                _upload(outcome, url, shop, images)
                for fault in plan(seed, faults, seconds, possible):
                    accepted = _upload(outcome, url, shop, more_images)
                    if outcome.made:
                        outcome.made[-1].accepted = accepted
                    time.sleep(fault.wait)
                    if fault.kind is Kind.EXPEL:  # only a member of the group can be expelled
                        wait_until(partial(_is_ready, watch, fault.target), "it is a member", FINISH_SECONDS)
                    at = watch.now
                    make(fault, servers, storage, data_dir)
                    outcome.made.append(Made(fault, at, watch.now))
                ended = watch.now
                statuses = _wait_until_complete(url, outcome.requests, ended + FINISH_SECONDS - watch.now)
                left = ended + FINISH_SECONDS - watch.now
                with suppress(AssertionError):
                    wait_until(lambda: not watch.not_ready, "all processes are ready", max(left, 1.0))
                outcome.wrong += [f"{name} is not ready" for name in watch.not_ready]
                outcome.healed, outcome.seconds = watch.now - ended, watch.now
                for made, following in zip(outcome.made, [*outcome.made[1:], None], strict=True):
                    made.outages = watch.outages(made.at, following.at if following else watch.now)
            outcome.wrong += _silent_expulsions(outcome.made, data_dir / "system/logs")
            found = _find(outcome, url, shop, statuses, environment)
            outcome.fetched = found.fetched
            outcome.webhooks = sum(len(request.webhook_ids) for request in found.requests.values())
            outcome.events = {topic: events / found.usual(topic) for topic, events in found.events.items()}
            outcome.wrong += found.wrong()
        finally:
            servers.stop_workers()
            if (status := stop_system(process)) != 0:
                outcome.wrong.append(f"`up` ended with status {status}")
    return outcome


def _is_ready(watch: Watch, role: str) -> bool:
    return not any(name.startswith(role) for name in watch.not_ready)


def _silent_expulsions(made: Iterable[Made], logs: Path) -> Iterator[str]:
    expelled = sum(each.fault.kind is Kind.EXPEL for each in made)
    texts = [log.read_text() for log in sorted(logs.glob("progress*.log"))]
    # Whichever guard is first: its lease, its writes without an answer, its stalled events.
    if (ended := sum(len(FATAL.findall(text)) for text in texts)) < expelled:
        yield f"{expelled} progress workers were expelled, and {ended} ended themselves"
        yield from (f"the end of a log: {text[-1500:]}" for text in texts)


def _addresses(data_dir: Path) -> dict[str, str]:
    """The address of each process of `up`, by name."""
    return {
        target["labels"]["process"]: target["targets"][0] for target in json.loads((data_dir / TARGETS).read_text())
    }


def _upload(outcome: Outcome, url: str, shop: Shop, images: int) -> float:
    """Upload with an Idempotency-Key until it is accepted, as a careful client does; the seconds until then."""
    number = len(outcome.requests)
    rows = "".join(f"{n},Product {n},{shop.url}/files/drill-{n % FILES}.jpg?n={number}-{n}\n" for n in range(images))
    body, headers = curl_form(("file", "drill.csv", (HEADER + rows).encode()), ("webhookUrl", f"{shop.url}/webhook/x"))
    headers["Idempotency-Key"] = f"drill-{number}"
    started = time.monotonic()
    answer: object = "no answer"
    while time.monotonic() - started < FINISH_SECONDS:
        with suppress(OSError):
            found = call(url, "POST", "/api/upload", body, headers)
            answer = (found.status, found.body)
            if found.status == 202:
                outcome.requests[found.json["requestId"]] = images
                outcome.images += images
                return time.monotonic() - started
            if found.status < 500 and found.status != 409:
                break
        time.sleep(0.5)
    raise AssertionError(f"upload {number} was not accepted: {answer}")


def _wait_until_complete(url: str, requests: Iterable[str], seconds: float) -> dict[str, Any]:
    """The last status of each request."""
    deadline = time.monotonic() + seconds
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


def _find(outcome: Outcome, url: str, shop: Shop, statuses: dict[str, Any], environment: dict[str, str]) -> Found:
    sizes = [len(shop.files[f"drill-{n}.jpg"]) for n in range(FILES)]
    found = Found(len(outcome.made), fetched=len(shop.fetched))
    for request_id, images in outcome.requests.items():
        request = RequestFound(images, sum(sizes[n % FILES] for n in range(images)), statuses.get(request_id, {}))
        content = call(url, "GET", f"/api/download/{request_id}").body
        request.csv_rows = list(csv.reader(io.StringIO(content.decode("utf-8-sig"))))[1:]
        request.history = _history(url, request_id)
        request.webhook_ids = [delivery.headers["webhook-id"] for delivery in shop.received(request_id)]
        found.requests[request_id] = request
    settings = Settings(kafka_brokers=environment["SHRINKSTREAM_KAFKA_BROKERS"])
    topics = Topics(settings.topic_prefix)
    for topic in (
        topics.image_requests,
        topics.image_results,
        topics.requests,
        topics.output_requests,
        topics.webhooks,
    ):
        events = asyncio.run(events_in(settings, topic))
        found.events[topic.removeprefix(f"{topics.prefix}.")] = len(events)
        if topic == topics.webhooks:
            delivered = {event.id: event.request_id for event in events if isinstance(event, WebhookDelivered)}
            found.confirmed = Counter(delivered.values())
    for what in ("progress", "history", "output"):
        verified = subprocess.run(
            [sys.executable, "-m", "infra.cli", "replay", what, "--verify"],
            env={**environment, "SHRINKSTREAM_PUBLIC_URL": url},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        found.replays[what] = "" if verified.returncode == 0 else verified.stdout[-500:] + verified.stderr[-500:]
    return found


def _history(url: str, request_id: str) -> Counter[str]:
    """The images of a request by their status."""
    found: Counter[str] = Counter()
    cursor = ""
    while cursor is not None:
        query = f"?cursor={cursor}" if cursor else ""
        page = call(url, "GET", f"/api/requests/{request_id}/images{query}").json
        found.update(image["status"] for image in page["items"])
        cursor = page.get("nextCursor")
    return found
