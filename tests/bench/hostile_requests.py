"""What the largest requests that a tenant may upload, and some larger ones, come to in a whole system.

For each: the outcome, its seconds, those of another tenant's one-image requests of another host meanwhile, and the peak
of each role's memory. Part of ``python -m tests.bench hostile``.
"""

import csv
import gzip
import io
import os
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.bench.system import watched_memory
from tests.e2e.conftest import start_system, stop_system
from tests.support.images import endless_jpeg, jpeg
from tests.support.published_clients import Answer, call
from tests.support.shop import Shop

HEADER = ("S. No.", "Product Name", "Input Image URLs")
MOST_COLUMNS = 256
KEYS = {"alice": "key-of-alice", "bob": "key-of-bob"}
CODEC_TIMEOUT = 5  # seconds
TIME_LIMIT = 300.0
MIB = 1024**2
SHOWN = ("api", "progress", "projections", "compress", "decoders", "Kafka", "Cassandra")

Row = Sequence[object]


@dataclass(frozen=True)
class Attack:
    """``requests`` uploads of one CSV."""

    name: str
    header: Sequence[str]
    rows: Callable[[], Iterator[Row]]
    requests: int = 1


def attacks(shop: Shop) -> list[Attack]:
    missing, name = f"{shop.url}/files/missing", "N" * 500
    wide = (*HEADER, *(f"{number:03}{'A' * 56}" for number in range(MOST_COLUMNS - len(HEADER))))
    shop.add("endless.jpg", endless_jpeg(2_500, 1_500))

    def cells(rows: int, size: int) -> Iterator[Row]:
        filled = ["c" * size] * (MOST_COLUMNS - len(HEADER))
        return ([row, name, f"{missing}?{row}", *filled] for row in range(rows))

    def urls(rows: int) -> Iterator[Row]:
        for row in range(rows):
            yield [row, name, ",".join(f"{missing}?{row}-{n}-".ljust(2_048, "u") for n in range(31))]

    return [
        Attack("none", HEADER, lambda: iter([[1, "x", f"{missing}?none"]])),
        Attack(
            "300 rows with a cell of 890 KB",
            (*HEADER, "x"),
            lambda: ([n, "x", missing, "A" * 890_000] for n in range(300)),
        ),
        Attack("a header of 874 KB", (*HEADER, *(["A" * 3_450] * 253)), lambda: cells(1, 1)),
        Attack("100 headers of 16 KB, 256 columns", wide, lambda: cells(1, 1), requests=100),
        Attack("1,000 rows of 64 KB in 256 cells", wide, partial(cells, 1_000, 250)),
        Attack("50 rows of 31 URLs of 2 KB", HEADER, partial(urls, 50)),
        Attack(
            f"8 images of {CODEC_TIMEOUT} s of CPU time",
            HEADER,
            lambda: ([n, "x", f"{shop.url}/files/endless.jpg?{n}"] for n in range(8)),
        ),
    ]


def as_csv(attack: Attack) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(attack.header)
    writer.writerows(attack.rows())
    return text.getvalue().encode()


def send(url: str, owner: str, method: str, path: str, body: bytes | None = None) -> Answer:
    packed = {"Content-Type": "text/csv", "Content-Encoding": "gzip"} if body else {}
    return call(url, method, path, gzip.compress(body) if body else None, {"X-API-Key": KEYS[owner], **packed})


def finish(url: str, owner: str, answer: Answer) -> str:
    """The outcome of a request, with its output CSV and images read."""
    if answer.status != 202:
        problem = answer.json
        return f"{answer.status} {problem['errors'][0]['code'] if problem.get('errors') else problem['detail']}"
    request_id, deadline = answer.json["requestId"], time.monotonic() + TIME_LIMIT
    while (status := send(url, owner, "GET", f"/api/status/{request_id}").json)["status"] != "completed":
        if time.monotonic() > deadline:
            return f"{status['progress']} % after {TIME_LIMIT:g} s"
        time.sleep(0.1)
    download = send(url, owner, "GET", f"/api/download/{request_id}")
    images = send(url, owner, "GET", f"/api/requests/{request_id}/images?limit=1000")
    assert (download.status, images.status) == (200, 200), (download, images)
    reasons = Counter(item["reason"] for item in images.json["items"] if item["reason"])
    return ", ".join(f"{count} {reason}" for reason, count in reasons.items()) or "processed"


@contextmanager
def another_tenant(url: str, image: str) -> Iterator[list[float]]:
    """Yields a list that fills with the seconds of bob's requests of one image, as long as the block lasts."""
    seconds: list[float] = []
    stop = threading.Event()

    def work() -> None:
        while True:
            started = time.perf_counter()
            body = f"{','.join(HEADER)}\n1,bob's,{image}?{started}\n".encode()
            outcome = finish(url, "bob", send(url, "bob", "POST", "/api/upload", body))
            assert outcome == "processed", outcome
            seconds.append(time.perf_counter() - started)
            if stop.wait(1):
                return

    tenant = threading.Thread(target=work, daemon=True)
    tenant.start()
    try:
        yield seconds
    finally:
        stop.set()
        tenant.join(TIME_LIMIT)


def run(attack: Attack, root: int, url: str, image: str) -> str:
    body = as_csv(attack)
    started = time.perf_counter()
    with watched_memory(root) as memory, another_tenant(url, image) as others:
        answers = [send(url, "alice", "POST", "/api/upload", body) for _ in range(attack.requests)]
        outcomes = Counter(finish(url, "alice", answer) for answer in answers)
        seconds = time.perf_counter() - started
    peak: Counter[str] = Counter()
    for sample in memory:
        peak |= sample
    outcome = ", ".join(f"{count} x {text}" if count > 1 else text for text, count in outcomes.items())
    megabytes = "".join(f"{peak[role] // MIB:>{width(role)}}" for role in SHOWN)
    return f"{attack.name:36}{outcome:26}{seconds:6.1f}{max(others):7.1f}{megabytes}"


def width(role: str) -> int:
    return max(6, len(role) + 1)


def main() -> None:
    print("requests of a tenant: seconds, another tenant's longest request (s), and the peak of resident MB by role")
    roles = "".join(f"{role:>{width(role)}}" for role in SHOWN)
    print(f"{'attack':36}{'outcome':26}{'s':>6}{'other':>7}{roles}")
    with Shop() as shop, tempfile.TemporaryDirectory() as folder:
        other_host = shop.address.replace("127.0.0.1", "localhost")
        environment = {
            **os.environ,
            "SHRINKSTREAM_FETCH_ALLOW": f"{shop.address},{other_host}",
            "SHRINKSTREAM_API_KEYS": ",".join(f"{owner}:{key}" for owner, key in KEYS.items()),
            "SHRINKSTREAM_CODEC_TIMEOUT": str(CODEC_TIMEOUT),
        }
        image = shop.add("honest.jpg", jpeg(320, 240)).replace(shop.address, other_host)
        process, url = start_system(environment, "--port", "0", "--data-dir", str(Path(folder) / "data"))
        try:
            for attack in attacks(shop):
                print(run(attack, process.pid, url, image), flush=True)
        finally:
            stop_system(process)


if __name__ == "__main__":
    main()
