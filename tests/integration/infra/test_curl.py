"""The tests' curl and, where there is one, the machine's send the same bytes and write the same files."""

import http.server
import re
import shlex
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import curl

pytestmark = pytest.mark.slow

HOSTILE_NAME = 'it\'s; "ok",.csv'
HEADERS = "Host: 127.0.0.1\r\nUser-Agent: curl\r\nAccept: */*\r\n"
FILE = (
    'Content-Disposition: form-data; name="file"; filename="{}"\r\n'
    "Content-Type: application/octet-stream\r\n\r\nA,B\r\n"
)
FIELD = 'Content-Disposition: form-data; name="{}"\r\n\r\n{}\r\n'


def form(*parts: str) -> str:
    body = "".join(f"--BOUNDARY\r\n{part}" for part in parts) + "--BOUNDARY--\r\n"
    return f"{HEADERS}Content-Type: multipart/form-data; boundary=BOUNDARY\r\n\r\n{body}"


REQUESTS = {
    "{url}/status?a=%20b": f"GET /status?a=%20b HTTP/1.1\r\n{HEADERS}\r\n",
    "-N -H 'X-Api-Key: a: b' {url}": f"GET / HTTP/1.1\r\n{HEADERS}X-Api-Key: a: b\r\n\r\n",
    "-X POST {url}/retry": f"POST /retry HTTP/1.1\r\n{HEADERS}\r\n",
    "-F file=@plain.csv -F format=webp {url}": "POST / HTTP/1.1\r\n"
    + form(FILE.format("plain.csv"), FIELD.format("format", "webp")),
    r"""-F 'file=@"it'\''s; \"ok\",.csv"' --form-string 'hook=@a;b' {url}""": "POST / HTTP/1.1\r\n"
    + form(FILE.format("it's; %22ok%22,.csv"), FIELD.format("hook", "@a;b")),
    "-H 'Content-Type: text/csv' --data-binary @plain.csv {url}": "POST / HTTP/1.1\r\n"
    f"{HEADERS}Content-Type: text/csv\r\n\r\nA,B",
}


class Echo(http.server.BaseHTTPRequestHandler):
    """Keeps the last request as it came, less what differs from one to the next."""

    last = ""
    failures = 0

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        head = f"{self.requestline}\r\n" + "".join(
            f"{name}: {value}\r\n" for name, value in self.headers.items() if name != "Content-Length"
        )
        boundary = self.headers.get_boundary()
        text = f"{head}\r\n{body}".replace(boundary or "\0", "BOUNDARY")
        text = re.sub(r"(Host: 127\.0\.0\.1):\d+", r"\1", text)
        type(self).last = re.sub(r"(User-Agent: curl)/[\d.]+", r"\1", text)
        self.send_response(503 if Echo.failures else 200)
        Echo.failures = max(0, Echo.failures - 1)
        self.send_header("Content-Disposition", 'attachment; filename="named.csv"')
        self.end_headers()
        self.wfile.write(b"the answer")

    do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
        pass


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Echo) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(params=["of the tests", *(["of the machine"] if shutil.which("curl") else [])])
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(curl.install(tmp_path_factory.mktemp("curl"))) if request.param == "of the tests" else "curl"


def run(program: str, arguments: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [program, *shlex.split(arguments)], cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize("arguments", REQUESTS)
def test_curl_sends_the_request_of_its_options(arguments: str, program: str, url: str, tmp_path: Path) -> None:
    for name in ("plain.csv", HOSTILE_NAME):
        (tmp_path / name).write_text("A,B")
    done = run(program, arguments.format(url=url), tmp_path)
    assert (done.returncode, done.stdout) == (0, "the answer"), done.stderr
    assert Echo.last == REQUESTS[arguments]


@pytest.mark.parametrize(
    ("arguments", "name"), [("-sS -o chosen", "chosen"), ("-O", "of-the-url"), ("-OJ", "named.csv")]
)
def test_curl_saves_the_response_under_the_right_name(
    arguments: str, name: str, program: str, url: str, tmp_path: Path
) -> None:
    assert run(program, f"{arguments} {url}/of-the-url", tmp_path).returncode == 0
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {name: "the answer"}


def test_curl_retries_only_with_the_option(program: str, url: str, tmp_path: Path) -> None:
    Echo.failures = 3
    assert run(program, url, tmp_path).stdout == "the answer"
    failed = run(program, f"--silent --fail {url}", tmp_path)
    assert (failed.returncode, failed.stdout) == (curl.HTTP_ERROR, "")
    retried = run(program, f"-sf --retry 2 --retry-delay 1 --retry-all-errors {url}", tmp_path)
    assert (retried.returncode, retried.stdout) == (0, "the answer")
    assert run(program, "-sf http://127.0.0.1:1", tmp_path).returncode == curl.CANNOT_CONNECT
