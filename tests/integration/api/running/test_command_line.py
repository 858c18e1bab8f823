"""The command line against a running API beside which nothing works: requests go on for ever."""

import json
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from infra.devserver.ports import remembered_ports
from tests.integration.api.running.conftest import KEY, Api
from tests.support.console_script import Running, shrinkstream

pytestmark = pytest.mark.slow

CSV = "S. No.,Product Name,Input Image URLs\n1,Shoe,https://shop.example/1.jpg\n2,Hat,https://shop.example/2.jpg\n"


@pytest.fixture
def environment(api: Api) -> dict[str, str]:
    plain = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "TERM")}
    return {**plain, "SHRINKSTREAM_URL": api.url, "SHRINKSTREAM_API_KEYS": KEY, "TERM": "xterm-256color"}


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "products.csv"
    path.write_text(CSV)
    return str(path)


class Line:
    """A connection between a client and a server that can be cut at any time: everything goes through a TCP relay."""

    def __init__(self, server: str) -> None:
        host, port = server.removeprefix("http://").split(":")
        self._server = (host, int(port))
        self._open: list[socket.socket] = []
        self._is_cut = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def cut(self) -> None:
        self._is_cut = True
        for end in self._open:
            self._drop(end)
        self._open.clear()

    def mend(self) -> None:
        self._is_cut = False

    def close(self) -> None:
        self.cut()
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._is_cut:
                client.close()
                continue
            server = socket.create_connection(self._server)
            self._open += [client, server]
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self._relay, args=(source, sink), daemon=True).start()

    def _relay(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                sink.sendall(data)
        except OSError:
            pass  # cut
        finally:
            self._drop(sink)

    @staticmethod
    def _drop(end: socket.socket) -> None:
        with suppress(OSError):  # it is down already
            end.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def line(api: Api) -> Iterator[Line]:
    relay = Line(api.url)
    yield relay
    relay.close()


def request_in(text: str) -> str:
    found = re.search(r"request ([0-9a-f-]{36})", text)
    assert found is not None, text
    return found[1]


def test_ctrl_c_keeps_request_running_and_prints_resume_command(
    api: Api, environment: dict[str, str], file: str
) -> None:
    with Running("submit", file, environment=environment) as submitting:
        submitting.wait_until(lambda: "request " in submitting.err)
        submitting.process.send_signal(signal.SIGINT)
        assert submitting.end() == 130
    request_id = request_in(submitting.err)
    assert submitting.out == ""
    assert submitting.err.splitlines()[-1].endswith(f"shrinkstream watch {request_id}")
    assert api.call("GET", f"/api/status/{request_id}").json["status"] == "processing"

    arguments = ("watch", request_id, "--server", api.url + "/")
    with Running(*arguments, environment=environment, terminal=True) as watching:
        watching.wait_until(lambda: "0/2" in watching.err)
        watching.process.send_signal(signal.SIGINT)
        assert watching.end() == 130
    assert f"shrinkstream watch {request_id} --server {api.url}/" in watching.err


@pytest.mark.parametrize("colour", ["", "1"], ids=["colours", "NO_COLOR"])
def test_terminal_shows_progress_bar_without_unwanted_colour(
    environment: dict[str, str], file: str, colour: str
) -> None:
    variables = {**environment, **({"NO_COLOR": colour} if colour else {})}
    with Running("submit", file, environment=variables, terminal=True) as submitting:
        submitting.wait_until(lambda: "0/2" in submitting.err)
        submitting.process.send_signal(signal.SIGINT)
        assert submitting.end() == 130
    assert "━" in submitting.err
    assert "\x1b[?25h" in submitting.err, "the cursor is back"
    assert bool(re.search(r"\x1b\[[0-9;]*3[0-9]", submitting.err)) == (not colour)
    assert "the request continues" in submitting.err


def test_wait_survives_cut_connection(api: Api, environment: dict[str, str], file: str, line: Line) -> None:
    with Running("submit", file, "--server", line.url, environment=environment) as submitting:
        submitting.wait_until(lambda: "request " in submitting.err)
        line.cut()
        submitting.wait_until(lambda: submitting.err.count("retrying") > 1)
        line.mend()
        api.call("POST", f"/api/requests/{request_in(submitting.err)}/cancel")
        assert submitting.end() == 5
    assert submitting.err.endswith("shrinkstream: the request is cancelled\n")
    assert "Traceback" not in submitting.err


@pytest.mark.parametrize("arguments", [["status"], ["watch"], ["images"], ["download"], ["cancel"], ["retry"]])
def test_unknown_request_is_an_error_of_one_line(environment: dict[str, str], arguments: list[str]) -> None:
    ended = shrinkstream(*arguments, "nobody-knows-it", environment=environment)
    assert (ended.returncode, ended.stdout) == (3, "")
    assert ended.stderr == "shrinkstream: there is no request nobody-knows-it\n"


def test_wrong_key_is_an_error_of_one_line(environment: dict[str, str], file: str) -> None:
    for arguments in (["submit", file], ["list"]):
        ended = shrinkstream(*arguments, environment={**environment, "SHRINKSTREAM_API_KEYS": "guess"})
        assert (ended.returncode, ended.stdout) == (3, "")
        assert re.fullmatch(r"shrinkstream: send a valid key .*\n", ended.stderr)


def test_rejected_csv_has_its_bad_rows_named(environment: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "bad.csv"
    rows = "".join(f"{number},Shoe,no-url-\x1b[31m{number}\n" for number in range(30))
    path.write_text("S. No.,Product Name,Input Image URLs\n" + rows)
    ended = shrinkstream("submit", str(path), environment=environment)
    assert (ended.returncode, ended.stdout) == (3, "")
    lines = ended.stderr.splitlines()
    assert lines[0] == "shrinkstream: 30 of 30 rows are invalid"
    assert lines[1].startswith("line 2, Input Image URLs: ")
    assert len(lines) == 12
    assert lines[-1] == "… 30 rows in all"
    assert "\x1b" not in ended.stderr, "what a file says does nothing to the terminal"


def test_fatal_response_is_an_error_of_one_line(environment: dict[str, str], file: str, tmp_path: Path) -> None:
    nowhere = "http://127.0.0.1:{}".format(remembered_ports(tmp_path / "ports.json", ["none"])["none"])
    for code, arguments, said in (
        (1, ["status", "r", "--server", nowhere], f"no answer from {nowhere}"),
        (1, ["watch", "r", "--server", nowhere], f"no answer from {nowhere}"),
        (1, ["status", "r", "--server", "http://127.0.0.1:99999"], "not the address of a server"),
        (1, ["status", "r", "--server", "shop.example"], "http://host/"),
        (1, ["status", "r", "--server", "http://no-such-host.invalid"], "no answer from http://no-such-host.invalid"),
        (1, ["submit", file, "--output", str(tmp_path / "none" / "a.csv")], "none is not a directory"),
        (2, ["submit", str(tmp_path / "none.csv")], "does not exist"),
        (2, ["status", "two words"], "a request id has"),
        (2, ["download", "r", "--json"], "--json requires --output"),
    ):
        ended = shrinkstream(*arguments, environment=environment)
        assert (ended.returncode, ended.stdout) == (code, ""), ended.stderr
        assert said in ended.stderr.splitlines()[-1]
        assert code == 2 or len(ended.stderr.splitlines()) == 1


def test_file_that_cannot_be_reread_is_not_uploaded(environment: dict[str, str], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    ended = shrinkstream("submit", str(tmp_path / "pipe"), environment=environment)
    assert ended.returncode == 1
    assert ended.stderr == f"shrinkstream: {tmp_path}/pipe is not a regular file\n"


@pytest.mark.parametrize(
    ("status", "content_type", "body"),
    [
        (200, "text/html", "<html>Welcome to nginx!</html>"),
        (404, "text/html", "<html>nothing here</html>"),
        (200, "application/json", '{"status": "ok"}'),
        (200, "application/json", "[1, 2"),
    ],
)
def test_other_server_is_recognised(
    environment: dict[str, str], file: str, status: int, content_type: str, body: str
) -> None:
    with site(status, content_type, body) as url:
        for arguments in (["submit", file], ["download", "r"]):
            ended = shrinkstream(*arguments, "--server", url, environment=environment)
            assert (ended.returncode, ended.stdout) == (1, "")
            assert re.fullmatch(rf"shrinkstream: {re.escape(url)} is not a shrinkstream server: .*\n", ended.stderr)


@contextmanager
def site(status: int, content_type: str, body: str, *, missing: int = 0) -> Iterator[str]:
    """A web server that says the same to everybody; yields its address. ``missing``: bytes that never come."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body) + missing))
            self.end_headers()
            self.wfile.write(body.encode())

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass  # the requests are no news

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_broken_download_keeps_the_earlier_file(environment: dict[str, str], tmp_path: Path) -> None:
    output = tmp_path / "output.csv"
    output.write_text("before")
    with site(200, "text/csv", "S. No.,", missing=1000) as url:
        ended = shrinkstream("download", "r", "--output", str(output), "--server", url, environment=environment)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith(f"shrinkstream: no answer from {url}: ")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("output.csv", "before")]


def test_json_option_prints_json(api: Api, environment: dict[str, str], file: str) -> None:
    submitted = shrinkstream("submit", file, "--no-wait", "--json", environment=environment)
    assert submitted.returncode == 0
    request_id = json.loads(submitted.stdout)["requestId"]
    status = json.loads(shrinkstream("status", request_id, "--json", environment=environment).stdout)
    assert status == api.call("GET", f"/api/status/{request_id}").json
    listed = shrinkstream("list", "--json", "--limit", "1", environment=environment).stdout
    assert [json.loads(line)["total"] for line in listed.splitlines()] == [2]
    images = shrinkstream("images", request_id, "--json", environment=environment).stdout
    assert [json.loads(line)["index"] for line in images.splitlines()] == [0, 1]
    cancelled = shrinkstream("cancel", request_id, "--json", environment=environment)
    assert json.loads(cancelled.stdout)["status"] == "cancelled"
    watched = shrinkstream("watch", request_id, "--json", environment=environment)
    assert watched.returncode == 5
    assert json.loads(watched.stdout)["status"] == "cancelled"
    assert watched.stderr.splitlines()[-1] == "shrinkstream: the request is cancelled"
