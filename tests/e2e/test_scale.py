"""Several processes of a role work as one."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from infra.devserver.ports import free_ports
from tests.e2e.conftest import System
from tests.support.console_script import shrinkstream
from tests.support.processes import end
from tests.support.published_clients import call, completed, upload
from tests.support.scrape import samples_of
from tests.support.shop import Shop
from tests.support.waiting import wait_until

HEADER = "S. No.,Product Name,Input Image URLs\n"
START_SECONDS = 180.0


@contextmanager
def another(
    system: System, *command: str, faust: bool = False, **variables: str
) -> Iterator["subprocess.Popen[bytes]"]:
    """One more process of the running system."""
    program = [sys.executable, "-m", "faust" if faust else "infra.cli"]
    process = subprocess.Popen(
        [*program, *command],
        env={**system.environment, "SHRINKSTREAM_PUBLIC_URL": system.url, **variables},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        end(process)


def wait_until_ready(url: str) -> None:
    def is_ready() -> bool:
        with suppress(OSError):
            return call(url, "GET", "/readyz").status == 200
        return False

    wait_until(is_ready, f"{url} is ready", START_SECONDS)


def has_partitions(probes: str) -> bool:
    """Whether a worker that may be starting owns partitions; it measures the lag of each."""
    with suppress(OSError):
        return any(sample.name == "shrinkstream_consumer_lag_records" for sample in samples_of("progress", probes))
    return False


def test_other_api_knows_request_after_202(system: System, shop: Shop, tmp_path: Path) -> None:
    port = next(free_ports())
    url = f"http://127.0.0.1:{port}"
    image = shop.add("two-apis.jpg")
    with another(system, "api", SHRINKSTREAM_PORT=str(port), SHRINKSTREAM_DATA_DIR=str(tmp_path)):
        wait_until_ready(url)
        for _ in range(20):
            request_id = upload(system.url, f"{HEADER}1,Shoe,{image}\n")
            assert call(url, "GET", f"/api/status/{request_id}").status == 200
        assert completed(url, request_id)["succeeded"] == 1


def test_workers_read_partitions_added_under_way(system: System, shop: Shop, tmp_path: Path) -> None:
    image = shop.add("grown.jpg")
    rows = "".join(f"{number},Shoe {number},{image}\n" for number in range(200))
    under_way = upload(system.url, HEADER + rows)
    grown = system.run("init", "--partitions", "12")
    assert (grown.returncode, grown.stdout) == (0, f"created 12 partitions of {system.name}.image-requests\n")
    port = next(free_ports())
    url = f"http://127.0.0.1:{port}"
    # An API that starts now spreads images over all twelve; workers that were there before have to notice.
    with another(system, "api", SHRINKSTREAM_PORT=str(port), SHRINKSTREAM_DATA_DIR=str(tmp_path)):
        wait_until_ready(url)
        spread = upload(url, HEADER + rows)
        for request_id in (under_way, spread):
            status = completed(system.url, request_id)
            assert (status["succeeded"], status["failed"]) == (200, 0)
            assert completed(url, request_id) == status


def test_workers_that_join_and_leave_lose_nothing(system: System, shop: Shop) -> None:
    images = [shop.add(f"join-{number}.jpg") for number in range(5)]
    rows = "".join(f"{number},Shoe {number},{images[number % 5]}\n" for number in range(600))
    request_id = upload(system.url, HEADER + rows)
    with (
        another(system, "worker", "progress"),
        another(system, "-A", "streams.compress", "worker", "-l", "info", faust=True),
    ):
        other = upload(system.url, HEADER + rows)
        status = completed(system.url, request_id)
        assert (status["succeeded"], status["failed"]) == (600, 0)
    status = completed(system.url, other)
    assert (status["succeeded"], status["failed"]) == (600, 0)


def test_two_apis_agree_while_progress_worker_restarts(system: System, shop: Shop, tmp_path: Path) -> None:
    image = shop.add("two-stories.jpg")
    rows = "".join(f"{number},Shoe {number},{image}\n" for number in range(800))
    port = next(free_ports())
    urls = (system.url, f"http://127.0.0.1:{port}")
    told: dict[str, list[int]] = {url: [] for url in urls}
    with another(system, "api", SHRINKSTREAM_PORT=str(port), SHRINKSTREAM_DATA_DIR=str(tmp_path)):
        wait_until_ready(urls[1])
        request_id = upload(system.url, HEADER + rows)

        def are_completed() -> bool:
            answers = [call(url, "GET", f"/api/status/{request_id}") for url in urls]
            assert [answer.status for answer in answers] == [200, 200]
            for url, answer in zip(urls, answers, strict=True):
                told[url].append(answer.json["succeeded"])
            return all(answer.json["status"] == "completed" for answer in answers)

        probes = f"127.0.0.1:{next(free_ports())}"
        with another(system, "worker", "progress", SHRINKSTREAM_WORKER_PORT=probes.rpartition(":")[2]) as joined:
            wait_until(lambda: are_completed() or has_partitions(probes), "it has its share of the partitions")
            joined.send_signal(signal.SIGTERM)  # which goes back
            wait_until(are_completed, "both say so", 240)
        statuses = [call(url, "GET", f"/api/status/{request_id}").json for url in urls]
    assert statuses[0] == statuses[1]
    for counts in told.values():
        assert counts == sorted(counts), "a status went back"
        assert counts[-1] == 800


def test_command_line_submits_waits_and_saves_the_output(system: System, shop: Shop, tmp_path: Path) -> None:
    file, output = tmp_path / "products.csv", tmp_path / "output.csv"
    file.write_text(f"{HEADER}1,Shoe,{shop.add('cli.jpg')}\n")
    submitted = system.run("submit", str(file), "--output", str(output))
    assert submitted.returncode == 0, submitted.stderr
    assert "1 of 1 images compressed" in submitted.stderr
    assert output.read_bytes().startswith(b"\xef\xbb\xbfS. No.,")
    request_id = submitted.stderr.split("request ")[1].split()[0]
    assert '"completed"' in system.run("status", request_id).stdout
    assert system.run("download", request_id).stdout.encode() == output.read_bytes().replace(b"\r\n", b"\n")


def test_command_line_explains_rejected_csv_in_one_line(system: System, tmp_path: Path) -> None:
    file = tmp_path / "bad.csv"
    file.write_text("no,such,columns\n1,2,3\n")
    result = system.run("submit", str(file))
    assert result.returncode == 3
    assert result.stderr.startswith("shrinkstream: ")
    assert "Traceback" not in result.stderr


def test_command_line_explains_missing_server_in_one_line() -> None:
    server = f"http://127.0.0.1:{next(free_ports())}"
    result = shrinkstream("status", "some-id", "--server", server, environment=os.environ)
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1
