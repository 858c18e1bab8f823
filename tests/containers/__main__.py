"""``make test-containers``: the compose file on a real engine, from build to down, with kills between."""

import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.request import urlopen

from infra.devserver.ports import free_ports
from infra.settings import parse_webhook_secrets
from streams.webhooks.signature import owner_keys
from tests.containers.engine import ROOT, EngineError, docker, inspect, missing_engine
from tests.containers.standins import build_missing
from tests.support.published_clients import call, upload

PROJECT = "shrinkstream-containers-test"
SERVICES = ("kafka", "cassandra", "init", "api", "gateway", "compress", "progress", "projections", "prometheus")
ROLES = ("api", "compress", "progress", "projections")
SHOP = f"{PROJECT}-shop"
IMAGES = 120
SECRET = "whsec_c2VjcmV0IG9mIHRoZSBzZXJ2ZXI="
# SIGTERM ends the Java servers by their own handlers, with the status of the signal.
EXIT_CODES = {"kafka": {0, 143}, "cassandra": {0, 143}}


class Stack:
    """The compose project of this run."""

    def __init__(self) -> None:
        self.port = next(free_ports())
        self.url = f"http://127.0.0.1:{self.port}"
        self.env = {
            **os.environ,
            "SHRINKSTREAM_PORT": str(self.port),
            "SHRINKSTREAM_FETCH_ALLOW": f"{SHOP}:8000",
            "SHRINKSTREAM_WEBHOOK_SECRET": SECRET,
        }

    def compose(self, *arguments: str) -> str:
        return docker("compose", "--project-name", PROJECT, "--profile", "monitoring", *arguments, env=self.env)

    def up(self, *options: str) -> None:
        self.compose("up", "--detach", "--wait", "--wait-timeout", "300", *options, *SERVICES)

    def containers(self, service: str) -> list[str]:
        return self.compose("ps", "--all", "--quiet", service).split()

    def volumes(self) -> set[str]:
        return set(docker("volume", "ls", "--quiet").split())


@contextmanager
def running() -> Iterator[Stack]:
    stack = Stack()
    try:
        yield stack
    finally:
        docker("rm", "--force", "--volumes", SHOP)
        stack.compose("down", "--volumes", "--timeout", "5")


def csv_of(images: int) -> str:
    """Distinct addresses, so that none is answered by the result of another."""
    names = itertools.cycle(path.name for path in sorted((ROOT / "infra/demo").glob("*.jpg")))
    rows = (f"{n},Shoe,http://{SHOP}:8000/{name}?{n}\n" for n, name in zip(range(images), names, strict=False))
    return "S. No.,Product Name,Input Image URLs\n" + "".join(rows)


def wait_until(what: str, is_so: Callable[[], bool], timeout: float = 180) -> None:
    deadline = time.monotonic() + timeout
    while not is_so():
        assert time.monotonic() < deadline, f"not within {timeout:g} s: {what}"
        time.sleep(0.5)


def status_of(stack: Stack, request_id: str) -> dict[str, Any]:
    """The status, or nothing while the gateway has no API that is ready."""
    answer = call(stack.url, "GET", f"/api/status/{request_id}")
    assert answer.status in (200, 503), answer.body
    found: dict[str, Any] = answer.json if answer.status == 200 else {}
    return found


def is_under_way(stack: Stack, request_id: str) -> bool:
    return int(status_of(stack, request_id).get("succeeded", 0)) > 5


def all_succeed(stack: Stack, request_id: str, images: int) -> None:
    wait_until("the request is completed", lambda: status_of(stack, request_id).get("status") == "completed", 300)
    status = status_of(stack, request_id)
    assert (status["total"], status["succeeded"], status["failed"]) == (images, images, 0), status


def stack_starts(stack: Stack) -> None:
    stack.up("--build")
    docker(
        *("run", "--detach", "--name", SHOP, "--network", f"{PROJECT}_default"),
        *("--volume", f"{ROOT / 'infra/demo'}:/shop:ro", "--workdir", "/shop"),
        *("--entrypoint", "python", "shrinkstream:0.1.0", "-m", "http.server", "8000"),
    )


def request_is_processed(stack: Stack) -> None:
    all_succeed(stack, upload(stack.url, csv_of(7)), 7)


def gateway_hides_metrics(stack: Stack) -> None:
    for path in ("/metrics", "/%6Detrics", "/metrics/", "/metrics%3f"):
        assert call(stack.url, "GET", path).status == 404, path


def operator_prints_webhook_secret(stack: Stack) -> None:
    printed = stack.compose("run", "--rm", "--no-deps", "projections", "webhook-secret", "alice").strip()
    assert parse_webhook_secrets(printed) == owner_keys(parse_webhook_secrets(SECRET), "alice")


def killed_workers_lose_nothing(stack: Stack) -> None:
    request_id = upload(stack.url, csv_of(IMAGES))
    wait_until("images under way", lambda: is_under_way(stack, request_id))
    for role in ("compress", "progress", "projections"):
        for container in stack.containers(role):
            docker("kill", "--signal", "KILL", container)
    stack.up()
    all_succeed(stack, request_id, IMAGES)


def restarted_kafka_loses_nothing(stack: Stack) -> None:
    request_id = upload(stack.url, csv_of(IMAGES))
    wait_until("images under way", lambda: is_under_way(stack, request_id))
    stack.compose("restart", "kafka")
    all_succeed(stack, request_id, IMAGES)


def roles_scale(stack: Stack) -> None:
    stack.up("--scale", "compress=2", "--scale", "api=2")
    all_succeed(stack, upload(stack.url, csv_of(IMAGES)), IMAGES)
    stack.up("--scale", "compress=1", "--scale", "api=1")


def prometheus_sees_every_role(stack: Stack) -> None:
    def targets() -> list[str]:
        with urlopen("http://127.0.0.1:9090/api/v1/targets", timeout=10) as answer:
            return [target["health"] for target in json.load(answer)["data"]["activeTargets"]]

    wait_until("every process is scraped", lambda: targets() == ["up"] * len(ROLES))
    with urlopen("http://127.0.0.1:9090/api/v1/rules", timeout=10) as answer:
        groups = json.load(answer)["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert rules
    assert {rule["health"] for rule in rules} <= {"ok", "unknown"}, [r for r in rules if r["health"] == "err"]


def missing_role_alerts(stack: Stack) -> None:
    stack.compose("stop", "compress")

    def firing() -> bool:
        with urlopen("http://127.0.0.1:9090/api/v1/alerts", timeout=10) as answer:
            alerts = json.load(answer)["data"]["alerts"]
        return any(a["labels"]["alertname"] == "ShrinkstreamRoleMissing" and a["state"] == "firing" for a in alerts)

    wait_until("the alert of the missing role", firing, 600)
    stack.up()


def stop_is_clean(stack: Stack) -> None:
    stream = urlopen(f"{stack.url}/api/requests/{upload(stack.url, csv_of(IMAGES))}/events", timeout=30)
    names = {name: stack.containers(name) for name in SERVICES}
    stack.compose("stop")
    stream.close()
    for name, containers in names.items():
        for container in containers:
            code = inspect(container)["State"]["ExitCode"]
            assert code in EXIT_CODES.get(name, {0}), f"{name} ended with {code}"


def data_survive_down_and_up(stack: Stack) -> None:
    stack.up()
    before = call(stack.url, "GET", "/api/requests?limit=200").json["items"]
    wait_until("what was stopped is done", lambda: all(r["status"] == "completed" for r in requests_of(stack)), 300)
    volumes = stack.volumes()
    docker("rm", "--force", SHOP)
    stack.compose("down", "--timeout", "60")
    assert {volume for volume in stack.volumes() if len(volume) == 64} <= volumes, "anonymous volumes are left"
    stack.up()
    after = {request["requestId"]: request for request in requests_of(stack)}
    for request in before:
        assert after[request["requestId"]]["succeeded"] == request["total"], request
        content = call(stack.url, "GET", f"/api/download/{request['requestId']}")
        assert content.status == 200, content.status


def requests_of(stack: Stack) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = call(stack.url, "GET", "/api/requests?limit=200").json["items"]
    return found


STEPS: tuple[Callable[[Stack], None], ...] = (
    stack_starts,
    request_is_processed,
    gateway_hides_metrics,
    operator_prints_webhook_secret,
    killed_workers_lose_nothing,
    restarted_kafka_loses_nothing,
    roles_scale,
    prometheus_sees_every_role,
    stop_is_clean,
    data_survive_down_and_up,
    missing_role_alerts,
)


def main() -> int:
    if reason := missing_engine():
        print(f"container tests are left out: {reason}")
        return 0
    wanted = [step for step in STEPS if step.__name__ != "missing_role_alerts" or "--alerts" in sys.argv]
    passed = 0
    try:
        began = time.monotonic()
        build_missing()
        print(f"stand-ins ready: {time.monotonic() - began:.0f} s", flush=True)
        with running() as stack:
            for step in wanted:
                began = time.monotonic()
                try:
                    step(stack)
                except Exception:
                    print(stack.compose("logs", "--tail", "40")[-20_000:])
                    raise
                passed += 1
                print(f"{step.__name__.replace('_', ' ')}: {time.monotonic() - began:.0f} s", flush=True)
    except (AssertionError, EngineError, OSError) as error:
        print(f"FAILED: {error}")
    print(f"{passed} passed, {len(wanted) - passed} failed")
    return int(passed < len(wanted))


if __name__ == "__main__":
    sys.exit(main())
