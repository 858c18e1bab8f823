"""A probe is answered from what is known: at once, and soon by what is so."""

import asyncio
import json
import urllib.error
import urllib.request

import pytest

from infra.observability import metrics, readiness
from infra.observability.probes import ProbesError, serving_probes
from infra.observability.readiness import NOT_OPEN, NotReady, Readiness
from tests.support.waiting import eventually


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "CHECK_INTERVAL", 0.05)
    monkeypatch.setattr(readiness, "FAILED_INTERVAL", 0.01)


class Server:
    """Something that is asked whether it is there."""

    def __init__(self) -> None:
        self.problem: Exception | None = None
        self.hangs = False
        self.asked = 0

    async def answer(self) -> None:
        self.asked += 1
        if self.hangs:
            await asyncio.sleep(3600)
        if self.problem is not None:
            raise self.problem


def of(server: Server) -> Readiness:
    checks = Readiness()
    checks.add_check("server", server.answer, interval=0.02)
    return checks


def outcome(checks: Readiness) -> str:
    said = checks.health()
    assert said.checks is not None
    assert (said.status, said.http_status) in (("ready", 200), ("not ready", 503))
    assert (said.status == "ready") == (said.checks["server"] == "ok")
    return said.checks["server"]


async def becomes(checks: Readiness, expected: str) -> None:
    async def is_so() -> bool:
        return outcome(checks) == expected

    await eventually(is_so)


def test_process_is_not_ready_before_first_check() -> None:
    assert outcome(of(Server())) == NOT_OPEN


async def test_readiness_reports_failed_hanging_and_recovered_checks() -> None:
    server = Server()
    checks = of(server)
    async with checks.checking():
        await becomes(checks, "ok")
        server.problem = NotReady("it doesn't answer", "connection refused by 10.0.0.1")
        await becomes(checks, "it doesn't answer")
        server.problem = ZeroDivisionError("a defect of the check")
        await becomes(checks, "ZeroDivisionError")
        server.problem = None
        await becomes(checks, "ok")
        server.hangs = True
        await becomes(checks, "no answer in 0.05 s")
        server.hangs = False
        await becomes(checks, "ok")
    asked = server.asked
    await asyncio.sleep(0.1)
    assert server.asked == asked, "nobody is asked any more"


@pytest.mark.parametrize("turns", range(5))
async def test_checks_end_when_cancelled_beside_a_result(turns: int) -> None:
    """``turns`` of the event loop after the answer."""
    answered = asyncio.Event()

    async def run() -> None:
        await answered.wait()

    checks = Readiness()
    checks.add_check("server", run)
    async with asyncio.timeout(60), checks.checking():
        await asyncio.sleep(0)
        answered.set()
        for _ in range(turns):
            await asyncio.sleep(0)


async def test_state_is_read_per_request_and_is_metric() -> None:
    problems: list[str] = []
    checks = of(Server())
    checks.add_state("state", lambda: problems[0] if problems else None)
    async with checks.checking():
        await becomes(checks, "ok")
        problems.append("not any more")
        assert checks.health().checks == {"state": "not any more", "server": "ok"}
        (family,) = metrics.READY.collect()
        assert {sample.labels["check"]: sample.value for sample in family.samples} == {"state": 0, "server": 1}


def get(address: tuple[str, int], path: str) -> tuple[int, str, str]:
    host, port = address
    try:
        with urllib.request.urlopen(f"http://{host}:{port}{path}", timeout=60) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.headers["Content-Type"], error.read().decode()


async def test_a_worker_answers_probes_and_prometheus() -> None:
    server = Server()
    server.problem = NotReady("it doesn't answer", "a detail for the log alone")
    checks = of(server)
    registry = metrics.registry_of("progress")
    async with serving_probes("127.0.0.1", 0, checks, registry) as address, checks.checking():
        await becomes(checks, "it doesn't answer")
        status, _, body = await asyncio.to_thread(get, address, "/healthz")
        assert (status, json.loads(body)) == (200, {"status": "ok"})
        status, kind, body = await asyncio.to_thread(get, address, "/readyz")
        assert (status, kind) == (503, "application/json; charset=utf-8")
        assert json.loads(body) == {"status": "not ready", "checks": {"server": "it doesn't answer"}}
        status, kind, body = await asyncio.to_thread(get, address, "/metrics")
        assert (status, kind) == (200, "text/plain; version=0.0.4; charset=utf-8")
        assert 'shrinkstream_info{role="progress"' in body
        assert 'shrinkstream_ready{check="server"} 0.0' in body
        assert "shrinkstream_images_total" not in body, "what another role does"
        with pytest.raises(ProbesError, match=f"{address[0]}:{address[1]} can't be listened on"):
            async with serving_probes(*address, checks, registry):
                pass
