"""A steady load for minutes while processes are killed; memory, file handles and what is unfinished are watched."""

import os
import random
import signal
import statistics
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.drill.drill import HEADER, ROLES
from tests.e2e.conftest import start_system, stop_system
from tests.support.published_clients import call, curl_form
from tests.support.shop import Shop

# Rows of each upload, again and again; every eleventh of all images can't be fetched.
ROWS = (3, 40, 8, 150, 20)
UPLOAD_EVERY = 4.0  # seconds: about ten images a second
SAMPLE_EVERY = 5.0
FAULT_EVERY = (40.0, 70.0)
PAUSE_SECONDS = 8.0  # how long a server that is paused stands still
SETTLE_SECONDS = 60.0  # a process that has just begun fills its caches and pools
FINISH_SECONDS = 180.0
# What a process may have more of at the end than after its first minute: noise, and one more page of an allocator.
MORE_MEMORY = (1.25, 16e6)  # times, and bytes on top
MORE_FILES = 24
PAUSED = ("kafka", "cassandra")  # they are paused instead of killed: their memory is watched for the whole time


@dataclass
class Life:
    """What one process had, sample after sample."""

    role: str
    began: float
    memory: list[float] = field(default_factory=list)
    files: list[int] = field(default_factory=list)


@dataclass
class Growth:
    """The first and the last part of the longest life of a role's processes."""

    role: str
    seconds: float
    memory: tuple[float, float]
    files: tuple[float, float]

    @property
    def faults(self) -> Iterator[str]:
        (before, after), (opened, open_now) = self.memory, self.files
        if after > before * MORE_MEMORY[0] + MORE_MEMORY[1]:
            yield f"{self.role}: memory grew from {before / 1e6:.0f} to {after / 1e6:.0f} MB in {self.seconds:.0f} s"
        if open_now > opened + MORE_FILES:
            yield f"{self.role}: open files grew from {opened:.0f} to {open_now:.0f} in {self.seconds:.0f} s"


@dataclass
class Soaked:
    """What a soak came to; `faults` is empty when all is well."""

    requests: int = 0
    images: int = 0
    done: Counter[str] = field(default_factory=Counter)
    growth: list[Growth] = field(default_factory=list)
    unfinished: list[int] = field(default_factory=list)
    slowest: float = 0.0
    faults: list[str] = field(default_factory=list)


class Watch:
    """Looks at every process of the system every few seconds."""

    def __init__(self, root: int) -> None:
        self._root = psutil.Process(root)
        self._lives: dict[tuple[int, float], Life] = {}

    def look(self) -> None:
        for process in self._root.children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                command = " ".join(process.cmdline())
                role = next((role for role, mark in ROLES.items() if mark in command), None)
                if role is None:
                    continue
                life = self._lives.setdefault((process.pid, process.create_time()), Life(role, time.monotonic()))
                if time.monotonic() - life.began > SETTLE_SECONDS:
                    life.memory.append(process.memory_info().rss)
                    life.files.append(process.num_fds())

    def growth(self) -> Iterator[Growth]:
        for role in ROLES:
            life = max((life for life in self._lives.values() if life.role == role), key=lambda life: len(life.memory))
            part = len(life.memory) // 3
            if part == 0:
                continue
            yield Growth(
                role,
                len(life.memory) * SAMPLE_EVERY,
                (statistics.median(life.memory[:part]), statistics.median(life.memory[-part:])),
                (statistics.median(life.files[:part]), statistics.median(life.files[-part:])),
            )


def run_soak(minutes: float, *, seed: int, data_dir: Path) -> Soaked:
    """Load and faults for some minutes, on loopback only; then everything has to come to its end."""
    chance = random.Random(seed)
    soaked = Soaked()
    with Shop() as shop:
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("SHRINKSTREAM_")},
            "SHRINKSTREAM_FETCH_ALLOW": shop.address,
            "SHRINKSTREAM_STALL_AFTER": "20",
            "SHRINKSTREAM_LOG_LEVEL": "WARNING",
        }
        process, url = start_system(environment, "--port", "0", "--data-dir", str(data_dir))
        watch = Watch(process.pid)
        requests: dict[str, float] = {}
        try:
            with _faults(process.pid, chance, soaked.done):
                end = time.monotonic() + minutes * 60
                upload_at = look_at = time.monotonic()
                while time.monotonic() < end:
                    if time.monotonic() >= upload_at:
                        upload_at += UPLOAD_EVERY
                        _upload(url, shop, soaked, requests)
                    if time.monotonic() >= look_at:
                        look_at += SAMPLE_EVERY
                        watch.look()
                        _ask(url, requests, soaked)
                    time.sleep(0.1)
            _finish(url, requests, soaked)
            watch.look()
            soaked.growth = list(watch.growth())
            soaked.faults += [fault for growth in soaked.growth for fault in growth.faults]
        finally:
            if (code := stop_system(process)) != 0:
                soaked.faults.append(f"exit code of `up`: {code}")
        third = len(soaked.unfinished) // 3
        if third and statistics.median(soaked.unfinished[-third:]) > 2 * max(soaked.unfinished[: 2 * third], default=0):
            soaked.faults.append(f"requests that wait grow: {soaked.unfinished}")
    return soaked


def _upload(url: str, shop: Shop, soaked: Soaked, requests: dict[str, float]) -> None:
    """One more request; the API may just be away, as a client would meet it."""
    rows = ROWS[soaked.requests % len(ROWS)]
    names = [shop.add(f"soak-{number}.jpg") for number in range(10)] if not shop.files else sorted(shop.files)
    first = soaked.images
    urls = (
        f"{shop.url}/files/{'gone' if number % 11 == 0 else names[number % 10]}?n={number}"
        for number in range(first, first + rows)
    )
    content = HEADER + "".join(f"{number},Product,{each}\n" for number, each in enumerate(urls))
    body, headers = curl_form(("file", "soak.csv", content.encode()), ("webhookUrl", f"{shop.url}/webhook/x"))
    headers["Idempotency-Key"] = f"soak-{first}"
    with suppress(OSError):
        answer = call(url, "POST", "/api/upload", body, headers)
        if answer.status == 202:
            requests[answer.json["requestId"]] = time.monotonic()
            soaked.requests += 1
            soaked.images += rows


def _ask(url: str, requests: dict[str, float], soaked: Soaked) -> None:
    """Forget what is done; count the rest."""
    for request_id, began in list(requests.items()):
        try:
            answer = call(url, "GET", f"/api/status/{request_id}")
        except OSError:
            break  # the API is being started again
        if answer.status == 404:
            soaked.faults.append(f"status of {request_id}: 404")
        elif answer.status == 200 and answer.json["status"] == "completed" and answer.json["webhook"] == "delivered":
            soaked.slowest = max(soaked.slowest, time.monotonic() - began)
            del requests[request_id]
    soaked.unfinished.append(len(requests))


def _finish(url: str, requests: dict[str, float], soaked: Soaked) -> None:
    deadline = time.monotonic() + FINISH_SECONDS
    while requests and time.monotonic() < deadline:
        _ask(url, requests, soaked)
        time.sleep(1)
    if requests:
        soaked.faults.append(f"{len(requests)} requests never ended: {', '.join(requests)}")


@contextmanager
def _faults(root: int, chance: random.Random, done: Counter[str]) -> Iterator[None]:
    """Every minute or so a process of a random role is killed, or a server stands still for a while."""
    stop = threading.Event()

    def harm() -> None:
        while not stop.wait(chance.uniform(*FAULT_EVERY)):
            role = chance.choice(list(ROLES))
            for child in psutil.Process(root).children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    if ROLES[role] not in " ".join(child.cmdline()):
                        continue
                    if role in PAUSED:
                        child.send_signal(signal.SIGSTOP)
                        stop.wait(PAUSE_SECONDS)
                        child.send_signal(signal.SIGCONT)
                    else:
                        child.kill()
            done[role] += 1

    harming = threading.Thread(target=harm, daemon=True)
    harming.start()
    try:
        yield
    finally:
        stop.set()
        harming.join(PAUSE_SECONDS + 5)
