"""Errors over real HTTP: each is a problem (RFC 9457), and none tells anything of the inside."""

from http import HTTPStatus
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from structlog.testing import capture_logs

from api.http.problems import Problem, ProblemCode, RowProblem, not_found, problem_middleware, unavailable

MAX_BODY = 1000


async def _crash(request: web.Request) -> web.Response:
    raise RuntimeError("password=hunter2 in /srv/private/app.py")


async def _crash_within(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    response.content_length = 5000
    await response.prepare(request)
    await response.write(b"x" * 1000)
    raise RuntimeError("password=hunter2")


async def _read(request: web.Request) -> web.Response:
    return web.Response(body=await request.read())


async def _refuse(request: web.Request) -> web.Response:
    raise Problem(
        ProblemCode.CSV_REJECTED,
        "2 rows are wrong",
        errors=[RowProblem(row=2, column="S. No.", code="serial_missing", message="empty")],
        headers={"X-Extra": "1"},
        limit=100,
    )


async def _redirect(request: web.Request) -> web.Response:
    raise web.HTTPFound("/elsewhere")


async def _unknown(request: web.Request) -> web.Response:
    raise not_found(request.query["id"])


async def _away(request: web.Request) -> web.Response:
    raise unavailable("Cassandra can't be reached")


async def _teapot(request: web.Request) -> web.Response:
    raise web.HTTPBadRequest(reason="the form is broken")


async def ask(method: str, path: str, **options: Any) -> tuple[aiohttp.ClientResponse, Any]:
    """Send one request to a server with the middleware; the answer and its JSON."""
    app = web.Application(middlewares=[problem_middleware], client_max_size=MAX_BODY)
    app.add_routes(
        [
            web.get("/crash", _crash),
            web.get("/crash-within", _crash_within),
            web.post("/read", _read),
            web.get("/refuse", _refuse),
            web.get("/redirect", _redirect),
            web.get("/unknown", _unknown),
            web.get("/away", _away),
            web.get("/bad", _teapot),
        ]
    )
    async with (
        TestClient(TestServer(app, host="127.0.0.1")) as client,
        client.request(method, path, allow_redirects=False, **options) as answer,
    ):
        await answer.read()
        return answer, await answer.json(content_type=None) if answer.status >= 400 else None


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("GET", "/nothing/here", None, 404, "not-found"),
        ("DELETE", "/crash", None, 405, "method-not-allowed"),
        ("POST", "/read", b"x" * (MAX_BODY + 1), 413, "too-large"),
        ("GET", "/crash", None, 500, "internal"),
        ("GET", "/bad", None, 400, "bad-request"),
        ("GET", "/refuse", None, 422, "csv-rejected"),
        ("GET", "/unknown?id=x", None, 404, "unknown-request"),
        ("GET", "/away", None, 503, "unavailable"),
    ],
)
async def test_every_error_has_members_of_rfc_9457(
    method: str, path: str, body: bytes | None, status: int, code: str
) -> None:
    answer, problem = await ask(method, path, data=body)
    assert answer.status == status
    assert answer.content_type == "application/problem+json"
    assert problem["status"] == status
    assert problem["title"] == HTTPStatus(status).phrase
    assert problem["type"] == f"urn:shrinkstream:problem:{code}"
    assert problem["detail"]


async def test_crash_is_logged_and_not_disclosed() -> None:
    with capture_logs() as logs:
        answer, problem = await ask("GET", "/crash?token=hunter2")
    shown = str(problem) + str(answer.headers)
    for inside in ("hunter2", "private", "RuntimeError", "Traceback", "app.py"):
        assert inside not in shown
    (entry,) = [entry for entry in logs if entry["log_level"] == "error"]
    assert (entry["method"], entry["path"]) == ("GET", "/crash")
    assert entry["exc_info"]


async def test_crash_within_response_closes_connection_and_is_logged() -> None:
    with capture_logs() as logs, pytest.raises(aiohttp.ClientPayloadError):
        await ask("GET", "/crash-within")
    assert [entry["path"] for entry in logs if entry["log_level"] == "error"] == ["/crash-within"]


async def test_wrong_method_gets_allow_header() -> None:
    answer, _ = await ask("DELETE", "/read")
    assert answer.headers["Allow"] == "POST"


async def test_problem_has_its_errors_members_and_headers() -> None:
    answer, problem = await ask("GET", "/refuse")
    assert problem["errors"] == [{"row": 2, "column": "S. No.", "code": "serial_missing", "message": "empty"}]
    assert problem["limit"] == 100
    assert answer.headers["X-Extra"] == "1"


async def test_problem_without_errors_has_no_errors_member() -> None:
    _, problem = await ask("GET", "/unknown?id=x")
    assert set(problem) == {"type", "title", "status", "detail"}


async def test_transient_problem_has_retry_after() -> None:
    answer, _ = await ask("GET", "/away")
    assert int(answer.headers["Retry-After"]) > 0


async def test_an_overlong_id_is_not_repeated_in_full() -> None:
    _, problem = await ask("GET", f"/unknown?id={'x' * 500}")
    assert len(problem["detail"]) < 120


async def test_redirects_and_successes_pass_untouched() -> None:
    answer, _ = await ask("GET", "/redirect")
    assert (answer.status, answer.headers["Location"]) == (302, "/elsewhere")
    answer, _ = await ask("POST", "/read", data=b"x")
    assert answer.status == 200
