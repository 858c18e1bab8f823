"""Definitions of all Prometheus metrics, by role.

Names follow https://prometheus.io/docs/practices/naming/: base units, ``_total`` for counters. Labels have low
cardinality and values known to this code: never an id, a host, a URL or user input. Counters start at 0 with the
process and count redelivered work again; the events are the truth about a request.

Counters are incremented at the source (``metrics.IMAGES.labels(…).inc()``, half a microsecond with bound labels).
State that exists anyway, such as the length of a queue, is read at scrape time only: see `Sampled`.
"""

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Literal, TypeVar, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

Role = Literal["api", "compress", "progress", "projections"]
ROLES: tuple[Role, ...] = get_args(Role)
WORKERS: tuple[Role, ...] = ("compress", "progress", "projections")

NAMESPACE = "shrinkstream"

# The `_created` series: Prometheus doesn't need them, and they would double the number of series.
disable_created_metrics()  # type: ignore[no-untyped-call] # the library's only function without types

# Buckets in seconds. An image takes 10 ms up to the timeouts of some ten seconds, a request minutes to hours.
CALL_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
STAGE_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
REQUEST_BUCKETS = (0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 4 * 3600.0, 24 * 3600.0)

Values = float | Mapping[tuple[str, ...], float]
"""Values of a `Sampled`: a number, or one per tuple of label values."""

_HTTP_STATUS = re.compile(r"http_([1-9])[0-9]{2}")


class Sampled(Collector):
    """A gauge or a counter that reads existing state at scrape time.

    Has no values before ``read_from``; a later reader replaces an earlier one. Readers run in the event
    loop that serves ``/metrics``, and must neither block nor raise.
    """

    def __init__(self, name: str, meaning: str, labels: Sequence[str], *, counts: bool) -> None:
        self._name = name
        self._meaning = meaning
        self._labels = tuple(labels)
        self._family = CounterMetricFamily if counts else GaugeMetricFamily
        self._read: Callable[[], Values] | None = None

    def read_from(self, read: Callable[[], Values] | None) -> None:
        self._read = read

    def describe(self) -> Iterable[Metric]:
        return [self._family(self._name, self._meaning, labels=self._labels)]

    def collect(self) -> Iterator[Metric]:
        family = self._family(self._name, self._meaning, labels=self._labels)
        if self._read is not None:
            values = self._read()
            for labels, value in values.items() if isinstance(values, Mapping) else [((), values)]:
                family.add_metric(labels, value)
        yield family


@dataclass(frozen=True)
class Definition:
    """A documented metric, with its full name."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    meaning: str
    roles: tuple[Role, ...]
    collector: Collector


DEFINITIONS: list[Definition] = []
C = TypeVar("C", bound=Collector)


def _define(
    collector: C,
    name: str,
    kind: Literal["counter", "gauge", "histogram"],
    labels: Sequence[str],
    meaning: str,
    roles: tuple[Role, ...],
) -> C:
    DEFINITIONS.append(Definition(f"{NAMESPACE}_{name}", kind, tuple(labels), meaning, roles, collector))
    return collector


def _counter(name: str, meaning: str, *labels: str, of: tuple[Role, ...]) -> Counter:
    made = Counter(name, meaning, labels, namespace=NAMESPACE, registry=None)
    return _define(made, name, "counter", labels, meaning, of)


def _gauge(name: str, meaning: str, *labels: str, of: tuple[Role, ...]) -> Gauge:
    made = Gauge(name, meaning, labels, namespace=NAMESPACE, registry=None)
    return _define(made, name, "gauge", labels, meaning, of)


def _histogram(
    name: str, meaning: str, *labels: str, of: tuple[Role, ...], buckets: Sequence[float] = CALL_BUCKETS
) -> Histogram:
    made = Histogram(name, meaning, labels, namespace=NAMESPACE, registry=None, buckets=buckets)
    return _define(made, name, "histogram", labels, meaning, of)


def _sampled(name: str, meaning: str, *labels: str, of: tuple[Role, ...]) -> Sampled:
    counts = name.endswith("_total")
    made = Sampled(f"{NAMESPACE}_{name}", meaning, labels, counts=counts)
    return _define(made, name, "counter" if counts else "gauge", labels, meaning, of)


# --- every role

READY = _sampled("ready", "1 if a check of /readyz passes, 0 if it fails", "check", of=ROLES)
DATA_FREE = _sampled("data_free_bytes", "free bytes on the disk of the data dir", of=ROLES)
PRODUCED = _counter("kafka_produced_records_total", "records produced to Kafka", "topic", of=ROLES)
PRODUCE_ERRORS = _counter("kafka_produce_errors_total", "records or batches that Kafka rejected", "topic", of=ROLES)

STORAGE_SECONDS = _histogram(
    "storage_seconds",
    "latency of a storage operation; get: until the first byte",
    "operation",
    of=("api", "compress", "projections"),
)
# Starts each series at 0, so that `increase()` sees the first error.
STORAGE_OPERATIONS = ("put", "get", "copy", "remove", "sign")
STORAGE_ERRORS = _counter(
    "storage_errors_total", "failed storage operations", "operation", of=("api", "compress", "projections")
)

for _operation in STORAGE_OPERATIONS:
    STORAGE_ERRORS.labels(_operation)

CASSANDRA_SECONDS = _histogram(
    "cassandra_seconds", "latency of a statement, each retry measured alone", "statement", of=("api", "projections")
)
CASSANDRA_ERRORS = _counter(
    "cassandra_errors_total",
    "failed executions of a statement; transient errors are retried",
    "statement",
    "error",
    of=("api", "projections"),
)
CASSANDRA_IN_FLIGHT = _gauge("cassandra_in_flight", "statements in flight", of=("api", "projections"))

# --- the API

HTTP_REQUESTS = _counter(
    "http_requests_total",
    "HTTP requests by route template; `unmatched`: no such route",
    "method",
    "route",
    "status",
    of=("api",),
)
HTTP_SECONDS = _histogram(
    "http_request_seconds", "latency of HTTP requests; without Server-Sent Event streams", "route", of=("api",)
)
HTTP_IN_FLIGHT = _gauge("http_in_flight", "HTTP requests in flight, with Server-Sent Event streams", of=("api",))
REQUESTS_CREATED = _counter("requests_created_total", "CSVs accepted", of=("api",))
IMAGES_REQUESTED = _counter("images_requested_total", "images in the CSVs accepted", of=("api",))
UPLOAD_BYTES = _counter("upload_bytes_total", "bytes of the CSVs received, decompressed", of=("api",))
UPLOADS = _sampled("uploads_in_progress", "uploads being received, validated or published", of=("api",))
EVENT_STREAMS = _sampled("event_streams_open", "open Server-Sent Event streams", of=("api",))
VIEW_REQUESTS = _sampled("view_requests", "requests in the API's view of the progress table", of=("api",))

# --- every worker

CONSUMED = _counter("events_consumed_total", "events consumed, by type", "type", of=WORKERS)
DEAD_LETTERS = _counter("dead_letters_total", "records moved to the dead-letter topic, by source", "topic", of=WORKERS)
LAG = _sampled(
    "consumer_lag_records",
    "consumer lag: records from the first unfinished one to the end, in the assigned partitions",
    "topic",
    "partition",
    of=WORKERS,
)
IN_FLIGHT = _sampled("events_in_progress", "in-flight events: delivered to an agent and unfinished", of=WORKERS)
REBALANCES = _counter("rebalances_total", "rebalances of the consumer group", of=WORKERS)

# --- compress

IMAGES = _counter(
    "images_total",
    "image results, by `processed` or `failed` and the reason of failure (HTTP statuses by class: `fetch_http_4xx`)",
    "result",
    "reason",
    of=("compress",),
)
INPUT_BYTES = _counter("image_input_bytes_total", "downloaded bytes of processed images", of=("compress",))
OUTPUT_BYTES = _counter("image_output_bytes_total", "stored bytes of processed images", of=("compress",))
KEPT_ORIGINAL = _counter("images_kept_total", "images stored unchanged, as compression didn't help", of=("compress",))
REUSED = _counter("images_reused_total", "images copied from a recent result of the same URL", of=("compress",))
STAGE_SECONDS = _histogram(
    "image_stage_seconds",
    "latency of an image's stages: fetch, wait (for a decoder, and transfer), decode, encode, store",
    "stage",
    of=("compress",),
    buckets=STAGE_BUCKETS,
)
IMAGE_SECONDS = _histogram(
    "image_seconds",
    "latency from an image's `ImageRequested` to its result",
    of=("compress",),
    buckets=REQUEST_BUCKETS,
)
DECODERS = _sampled("decoders", "decoder processes: idle, busy, or down (being restarted)", "state", of=("compress",))
DECODER_WAITING = _sampled("decoder_waiting_images", "images that wait for a decoder", of=("compress",))
DECODER_RESTARTS = _counter("decoder_restarts_total", "restarts of decoder processes", of=("compress",))
DECODER_MEMORY = _sampled("decoder_resident_memory_bytes", "resident memory of all decoder processes", of=("compress",))
DECODER_CPU = _sampled("decoder_cpu_seconds_total", "CPU time of all decoder processes", of=("compress",))
IMAGES_WAITING = _sampled(
    "images_waiting", "images that are read and wait for their turn to be fetched", of=("compress",)
)
OPEN_CIRCUITS = _sampled("open_circuits", "hosts, per owner, whose images fail without a download", of=("compress",))
FETCH_MEMORY = _sampled("fetch_memory_bytes", "bytes of in-flight downloads: fetched, not yet stored", of=("compress",))
FETCH_MEMORY_LIMIT = _sampled(
    "fetch_memory_limit_bytes", "budget of in-flight downloads: SHRINKSTREAM_FETCH_MEMORY", of=("compress",)
)

# --- progress

TABLE_RECORDS = _sampled("table_records", "keys of the progress table in this worker", of=("progress",))
RECOVERING = _sampled("table_recovery_in_progress", "1 during a recovery of the table", of=("progress",))
RECOVERY_REMAINING = _sampled(
    "table_recovery_remaining_records", "changelog records that the recovery has yet to read", of=("progress",)
)
RECOVERY_SECONDS = _histogram(
    "table_recovery_seconds",
    "duration of table recoveries",
    of=("progress",),
    buckets=(0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0),
)
REQUESTS_RECONCILED = _counter("requests_reconciled_total", "stalled requests reconciled", of=("progress",))
IMAGES_REREQUESTED = _counter(
    "images_rerequested_total", "images re-requested, by cause: `retry` or `stalled`", "cause",
    of=("progress",),
)  # fmt: skip
RESULTS_REPUBLISHED = _counter(
    "results_republished_total", "missed results republished by the reconciler", of=("progress",)
)
IMAGES_GIVEN_UP = _counter("images_given_up_total", "images failed as `lost`: no result in any round", of=("progress",))

# --- projections

REQUESTS_COMPLETED = _counter("requests_completed_total", "completed requests", of=("projections",))
REQUEST_SECONDS = _histogram(
    "request_seconds",
    "latency from a request's creation to its completion; also of retries",
    of=("projections",),
    buckets=REQUEST_BUCKETS,
)
OUTPUT_SECONDS = _histogram(
    "output_csv_seconds", "duration of writing an output CSV", of=("projections",), buckets=STAGE_BUCKETS
)
OUTPUTS_RECALLED = _counter(
    "output_csvs_recalled_total",
    "output CSVs whose results were read from the log, as the history lagged",
    of=("projections",),
)
HISTORY_WAITING = _sampled("history_writes_waiting", "writes to the history that wait for a batch", of=("projections",))
WEBHOOK_ATTEMPTS = _counter(
    "webhook_attempts_total",
    "delivery attempts of webhooks, by `confirmed` or the error (HTTP statuses by class: `http_5xx`)",
    "result",
    of=("projections",),
)
WEBHOOK_SECONDS = _histogram(
    "webhook_attempt_seconds", "latency of delivery attempts", of=("projections",), buckets=STAGE_BUCKETS
)
WEBHOOKS_ENDED = _counter(
    "webhooks_ended_total", "webhooks `delivered`, or `failed` after the last attempt", "outcome", of=("projections",)
)
for _outcome in ("delivered", "failed"):
    WEBHOOKS_ENDED.labels(_outcome)
WEBHOOKS_IN_FLIGHT = _sampled(
    "webhook_attempts_in_progress", "in-flight webhooks: being sent, or due and loaded", of=("projections",)
)
WEBHOOK_HOST_QUEUES = _sampled(
    "webhook_host_queues", "non-empty host queues of webhooks, per partition", of=("projections",)
)
WEBHOOK_LATENESS = _sampled(
    "webhook_lateness_seconds", "age of the oldest due webhook since its due time", of=("projections",)
)


def registry_of(role: Role) -> CollectorRegistry:
    """Registry of a process of this role: its own metrics, and those of the process and of Python."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    info = Gauge(
        "info", "1, with role and version as labels", ("role", "version"), namespace=NAMESPACE, registry=registry
    )
    info.labels(role, version("shrinkstream")).set(1)
    for definition in DEFINITIONS:
        if role in definition.roles:
            registry.register(definition.collector)
    return registry


def exposition(registry: CollectorRegistry, accept: str) -> tuple[bytes, str]:
    """The metrics and their content type: Prometheus' text format, or OpenMetrics by the Accept header."""
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


def by_class(reason: str) -> str:
    """A reason code as a label of low cardinality: HTTP statuses by class."""
    return _HTTP_STATUS.sub(r"http_\1xx", reason)


@contextmanager
def measured(seconds: Histogram, errors: Counter, operation: str) -> Iterator[None]:
    """Observe the duration of a block; count an error if it raises."""
    started = time.perf_counter()
    try:
        yield
    except BaseException:
        errors.labels(operation).inc()
        raise
    finally:
        seconds.labels(operation).observe(time.perf_counter() - started)
