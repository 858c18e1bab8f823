"""What is measured where it would cost too much, or tell too much, to do it in the usual way."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from infra.cassandra.session import name_of
from infra.disk import free_bytes
from infra.observability import metrics
from infra.observability.metrics import ROLES, Role, Sampled, exposition, measured, registry_of
from infra.observability.process_usage import cpu_seconds, ended_children_seconds, resident_bytes


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("accept", ["", "text/plain;version=1.0.0", "application/openmetrics-text;version=1.0.0"])
def test_metrics_of_every_role_have_negotiated_format(role: Role, accept: str) -> None:
    body, content_type = exposition(registry_of(role), accept)
    assert content_type.startswith(accept.partition(";")[0] or "text/plain")
    assert b'shrinkstream_info{role="%s"' % role.encode() in body
    assert not re.search(rb"^\w+_created[{ ]", body, re.MULTILINE)
    if "openmetrics" not in content_type:
        list(text_string_to_metric_families(body.decode()))


def test_sampled_metric_is_read_at_scrape() -> None:
    queue: list[int] = []
    sampled = Sampled("shrinkstream_queue", "for this test", (), counts=False)
    assert [family.samples for family in sampled.collect()] == [[]], "nobody has anything yet"
    sampled.read_from(lambda: len(queue))
    queue += [1, 2]
    assert [sample.value for family in sampled.collect() for sample in family.samples] == [2]
    by_label = Sampled("shrinkstream_done_total", "for this test", ("kind", "place"), counts=True)
    by_label.read_from(lambda: {("a", "b"): 1, ("a", "c"): 2})
    (family,) = by_label.collect()
    assert [(one.name, one.labels["place"], one.value) for one in family.samples] == [
        ("shrinkstream_done_total", "b", 1),
        ("shrinkstream_done_total", "c", 2),
    ]


def test_a_call_that_fails_is_timed_and_counted() -> None:
    def value(name: str) -> float:
        found = registry_of("compress").get_sample_value(f"shrinkstream_storage_{name}", {"operation": "copy"})
        return found or 0.0

    before = value("seconds_count"), value("errors_total")
    with measured(metrics.STORAGE_SECONDS, metrics.STORAGE_ERRORS, "copy"):
        pass
    with pytest.raises(OSError, match="full"), measured(metrics.STORAGE_SECONDS, metrics.STORAGE_ERRORS, "copy"):
        raise OSError("full")
    assert (value("seconds_count"), value("errors_total")) == (before[0] + 2, before[1] + 1)


@pytest.mark.parametrize(
    ("cql", "name"),
    [
        ("SELECT * FROM requests WHERE request_id = ?", "select requests"),
        ("\n    INSERT INTO images_by_request (a, b)\n    VALUES (?, ?) USING TIMESTAMP ?", "insert images_by_request"),
        ("UPDATE webhook_deliveries SET claim = ? WHERE webhook_id = ? IF claim = ?", "update webhook_deliveries"),
        ("DELETE FROM webhook_due WHERE shard = ?", "delete webhook_due"),
        ("SELECT image_index,\n  reason\nFROM images_by_request WHERE a = 'x FROM y'", "select images_by_request"),
        ("TRUNCATE requests", "other"),
    ],
)
def test_statement_is_labelled_by_verb_and_table(cql: str, name: str) -> None:
    assert name_of(cql) == name


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /proc")
def test_child_usage_is_known_during_and_after_its_run() -> None:
    ended = ended_children_seconds()
    busy = "import sys, time\nwhile time.process_time() < 0.3: pass\nprint('done', flush=True)\nsys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", busy], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"done\n"
        assert 0.25 < cpu_seconds(child.pid) < 30
        assert 2_000_000 < resident_bytes(child.pid) < 500_000_000
    assert ended_children_seconds() - ended > 0.25
    assert (cpu_seconds(child.pid), resident_bytes(child.pid)) == (0, 0)
    assert cpu_seconds(os.getpid()) == pytest.approx(time.process_time(), abs=1)


def test_free_space_of_missing_folder_is_zero(tmp_path: Path) -> None:
    assert free_bytes(tmp_path) > 0
    assert free_bytes(tmp_path / "nowhere") == 0
