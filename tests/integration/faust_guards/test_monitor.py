"""What a worker tells of itself, with a real broker."""

import json
import urllib.error
import urllib.request
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from infra.devserver.ports import free_ports
from tests.integration.faust_guards.group import EXIT_SECONDS, Group
from tests.support.scrape import Scrape, samples_of
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

UNAVAILABLE = 69
FATAL = 70


def metrics_at(port: int) -> Scrape:
    return Scrape(list(samples_of("worker", f"127.0.0.1:{port}")))


def health_at(port: int) -> dict[str, Any]:
    """The answer of /readyz; empty while nobody listens."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
            found: dict[str, Any] = json.load(answer)
    except urllib.error.HTTPError as error:
        found = json.load(error)
    except OSError:
        return {}
    return found


def is_ready(port: int) -> bool:
    return health_at(port).get("status") == "ready"


def lag_at(port: int) -> float:
    return metrics_at(port).total("shrinkstream_consumer_lag_records")


def test_unfinished_event_counts_as_lag_with_its_successors(new_group: Callable[..., Group], tmp_path: Path) -> None:
    group, port = new_group(in_flight=4), next(free_ports())
    group.produce([b"", f"wait {tmp_path / 'go'}".encode(), b"", b""], partition=0)
    group.start(port=port)
    wait_until(lambda: len(group.finished()) == 3 and is_ready(port), "all but the one that waits")
    wait_until(lambda: lag_at(port) == 3, "the one that waits and those behind it")
    assert metrics_at(port).total("shrinkstream_events_in_progress") == 1
    (tmp_path / "go").touch()
    wait_until(lambda: lag_at(port) == 0, "nothing to be behind")
    assert metrics_at(port).total("shrinkstream_events_in_progress") == 0
    group.produce([b"", b""], partition=0)
    wait_until(lambda: len(group.finished()) == 6 and lag_at(port) == 0, "new ones, done")


def test_records_older_than_group_count_as_lag(new_group: Callable[..., Group], tmp_path: Path) -> None:
    group, port = new_group(partitions=2), next(free_ports())
    group.produce([f"wait {tmp_path / 'never'}".encode(), *[b""] * 9], partition=0)
    group.produce([b""] * 5, partition=1)
    group.start(port=port)
    wait_until(lambda: is_ready(port) and lag_at(port) >= 10, "all of a partition")


def test_worker_without_partitions_is_ready(new_group: Callable[..., Group], tmp_path: Path) -> None:
    group, ports = new_group(), list(islice(free_ports(), 2))
    workers = [group.start(port=port) for port in ports]
    wait_until(lambda: all(map(is_ready, ports)), "both")
    wait_until(lambda: sorted(map(partitions_at, ports)) == [0, 1], "one owner of one partition")
    owner, other = sorted(ports, key=partitions_at, reverse=True)
    assert group.stop(workers[ports.index(owner)]) == 0
    wait_until(lambda: partitions_at(other) == 1 and is_ready(other), "the other one instead")
    assert metrics_at(other).total("shrinkstream_rebalances_total") >= 2


def partitions_at(port: int) -> int:
    """How many partitions a worker tells the lag of."""
    return sum(sample.name == "shrinkstream_consumer_lag_records" for sample in metrics_at(port).samples)


def test_table_recovery_is_measured(new_group: Callable[..., Group], tmp_path: Path) -> None:
    group, port = new_group(table=True), next(free_ports())
    group.produce([b"write 50 10"] * 4)
    first = group.start(port=port)
    wait_until(lambda: len(group.finished()) == 4 and is_ready(port), "four events")
    assert health_at(port)["checks"].keys() == {"assignment", "recovery", "events", "kafka"}
    assert group.stop(first) == 0
    group.start(port=port)
    wait_until(lambda: is_ready(port), "the table again")
    after = metrics_at(port)
    assert after.total("shrinkstream_table_records") == 200
    assert after.total("shrinkstream_table_recovery_seconds_count") == 1
    assert 0 < after.total("shrinkstream_table_recovery_seconds_sum") < 60
    assert after.total("shrinkstream_table_recovery_in_progress") == 0
    assert after.total("shrinkstream_table_recovery_remaining_records") == 0


def test_taken_port_is_an_error_of_one_line(new_group: Callable[..., Group], tmp_path: Path) -> None:
    group, port = new_group(), next(free_ports())
    group.start(port=port)
    wait_until(lambda: health_at(port), "somebody at the port")
    assert group.start(port=port).wait(EXIT_SECONDS) == UNAVAILABLE
    assert f"127.0.0.1:{port} can't be listened on" in group.output(1)
    assert "Traceback" not in group.output(1)


def test_stalled_event_is_named_and_ends_worker(new_group: Callable[..., Group], tmp_path: Path) -> None:
    group, port = new_group(in_flight=4, max_seconds=0.5), next(free_ports())
    group.produce([b"", b"sleep 60", b""])
    worker = group.start(port=port)
    place = f"{group.topic}/0 offset 1"
    wait_until(lambda: health_at(port).get("checks", {}).get("events") == f"stalled at {place}", "not ready")
    assert worker.wait(EXIT_SECONDS) == FATAL
    assert f"is stalled at {place}" in group.output()
    assert group.committed().get(0, 0) <= 1


def test_stop_during_check_of_kafka_logs_no_error(new_group: Callable[..., Group]) -> None:
    """It ends the consumer's thread, and with it the query of the check."""
    group, port = new_group(without_answers=True), next(free_ports())
    worker = group.start(port=port)
    wait_until(lambda: group.lines("assigned"), "member of the group")
    known = len(group.lines("asked"))
    wait_until(lambda: len(group.lines("asked")) > known, "a query that is not answered")
    assert group.stop(worker) == 0
    assert "unexpected error" not in group.output()
