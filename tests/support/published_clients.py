"""HTTP as the published clients speak it: requests byte for byte as curl sends them."""

import http.client
import json
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

CLIENT_SECONDS = 120.0  # a busy machine may take long over large uploads


@dataclass(frozen=True)
class Answer:
    """Status, headers (lower case) and body of an HTTP answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def call(base: str, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> Answer:
    parts = urlsplit(base)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=CLIENT_SECONDS)
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
    finally:
        connection.close()


def curl_form(*parts: tuple[str, str] | tuple[str, str, bytes]) -> tuple[bytes, dict[str, str]]:
    """The body and headers that ``curl -F name=value`` and ``curl -F name=@file.csv`` send."""
    boundary = "------------------------d74496d66958873e"
    lines = b""
    for name, *rest in parts:
        lines += f"--{boundary}\r\n".encode()
        if len(rest) == 1:
            lines += f'Content-Disposition: form-data; name="{name}"\r\n\r\n{rest[0]}\r\n'.encode()
        else:
            filename, content = rest
            assert isinstance(content, bytes)
            lines += (
                f'Content-Disposition: form-data; name="{name}"; filename="{filename}"\r\n'
                "Content-Type: application/octet-stream\r\n\r\n"
            ).encode()
            lines += content + b"\r\n"
    lines += f"--{boundary}--\r\n".encode()
    return lines, {
        "User-Agent": "curl/7.88.1",
        "Accept": "*/*",
        "Content-Type": f"multipart/form-data; boundary={boundary}",
    }


def upload(base: str, csv: str, path: str = "/api/upload", **fields: str) -> str:
    """Upload a CSV as curl does; returns the request id."""
    body, headers = curl_form(("file", "products.csv", csv.encode()), *fields.items())
    answer = call(base, "POST", path, body, headers)
    assert answer.status == 202, answer.body
    request_id: str = answer.json["requestId"]
    return request_id


def wait_for(base: str, request_id: str, field: str, value: str, timeout: float = 180) -> dict[str, Any]:
    deadline = time.monotonic() + timeout
    while True:
        status: dict[str, Any] = call(base, "GET", f"/api/status/{request_id}").json
        if status.get(field) == value:  # a problem, such as a 503, has other fields
            return status
        assert time.monotonic() < deadline, status
        time.sleep(0.1)


def completed(base: str, request_id: str, timeout: float = 180) -> dict[str, Any]:
    """Poll as the published clients do until the request is completed; returns the last status."""
    return wait_for(base, request_id, "status", "completed", timeout)


def delivered(base: str, request_id: str, timeout: float = 240) -> dict[str, Any]:
    """Poll until the request's webhook is confirmed; returns the last status."""
    return wait_for(base, request_id, "webhook", "delivered", timeout)
