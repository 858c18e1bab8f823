"""What Prometheus reads of a running system is what happened in it."""

import re
import time
from collections.abc import Callable
from uuid import uuid4

import pytest

from infra.observability.metrics import DEFINITIONS, ROLES
from tests.e2e.conftest import System
from tests.support.published_clients import call, completed, delivered, upload
from tests.support.scrape import Scrape, scrape
from tests.support.shop import Shop

HEADER = "S. No.,Product Name,Input Image URLs\n"
LAG = "shrinkstream_consumer_lag_records"
# What a label may never be: an id, an address or a URL. Versions and buckets are neither.
UNBOUNDED = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}|://|\b\d{1,3}(\.\d{1,3}){3}\b|:\d{4,5}\b|msg_|\?")


def wait_for_scrape(system: System, is_so: Callable[[Scrape], bool], timeout: float = 240) -> Scrape:
    deadline = time.monotonic() + timeout
    while not is_so(found := scrape(system.data_dir)):
        assert time.monotonic() < deadline, "the metrics never said so"
        time.sleep(0.2)
    return found


def difference(before: Scrape, after: Scrape, name: str, **labels: str) -> float:
    return after.total(f"shrinkstream_{name}", **labels) - before.total(f"shrinkstream_{name}", **labels)


def nothing_to_do(found: Scrape) -> bool:
    """Whether what other tests have begun is over."""
    return found.total(LAG) == found.total("shrinkstream_events_in_progress") == 0


def test_upload_moves_each_counter_by_its_amount(system: System, shop: Shop) -> None:
    before = wait_for_scrape(system, nothing_to_do)
    urls = [shop.add(f"metered-{number}.jpg") for number in range(2)]
    csv = f'{HEADER}1,Shoe,"{urls[0]},{urls[1]}"\n2,Hat,"{urls[0]},{shop.url}/files/unmetered.jpg"\n'
    request_id = upload(system.url, csv, webhookUrl=f"{shop.url}/webhook/metered")
    status = completed(system.url, request_id)
    delivered(system.url, request_id)
    after = wait_for_scrape(system, lambda found: difference(before, found, "webhooks_ended_total") > 0)

    def moved(name: str, **labels: str) -> float:
        return difference(before, after, name, **labels)

    assert moved("http_requests_total", method="POST", route="/api/upload", status="202") == 1
    assert moved("http_request_seconds_count", route="/api/upload") == 1
    assert moved("http_requests_total", route="/api/status/{request_id}") >= 1
    assert moved("requests_created_total") == 1
    assert moved("images_requested_total") == 4
    assert moved("upload_bytes_total") == len(csv.encode())
    assert moved("images_total", result="processed") == status["succeeded"] == 3
    assert moved("images_total", result="failed", reason="fetch_http_4xx") == status["failed"] == 1
    assert moved("images_total") == moved("image_seconds_count") == 4
    assert moved("image_input_bytes_total") == status["inputBytes"]
    assert moved("image_output_bytes_total") == status["outputBytes"]
    assert moved("images_reused_total") == 1, "the same URL twice"
    for stage in ("fetch", "wait", "decode", "encode", "store"):
        assert moved("image_stage_seconds_count", stage=stage) == 2, stage
    for stage in ("decode", "encode"):
        assert 0 < moved("image_stage_seconds_sum", stage=stage) < 10, stage
    assert moved("kafka_produced_records_total", topic=f"{system.name}.image-results") == 4
    assert moved("kafka_produced_records_total", topic=f"{system.name}.image-requests") == 4
    assert moved("events_consumed_total", type="ImageRequested") == 4
    assert moved("events_consumed_total", type="ImageProcessed") == 2 * 3, "progress and projections read it"
    assert moved("requests_completed_total") == moved("request_seconds_count") == 1
    assert moved("output_csv_seconds_count") >= 1
    assert moved("webhook_attempts_total", result="confirmed") >= 1
    assert moved("cassandra_seconds_count", statement="insert requests") >= 2
    assert moved("storage_seconds_count", operation="put") >= 3
    for silent in ("storage_errors_total", "dead_letters_total", "images_given_up_total", "kafka_produce_errors_total"):
        assert moved(silent) == 0, silent
    assert after.total("shrinkstream_decoders") >= 1
    assert after.total("shrinkstream_decoder_resident_memory_bytes") > 10_000_000


def test_queued_images_are_lag_until_they_settle(system: System, shop: Shop) -> None:
    shop.slow_seconds = 3
    rows = "".join(f"{number},Sock {number},{shop.url}/slow?{number}\n" for number in range(30))
    request_id = upload(system.url, HEADER + rows)

    def lag(found: Scrape) -> float:
        return found.total("shrinkstream_consumer_lag_records", topic=f"{system.name}.image-requests")

    behind = wait_for_scrape(
        system, lambda found: lag(found) > 0 and found.total("shrinkstream_events_in_progress") > 0
    )
    assert lag(behind) <= 30 + 1
    completed(system.url, request_id)
    wait_for_scrape(system, lambda found: lag(found) == 0)
    own = {
        sample.labels["partition"]
        for sample in behind.samples
        if sample.name == "shrinkstream_consumer_lag_records"
        and sample.labels["topic"] == f"{system.name}.image-requests"
    }
    # Another test may have added some.
    assert own >= {str(number) for number in range(8)}, "each partition has an owner"


def test_unknown_path_or_method_creates_no_series(system: System) -> None:
    before = scrape(system.data_dir)
    for _ in range(3):
        call(system.url, "GET", f"/{uuid4()}")
        call(system.url, "BREW", f"/{uuid4()}/pot")
        call(system.url, "GET", f"/api/status/{uuid4()}")
    after = scrape(system.data_dir)
    assert difference(before, after, "http_requests_total", route="unmatched", method="GET", status="404") == 3
    assert difference(before, after, "http_requests_total", route="unmatched", method="other") == 3
    assert difference(before, after, "http_requests_total", route="/api/status/{request_id}", status="404") == 3


@pytest.mark.parametrize("role", ROLES)
def test_every_role_has_its_metrics_without_unbounded_labels(system: System, role: str) -> None:
    samples = [sample for sample in scrape(system.data_dir).samples if sample.role == role]
    names = {sample.name for sample in samples if sample.name.startswith("shrinkstream_")}
    unlabelled = {one.name for one in DEFINITIONS if role in one.roles and not one.labels and one.kind != "histogram"}
    assert unlabelled <= names
    known = {one.name for one in DEFINITIONS if role in one.roles} | {"shrinkstream_info"}
    assert {re.sub(r"_(bucket|sum|count)$", "", name) if name not in known else name for name in names} <= known
    assert {"process_resident_memory_bytes", "process_open_fds", "process_cpu_seconds_total"} <= {
        sample.name for sample in samples
    }
    values = {value for sample in samples for name, value in sample.labels.items() if name != "version"}
    assert {value for value in values if UNBOUNDED.search(value)} == set()
    assert len(samples) < 2500, "what a Prometheus keeps for one process"
