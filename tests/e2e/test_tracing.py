"""From upload to done in one trace: on every record, in the webhook, in the logs, and as `trace` tells it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import System
from tests.support.console_script import shrinkstream
from tests.support.published_clients import call, completed, curl_form, delivered
from tests.support.shop import Shop

HEADER = "S. No.,Product Name,Input Image URLs\n"
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def uploaded(system: System, shop: Shop, name: str, traceparent: str | None) -> str:
    """A request of two images, one of them missing, with a receiver; all of it done."""
    text = f"{HEADER}1,Shoe,{shop.add(name)}\n2,Hat,{shop.url}/files/none-{name}\n"
    body, headers = curl_form(("file", "a.csv", text.encode()), ("webhookUrl", f"{shop.url}/webhook/{name}"))
    headers |= {"traceparent": traceparent} if traceparent else {}
    request_id: str = call(system.url, "POST", "/api/upload", body, headers).json["requestId"]
    completed(system.url, request_id)
    delivered(system.url, request_id)
    return request_id


def trace(system: System, request_id: str, *options: str) -> list[dict[str, Any]]:
    ended = shrinkstream("trace", request_id, "--json", *options, environment=system.environment)
    assert ended.returncode == 0, ended.stderr
    return [json.loads(line) for line in ended.stdout.splitlines()]


def test_trace_tells_request_from_upload_to_completion_by_process(system: System, shop: Shop) -> None:
    request_id = uploaded(system, shop, "trace.jpg", None)
    head, *lines = trace(system, request_id)
    assert (head["status"], head["traceId"], head["repeats"]) == ("completed", request_id.replace("-", ""), 0)
    assert {line["kind"] for line in lines} == {"event"}, "there are no gaps"
    told = [line["event"] for line in lines]
    assert told[:2] == ["ImageRequested", "ImageRequested"]
    # An image is processed as soon as it is requested, which may be before its request is created.
    assert sorted(told[2:5]) == ["ImageFailed", "ImageProcessed", "RequestCreated"]
    ends = [name for name in told[5:] if name != "RequestProjected"]
    assert ends == ["OutputCsvRequested", "RequestCompleted", "WebhookAttempted", "WebhookDelivered"]
    writers = {line["event"]: line["worker"].partition("@")[0] for line in lines}
    assert writers["RequestCreated"] == writers["ImageRequested"] == "api"
    assert writers["ImageProcessed"] == writers["ImageFailed"] == "compress"
    assert writers["OutputCsvRequested"] == "progress"
    assert writers["RequestCompleted"] == writers["WebhookAttempted"] == "projections"
    assert all(re.fullmatch(r".+-\d+", line["worker"]) for line in lines)

    text = shrinkstream("trace", request_id, environment=system.environment).stdout
    assert text.splitlines()[0] == f"request {request_id}: completed, 2 images in 2 rows"
    assert "GAP" not in text
    assert "\x1b" not in text
    assert "fetch_http_404" in text


@pytest.mark.parametrize(
    ("name", "sent", "trace_id", "flags"),
    [
        ("traced.jpg", f"00-{TRACE}-{PARENT}-00", TRACE, "00"),
        ("hostile.jpg", f"00-{TRACE}-{PARENT}-00-{'a' * 2000}", None, "01"),
    ],
    ids=["a usable one", "a hostile one"],
)
def test_trace_of_caller_reaches_the_receiver_and_logs(
    system: System, shop: Shop, name: str, sent: str, trace_id: str | None, flags: str
) -> None:
    request_id = uploaded(system, shop, name, sent)
    trace_id = trace_id or request_id.replace("-", "")
    head, *lines = trace(system, request_id)
    assert head["traceId"] == trace_id
    contexts = [line["traceparent"].split("-") for line in lines]
    assert {(context[1], context[3]) for context in contexts} == {(trace_id, flags)}
    assert len({context[2] for context in contexts}) == len(lines), "each event is a span of its own"
    (delivery,) = shop.received(request_id)
    (attempted,) = (line for line in lines if line["event"] == "WebhookAttempted")
    assert delivery.headers["traceparent"] == attempted["traceparent"]
    logs = [path.read_text() for path in Path(system.data_dir, "logs").glob("*.log")]
    said = [json.loads(line) for text in logs for line in text.splitlines()]
    about = {line["event"]: line for line in said if line.get("request_id") == request_id}
    assert {"request created", "image failed", "webhook attempted"} <= about.keys()
    assert {line["trace_id"] for line in about.values()} == {trace_id}
