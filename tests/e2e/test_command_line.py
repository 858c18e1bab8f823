"""The command line with the whole system: what a request came to, in words, as JSON, and as an exit code."""

import csv
import io
import json
import re
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import System
from tests.support.console_script import Running, shrinkstream
from tests.support.published_clients import call, completed, upload
from tests.support.shop import Shop, photo

HEADER = "S. No.,Product Name,Input Image URLs\n"


@pytest.fixture
def products(shop: Shop, tmp_path: Path) -> Path:
    """Two rows: an image that is there, and twelve that are not."""
    missing = ",".join(f"{shop.url}/files/cli-none-{number}.jpg" for number in range(12))
    path = tmp_path / "products.csv"
    path.write_text(f'{HEADER}7,Shoe,{shop.add("cli-there.jpg")}\n8,Hat,"{missing}"\n')
    return path


def environment(system: System) -> dict[str, str]:
    return {**system.environment, "TERM": "xterm-256color"}


def documents(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_failed_images_are_named_with_exit_code_4(system: System, shop: Shop, products: Path, tmp_path: Path) -> None:
    output = tmp_path / "output.csv"
    ended = shrinkstream("submit", str(products), "--output", str(output), environment=environment(system))
    assert (ended.returncode, ended.stdout) == (4, "")
    assert "\x1b" not in ended.stderr, "no control codes without a terminal"
    first, result, *failures, more, last = ended.stderr.splitlines()
    request_id = first.removeprefix("request ")
    assert result.startswith("1 of 13 images compressed, 12 failed, 0.0 of 0.")
    assert len(failures) == 10
    assert re.fullmatch(
        rf"failed: row 2, S\. No\. 8: {re.escape(shop.url)}/files/cli-none-0\.jpg \(fetch_http_404: .+\)", failures[0]
    )
    assert more == f"… all 12: shrinkstream images {request_id} --status failed"
    assert last == "shrinkstream: 12 of 13 images failed"
    rows = list(csv.reader(io.StringIO(output.read_text("utf-8-sig"))))
    assert [row[0] for row in rows] == ["S. No.", "7", "8"], "the output CSV is written all the same"
    assert list(tmp_path.glob("*.part")) == list(tmp_path.glob(".*.part")) == []

    listed = shrinkstream("images", request_id, "--status", "failed", environment=environment(system))
    assert listed.returncode == 0
    assert [line.split()[0] for line in listed.stdout.splitlines()] == [str(index) for index in range(1, 13)]
    (there,) = documents(
        shrinkstream("images", request_id, "--status", "succeeded", "--json", environment=environment(system)).stdout
    )
    assert there["inputUrl"].endswith("cli-there.jpg")

    # What is watched when it is over ends as submitting it would have.
    watched = shrinkstream("watch", request_id, "--json", environment=environment(system))
    assert watched.returncode == 4
    (status,) = documents(watched.stdout)
    assert (status["status"], status["failed"], len(status["failures"])) == ("completed", 12, 12)
    assert status["failures"][0]["reason"] == "fetch_http_404"

    for number in range(12):
        shop.files[f"cli-none-{number}.jpg"] = photo(seed=number)
    retried = shrinkstream("retry", request_id, "--json", environment=environment(system))
    assert retried.returncode == 0, retried.stderr
    assert documents(retried.stdout)[0]["succeeded"] == 13
    assert "13 of 13 images compressed, 0 failed" in retried.stderr


def test_progress_is_shown_apart_from_standard_output(system: System, shop: Shop, tmp_path: Path) -> None:
    urls = [shop.add(f"cli-bar-{number}.jpg") for number in range(60)]
    shop.slow_seconds = 4.5  # less than FETCH_TIMEOUT: the request runs until there is something to show
    path = tmp_path / "many.csv"
    path.write_text(
        HEADER + "".join(f"{number},Sock,{url}\n" for number, url in enumerate(urls)) + f"61,Sock,{shop.url}/slow\n"
    )
    with Running("submit", str(path), environment=environment(system), terminal=True) as submitting:
        assert submitting.end() == 4
    assert submitting.out.startswith("\ufeffS. No.,")
    assert len(submitting.out.splitlines()) == 62
    assert "60/61" in submitting.err
    assert "61/61" in submitting.err
    assert re.search(r"\d images/s", submitting.err)
    assert re.search(r"of 0\.\d MB saved \(\d+%\)", submitting.err)
    assert "failed: row 61, S. No. 61: " in submitting.err


def test_download_is_complete_or_absent(system: System, shop: Shop, tmp_path: Path) -> None:
    request_id = upload(system.url, f"{HEADER}1,Shoe,{shop.add('cli-download.jpg')}\n")
    assert shrinkstream("watch", request_id, environment=environment(system)).returncode == 0
    output = tmp_path / "output.csv"
    output.write_text("before")
    ended = shrinkstream("download", request_id, "--output", str(output), "--json", environment=environment(system))
    assert documents(ended.stdout) == [{"requestId": request_id, "output": str(output), "bytes": output.stat().st_size}]
    printed = shrinkstream("download", request_id, environment=environment(system))
    assert printed.stdout.encode() == output.read_bytes().replace(b"\r\n", b"\n")
    for place in (tmp_path / "none" / "output.csv", Path("/proc/output.csv")):
        ended = shrinkstream("download", request_id, "--output", str(place), environment=environment(system))
        assert ended.returncode == 1
        assert re.fullmatch(r"shrinkstream: .*output\.csv can't be written: .*\n", ended.stderr)


def test_images_are_downloaded_verified_and_resumed(system: System, shop: Shop, tmp_path: Path) -> None:
    """Named as in the archive; damaged ones are downloaded again, right ones are not touched."""
    urls = [shop.add(f"cli-image-{n}.jpg") for n in range(12)]
    rows = "".join(f"{n},Shoe: {n}/2?,{url}\n" for n, url in enumerate(urls))
    request_id = upload(system.url, f"{HEADER}{rows}x,None,{shop.url}/files/none.jpg\n")
    completed(system.url, request_id)
    folder = tmp_path / "new" / "images"

    def download(*options: str) -> "subprocess.CompletedProcess[str]":
        return shrinkstream("download", request_id, "--images", str(folder), *options, environment=environment(system))

    def found() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    ended = download("--json")
    archive = call(system.url, "GET", f"/api/requests/{request_id}/archive.zip").body
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        expected = {name: opened.read(name) for name in opened.namelist()}
    assert (ended.returncode, found()) == (0, expected), ended.stderr
    assert len(expected) == 12
    size = sum(map(len, expected.values()))
    counts = {"downloaded": 12, "alreadyThere": 0, "bytes": size}
    assert documents(ended.stdout) == [{"requestId": request_id, "images": str(folder), **counts}]

    first, second, third = sorted(expected)[:3]
    (folder / first).write_bytes(b"cut off")
    (folder / second).unlink()
    kept = (folder / third).stat().st_mtime_ns
    assert "2 images downloaded, 0.0 MB, 10 already there" in download().stderr
    assert found() == expected
    assert (folder / third).stat().st_mtime_ns == kept

    stored = system.data_dir / "storage" / "images" / request_id / "0.jpg"
    stored.write_bytes(b"another image")
    (folder / first).unlink()
    ended = download()
    assert ended.returncode == 1
    assert first in ended.stderr
    assert "SHA-256" in ended.stderr
    assert found() == {name: content for name, content in expected.items() if name != first}
    (folder / first).mkdir()
    ended = download()
    assert (ended.returncode, f"{folder / first} can't be" in ended.stderr) == (1, True), ended.stderr
    assert download("--output", "x.csv").returncode == 2
    assert shrinkstream("download", "unknown", "--images", str(folder), environment=environment(system)).returncode == 3


def test_operator_commands_print_json(system: System) -> None:
    created = shrinkstream("init", "--json", environment=environment(system))
    assert documents(created.stdout) == [{"created": []}]
    verified = shrinkstream(
        "replay", "history", "--verify", "--request", "none", "--json", environment=environment(system)
    )
    (report,) = documents(verified.stdout)
    assert (report["what"], report["verified"], report["differences"]) == ("history", True, [])
    assert "\x1b" not in verified.stderr
    letters = documents(shrinkstream("dead-letters", "list", "--json", environment=environment(system)).stdout)
    assert all(letter["topic"] for letter in letters), "those of other tests, if any"
