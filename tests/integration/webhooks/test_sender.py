"""A webhook that was answered 2xx is delivered, whatever the rest of the answer looks like."""

import pytest

from infra.outbound.addresses import AllowList
from infra.outbound.client import OutboundClient
from streams.events.base import utc_now
from streams.webhooks.delivery import Delivery, Origin
from streams.webhooks.schedule import Outcome, Schedule
from streams.webhooks.sender import Sender
from tests.support.http_site import Answer, drips, serving, writes

OK = b"HTTP/1.1 200 OK\r\n"
END = b"Content-Length: 2\r\n\r\nok"

ANSWERS = {
    "9,000 bytes of CSP": writes(OK + b"Content-Security-Policy: " + b"x" * 9_000 + b"\r\n" + END),
    "a header beyond every limit": writes(OK + b"X: " + b"x" * 300_000 + b"\r\n" + END),
    "5,000 headers": writes(OK + b"".join(b"X-%d: y\r\n" % number for number in range(5_000)) + END),
    "a line without colon": writes(OK + b"X-XSS-Protection=1;\r\n" + END),
    "a space before the colon": writes(OK + b"X-Cache : HIT\r\n" + END),
    "a NUL": writes(OK + b"X: \0\r\n" + END),
    "equal lengths": writes(OK + b"Content-Length: 2\r\n" + END),
    "different lengths": writes(OK + b"Content-Length: 5\r\n" + END),
    "a length that is no number": writes(OK + b"Content-Length: ok\r\n\r\nok"),
    "a negative length": writes(OK + b"Content-Length: -1\r\n\r\nok"),
    "length and chunked": writes(OK + b"Transfer-Encoding: chunked\r\n" + END),
    "broken chunks": writes(OK + b"Transfer-Encoding: chunked\r\n\r\nnonsense\r\n"),
    "an unknown coding": writes(OK + b"Transfer-Encoding: rot13\r\nContent-Encoding: br\r\n" + END),
    "an early hint": writes(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK + END),
    "HTTP/1.0": writes(b"HTTP/1.0 202 Accepted\r\n\r\n"),
    "bare line feeds": writes(b"HTTP/1.1 200 OK\n\nok"),
    "nothing but a status line": writes(OK),
    "204 with a body": writes(b"HTTP/1.1 204 No Content\r\n" + END),
    "headers without end": drips(OK, b"X: y\r\n"),
    "silence after the status line": drips(OK, b""),
}


async def outcome_of(answer: Answer, answer_timeout: float = 10) -> Outcome:
    async with serving(answer) as site, OutboundClient(AllowList.parse("127.0.0.1")) as client:
        origin = Origin("r1", "request.completed", 0, site.url("/hook"), "{}", utc_now())
        sender = Sender(client, [b"key"], Schedule([1.0]), answer_timeout)
        _, outcome = await sender.attempt(Delivery("msg_1", origin))
        assert len(site.heard) == 1
        return outcome


@pytest.mark.slow
@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
async def test_success_status_delivers_whatever_follows(answer: Answer) -> None:
    outcome = await outcome_of(answer)
    assert outcome.reason is None
    assert outcome.status in (200, 202, 204)


async def test_status_arriving_late_leaves_time_for_no_headers() -> None:
    outcome = await outcome_of(drips(OK, b""), answer_timeout=1)
    assert (outcome.status, outcome.reason) == (200, None)


@pytest.mark.parametrize(
    "answer",
    [writes(b"HTTP/1.1 2xx OK\r\n" + END), writes(b"OK\r\n" + END), writes(b"HTTP/1.1\r\n" + END), writes(b"")],
)
async def test_answer_without_a_status_delivers_nothing(answer: Answer) -> None:
    outcome = await outcome_of(answer)
    assert outcome.status is None
    assert outcome.reason in ("fetch_bad_response", "fetch_incomplete")


async def test_retry_after_is_read_among_odd_headers() -> None:
    busy = b"HTTP/1.1 503 Busy\r\nX: " + b"x" * 60_000 + b"\r\nno colon\r\nRetry-After : 17\r\n" + END
    outcome = await outcome_of(writes(busy))
    assert (outcome.status, outcome.reason, outcome.retry_after) == (503, "http_503", 17)
