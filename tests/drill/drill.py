"""Kill -9 a random process every few seconds while a request is under way; then look for what went wrong."""

import csv
import io
import os
import random
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.e2e.conftest import start_system, stop_system
from tests.support.published_clients import call, curl_form
from tests.support.shop import Shop

# What tells each process of `up` apart, in its command line.
ROLES = {
    "api": "infra.cli api",
    "compress": "worker compress",
    "progress": "worker progress",
    "projections": "worker projections",
    "kafka": "kafka.Kafka",
    "cassandra": "CassandraDaemon",
}
HEADER = "S. No.,Product Name,Input Image URLs\n"
SECONDS_BETWEEN_KILLS = (2.0, 6.0)
FINISH_SECONDS = 300.0
UNDER_WAY = 72  # images that a compress worker has in hand: SHRINKSTREAM_FETCH_CONCURRENCY, and one for each partition


@dataclass
class Outcome:
    """What a drill came to; `faults` is empty when all is well."""

    seed: int
    images: int
    kills: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    fetched: int = 0
    webhooks: int = 0
    faults: list[str] = field(default_factory=list)

    def expect(self, what: str, found: object, wanted: object) -> None:
        if found != wanted:
            self.faults.append(f"{what}: {found!r} instead of {wanted!r}")


def run_drill(seed: int, *, images: int, kills: int, data_dir: Path, roles: tuple[str, ...] = tuple(ROLES)) -> Outcome:
    """One request of `images` images while `kills` processes are killed; bounded in time, on loopback only."""
    chance = random.Random(seed)
    outcome = Outcome(seed, images)
    with Shop() as shop:
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("SHRINKSTREAM_")},
            "SHRINKSTREAM_DATA_DIR": str(data_dir),
            "SHRINKSTREAM_FETCH_ALLOW": shop.address,
            "SHRINKSTREAM_STALL_AFTER": "20",
            "SHRINKSTREAM_LOG_LEVEL": "WARNING",
        }
        process, url = start_system(environment, "--port", "0")
        try:
            started = time.monotonic()
            request_id = _upload(url, shop, images)
            for _ in range(kills):
                time.sleep(chance.uniform(*SECONDS_BETWEEN_KILLS))
                outcome.kills[_kill_one(process.pid, chance, roles)] += 1
            status = _wait_until_complete(url, request_id)
            outcome.seconds = time.monotonic() - started
            _wait_until_ready(url)
            _check(outcome, url, request_id, status, shop, environment)
        finally:
            outcome.expect("exit code of `up`", stop_system(process), 0)
    return outcome


def _upload(url: str, shop: Shop, images: int) -> str:
    names = [shop.add(f"drill-{number}.jpg") for number in range(20)]
    rows = "".join(f"{number},Product {number},{names[number % 20]}?n={number}\n" for number in range(images))
    body, headers = curl_form(("file", "drill.csv", (HEADER + rows).encode()), ("webhookUrl", f"{shop.url}/webhook/x"))
    answer = call(url, "POST", "/api/upload", body, headers)
    assert answer.status == 202, answer.body
    request_id: str = answer.json["requestId"]
    return request_id


def _kill_one(up: int, chance: random.Random, roles: tuple[str, ...]) -> str:
    """Kill the process of a random role; one that is just being started again counts as well."""
    role = chance.choice(roles)
    for child in psutil.Process(up).children(recursive=True):
        try:
            if ROLES[role] in " ".join(child.cmdline()):
                child.kill()
        except psutil.NoSuchProcess:
            continue
    return role


def _wait_until_complete(url: str, request_id: str) -> dict[str, Any]:
    deadline = time.monotonic() + FINISH_SECONDS
    status: dict[str, Any] = {}
    while time.monotonic() < deadline:
        try:
            answer = call(url, "GET", f"/api/status/{request_id}")
        except OSError:
            time.sleep(0.5)  # the API is being started again
            continue
        if answer.status == 200:
            status = answer.json
            if status["status"] == "completed" and status["webhook"] == "delivered":
                return status
        time.sleep(0.2)
    return status


def _wait_until_ready(url: str) -> None:
    """What was killed last is being started again."""
    deadline = time.monotonic() + FINISH_SECONDS
    while time.monotonic() < deadline:
        with suppress(OSError):
            if call(url, "GET", "/readyz").status == 200:
                return
        time.sleep(0.2)
    raise AssertionError("the API did not become ready again")


def _check(
    outcome: Outcome, url: str, request_id: str, status: dict[str, Any], shop: Shop, environment: dict[str, str]
) -> None:
    outcome.expect("status", status.get("status"), "completed")
    outcome.expect("progress", status.get("progress"), 100)
    outcome.expect("succeeded", status.get("succeeded"), outcome.images)
    outcome.expect("failed", status.get("failed"), 0)
    outcome.expect("input bytes", status.get("inputBytes"), _input_bytes(shop, outcome.images))
    content = call(url, "GET", f"/api/download/{request_id}").body
    rows = list(csv.reader(io.StringIO(content.decode("utf-8-sig"))))[1:]
    outcome.expect("rows of the output CSV", [row[0] for row in rows], [str(n) for n in range(outcome.images)])
    outcome.expect("empty places in it", sum(not row[3] for row in rows), 0)
    outcome.fetched = len(shop.fetched)
    under_way = outcome.kills.total() * UNDER_WAY
    outcome.expect("fetches beyond those that were under way", max(0, outcome.fetched - outcome.images - under_way), 0)
    # A kill between the receiver's answer and its being written down repeats the call, with the same id.
    outcome.webhooks = len(shop.received(request_id))
    outcome.expect("different webhook ids", len({d.headers["webhook-id"] for d in shop.received(request_id)}), 1)
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


def _input_bytes(shop: Shop, images: int) -> int:
    return sum(len(shop.files[f"drill-{number % 20}.jpg"]) for number in range(images))
