"""The options of curl that the documents and the page use, for a machine without curl.

`tests/integration/infra/test_curl.py` holds it and the machine's curl to the same requests and files.
"""

import argparse
import http.client
import re
import shlex
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

from tests.support.markdown import ROOT
from tests.support.published_clients import curl_form

TIMEOUT_SECONDS = 120
CANNOT_CONNECT, HTTP_ERROR = 7, 22  # curl's exit codes


def install(folder: Path) -> Path:
    """Write an executable `curl` into a folder."""
    program = folder / "curl"
    command = shlex.join([sys.executable, "-m", "tests.support.curl"])
    program.write_text(f'#!/bin/sh\nPYTHONPATH={shlex.quote(str(ROOT))} exec {command} "$@"\n')
    program.chmod(0o755)
    return program


def form_part(text: str) -> tuple[str, str] | tuple[str, str, bytes]:
    """``name=value``, ``name=@file`` or ``name=@"file"``, the last for file names with a comma or semicolon."""
    name, _, value = text.partition("=")
    quoted = re.fullmatch(r'@"((?:[^"\\]|\\.)*)"', value)
    if quoted:
        path = Path(re.sub(r"\\(.)", r"\1", quoted[1]))
    elif ";" in value or "," in value:
        raise argparse.ArgumentTypeError("parameters of a part, and more than one file, are not supported")
    elif value.startswith("@"):
        path = Path(value[1:])
    else:
        return name, value
    return name, path.name.replace('"', "%22"), path.read_bytes()


def literal_part(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    return name, value


def file_content(text: str) -> bytes:
    if not text.startswith("@"):
        raise argparse.ArgumentTypeError("only @file is supported")
    return Path(text[1:]).read_bytes()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser("curl", allow_abbrev=False)
    parser.add_argument("url")
    parser.add_argument("-X", "--request")
    parser.add_argument("-H", "--header", action="append", default=[], type=lambda text: text.split(": ", 1))
    parser.add_argument("-F", "--form", dest="parts", action="append", type=form_part)
    parser.add_argument("--form-string", dest="parts", action="append", type=literal_part)
    parser.add_argument("--data-binary", type=file_content)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("-O", "--remote-name", action="store_true")
    parser.add_argument("-J", "--remote-header-name", action="store_true")
    parser.add_argument("-f", "--fail", action="store_true")
    parser.add_argument("--retry", type=int, default=0)
    parser.add_argument("--retry-delay", type=float, default=1)
    parser.add_argument("--retry-all-errors", action="store_true", required="--retry" in sys.argv)
    for names in (("-N", "--no-buffer"), ("-s", "--silent"), ("-S", "--show-error")):  # of the display
        parser.add_argument(*names, action="store_true")
    return parser.parse_args()


def ask(options: argparse.Namespace) -> http.client.HTTPResponse:
    url = urlsplit(options.url if "://" in options.url else f"http://{options.url}")
    headers = {"User-Agent": "curl/7.88.1", "Accept": "*/*"}
    body: bytes | None = options.data_binary
    if options.parts:
        body, of_form = curl_form(*options.parts)
        headers |= of_form
    elif body is not None:
        headers["Content-Type"] = "application/x-www-form-urlencoded"
    if body is not None:
        headers["Content-Length"] = str(len(body))
    connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=TIMEOUT_SECONDS)
    connection.putrequest(
        options.request or ("GET" if body is None else "POST"),
        (url.path or "/") + (f"?{url.query}" if url.query else ""),
        skip_accept_encoding=True,
    )
    for name, value in (headers | dict(options.header)).items():
        connection.putheader(name, value)
    connection.endheaders(body)
    return connection.getresponse()


def save(response: http.client.HTTPResponse, options: argparse.Namespace) -> None:
    target = options.output
    if options.remote_name:
        named = response.headers.get_filename() if options.remote_header_name else None
        target = Path(Path(named or urlsplit(options.url).path).name)
    with target.open("wb") if target else open(sys.stdout.fileno(), "wb", closefd=False) as output:
        while piece := response.read1(65536):
            output.write(piece)
            output.flush()


def main() -> int:
    options = parse()
    code, why = 0, ""
    for attempt in range(options.retry + 1):
        if attempt:
            time.sleep(options.retry_delay)
        try:
            response = ask(options)
        except OSError as error:
            code, why = CANNOT_CONNECT, str(error)
            continue
        if response.status < 400 or not options.fail:
            save(response, options)
            return 0
        code, why = HTTP_ERROR, f"the server answered {response.status}"
    print(f"curl: ({code}) {why}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
