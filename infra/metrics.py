"""Every metric there is, in one place: what Prometheus reads at ``/metrics`` of each role.

Names follow https://prometheus.io/docs/practices/naming/: base units, ``_total`` on what only grows. A label has few
values, all known to this code: never an id, a host, a URL or what somebody sent. Counters count what a process did
since it started, work that was repeated after a kill included; the truth about a request is its events.

What happens is counted where it happens (``metrics.IMAGES.labels(…).inc()``, half a microsecond where the labels are
bound before). What is kept anyway, as the length of a queue, costs nothing until it is asked for: see `Sampled`.
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

# When each series began: Prometheus doesn't need it, and it would double the number of series.
disable_created_metrics()  # type: ignore[no-untyped-call] # the library's only function without types

# Seconds. An image's work takes 10 ms to the limits of some ten seconds, a request's minutes to hours.
OF_CALLS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
OF_STAGES = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
OF_REQUESTS = (0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 4 * 3600.0, 24 * 3600.0)

Values = float | Mapping[tuple[str, ...], float]
"""What a `Sampled` reads: a number, or one for each tuple of label values."""

_HTTP_STATUS = re.compile(r"http_([1-9])[0-9]{2}")


class Sampled(Collector):
    """A gauge or a counter whose values somebody keeps anyway: they are read when Prometheus asks.

    Has no values before ``read_from``; a later reader takes the place of an earlier one. Readers run in the event
    loop that serves ``/metrics``, and must neither wait nor fail.
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
    """A metric as it is documented: under the name that Prometheus knows it by."""

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
    name: str, meaning: str, *labels: str, of: tuple[Role, ...], buckets: Sequence[float] = OF_CALLS
) -> Histogram:
    made = Histogram(name, meaning, labels, namespace=NAMESPACE, registry=None, buckets=buckets)
    return _define(made, name, "histogram", labels, meaning, of)


def _sampled(name: str, meaning: str, *labels: str, of: tuple[Role, ...]) -> Sampled:
    counts = name.endswith("_total")
    made = Sampled(f"{NAMESPACE}_{name}", meaning, labels, counts=counts)
    return _define(made, name, "counter" if counts else "gauge", labels, meaning, of)


# --- every role

READY = _sampled("ready", "1 where a check of /readyz passes, 0 where it doesn't", "check", of=ROLES)
DATA_FREE = _sampled("data_free_bytes", "room on the disk of the data dir", of=ROLES)
PRODUCED = _counter("kafka_produced_records_total", "records handed to Kafka", "topic", of=ROLES)
PRODUCE_ERRORS = _counter("kafka_produce_errors_total", "records or batches that Kafka did not take", "topic", of=ROLES)

STORAGE_SECONDS = _histogram(
    "storage_seconds",
    "seconds of a call to the storage; get: until the first byte",
    "operation",
    of=("api", "compress", "projections"),
)
# So that the first error is an increase of something.
STORAGE_OPERATIONS = ("put", "get", "copy", "remove", "sign")
STORAGE_ERRORS = _counter(
    "storage_errors_total", "calls to the storage that failed", "operation", of=("api", "compress", "projections")
)

for _operation in STORAGE_OPERATIONS:
    STORAGE_ERRORS.labels(_operation)

CASSANDRA_SECONDS = _histogram(
    "cassandra_seconds", "seconds of one try of a statement", "statement", of=("api", "projections")
)
CASSANDRA_ERRORS = _counter(
    "cassandra_errors_total",
    "tries of a statement that failed; most are tried again",
    "statement",
    "error",
    of=("api", "projections"),
)
CASSANDRA_IN_FLIGHT = _gauge("cassandra_in_flight", "statements under way", of=("api", "projections"))

# --- the API

HTTP_REQUESTS = _counter(
    "http_requests_total",
    "HTTP requests answered, by the route's pattern; `unmatched`: there is no such route",
    "method",
    "route",
    "status",
    of=("api",),
)
HTTP_SECONDS = _histogram(
    "http_request_seconds", "seconds until a request was answered; streams of events left out", "route", of=("api",)
)
HTTP_IN_FLIGHT = _gauge("http_in_flight", "HTTP requests being answered, streams of events included", of=("api",))
REQUESTS_CREATED = _counter("requests_created_total", "CSVs accepted", of=("api",))
IMAGES_REQUESTED = _counter("images_requested_total", "images in the CSVs accepted", of=("api",))
UPLOAD_BYTES = _counter("upload_bytes_total", "bytes of the CSVs received, unpacked", of=("api",))
UPLOADS = _sampled("uploads_in_progress", "uploads being received, checked or written", of=("api",))
EVENT_STREAMS = _sampled("event_streams_open", "clients that follow a request", of=("api",))
VIEW_REQUESTS = _sampled("view_requests", "requests in the API's view of the progress table", of=("api",))

# --- every worker

CONSUMED = _counter("events_consumed_total", "events read, by their type", "type", of=WORKERS)
DEAD_LETTERS = _counter("dead_letters_total", "records that could not be read and were put aside", "topic", of=WORKERS)
LAG = _sampled(
    "consumer_lag_records",
    "records between the first unfinished one and the end, of this worker's partitions",
    "topic",
    "partition",
    of=WORKERS,
)
UNFINISHED = _sampled("events_in_progress", "events handed to an agent and not finished", of=WORKERS)
REBALANCES = _counter("rebalances_total", "times the partitions were shared out anew", of=WORKERS)

# --- compress

IMAGES = _counter(
    "images_total",
    "images with a result, by `processed` or `failed` and, of a failure, its reason (`fetch_http_4xx` for all of them)",
    "result",
    "reason",
    of=("compress",),
)
INPUT_BYTES = _counter("image_input_bytes_total", "bytes of the images processed, as they came", of=("compress",))
OUTPUT_BYTES = _counter("image_output_bytes_total", "bytes of the images processed, as stored", of=("compress",))
KEPT_ORIGINAL = _counter("images_kept_total", "images stored as they came, as shrinking didn't help", of=("compress",))
REUSED = _counter("images_reused_total", "images copied from one of the same URL that was just made", of=("compress",))
STAGE_SECONDS = _histogram(
    "image_stage_seconds",
    "seconds of an image in a stage: fetch, wait (for a decoder, and to and from it), decode, encode, store",
    "stage",
    of=("compress",),
    buckets=OF_STAGES,
)
IMAGE_SECONDS = _histogram(
    "image_seconds",
    "seconds from when an image was asked for, by the event's time, to its result",
    of=("compress",),
    buckets=OF_REQUESTS,
)
DECODERS = _sampled(
    "decoders", "decoder processes: idle, busy, or down (being started again)", "state", of=("compress",)
)
DECODER_WAITING = _sampled("decoder_waiting_images", "images that wait for a decoder", of=("compress",))
DECODER_RESTARTS = _counter("decoder_restarts_total", "decoder processes started in another's place", of=("compress",))
DECODER_MEMORY = _sampled("decoder_resident_memory_bytes", "memory of all decoder processes", of=("compress",))
DECODER_CPU = _sampled("decoder_cpu_seconds_total", "processor time of all decoder processes", of=("compress",))
FETCH_MEMORY = _sampled("fetch_memory_bytes", "bytes downloaded and not yet stored", of=("compress",))
FETCH_MEMORY_LIMIT = _sampled("fetch_memory_limit_bytes", "SHRINKSTREAM_FETCH_MEMORY", of=("compress",))

# --- progress

TABLE_RECORDS = _sampled("table_records", "records of the progress table in this worker", of=("progress",))
RECOVERING = _sampled("table_recovery_in_progress", "1 while the table is read from its changelog", of=("progress",))
RECOVERY_REMAINING = _sampled(
    "table_recovery_remaining_records", "records of the changelog that are still to be read", of=("progress",)
)
RECOVERY_SECONDS = _histogram(
    "table_recovery_seconds",
    "seconds that reading the table took",
    of=("progress",),
    buckets=(0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0),
)
REQUESTS_HEALED = _counter("requests_healed_total", "times a request that stood still was helped on", of=("progress",))
ASKED_AGAIN = _counter(
    "images_requested_again_total", "images asked for again: in a `retry`, or as they were `lost`", "cause",
    of=("progress",),
)  # fmt: skip
RESULTS_REPEATED = _counter(
    "results_repeated_total", "results that were on the log and had been missed", of=("progress",)
)
GIVEN_UP = _counter("images_given_up_total", "images that count as failed as no result ever came", of=("progress",))

# --- projections

REQUESTS_COMPLETED = _counter("requests_completed_total", "requests of which all is done", of=("projections",))
REQUEST_SECONDS = _histogram(
    "request_seconds",
    "seconds from a request's creation to its completion; of a retry, from then too",
    of=("projections",),
    buckets=OF_REQUESTS,
)
OUTPUT_SECONDS = _histogram(
    "output_csv_seconds", "seconds that writing an output CSV took", of=("projections",), buckets=OF_STAGES
)
OUTPUTS_POSTPONED = _counter(
    "output_csvs_postponed_total", "output CSVs put off as the history lagged", of=("projections",)
)
HISTORY_WAITING = _sampled("history_writes_waiting", "writes to the history that wait for a batch", of=("projections",))
WEBHOOK_ATTEMPTS = _counter(
    "webhook_attempts_total",
    "POSTs to receivers, by `confirmed` or what went wrong (`http_5xx` for all of them)",
    "result",
    of=("projections",),
)
WEBHOOK_SECONDS = _histogram(
    "webhook_attempt_seconds", "seconds that a receiver took", of=("projections",), buckets=OF_STAGES
)
WEBHOOKS_ENDED = _counter(
    "webhooks_ended_total", "webhooks `delivered`, or `failed` for good", "outcome", of=("projections",)
)
for _outcome in ("delivered", "failed"):
    WEBHOOKS_ENDED.labels(_outcome)
WEBHOOKS_IN_FLIGHT = _sampled(
    "webhook_attempts_in_progress", "webhooks being tried, or due and held", of=("projections",)
)
WEBHOOK_LANES = _sampled(
    "webhook_lanes", "receivers' hosts with webhooks that wait, counted in each partition", of=("projections",)
)
WEBHOOK_LATENESS = _sampled(
    "webhook_lateness_seconds", "how long the longest due webhook has been waiting for its attempt", of=("projections",)
)


def registry_of(role: Role) -> CollectorRegistry:
    """What a process of this role tells: its own metrics, and those of the process and of Python."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    info = Gauge("info", "1; the labels say what this is", ("role", "version"), namespace=NAMESPACE, registry=registry)
    info.labels(role, version("shrinkstream")).set(1)
    for definition in DEFINITIONS:
        if role in definition.roles:
            registry.register(definition.collector)
    return registry


def exposition(registry: CollectorRegistry, accept: str) -> tuple[bytes, str]:
    """The metrics, and their content type: Prometheus' text, or OpenMetrics for who asks for that."""
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


def by_class(reason: str) -> str:
    """A reason code as a label: HTTP statuses by their class, as a receiver or an image host may choose any."""
    return _HTTP_STATUS.sub(r"http_\1xx", reason)


@contextmanager
def measured(seconds: Histogram, errors: Counter, operation: str) -> Iterator[None]:
    """Time a block, failed or not; count it as an error if it raises."""
    started = time.perf_counter()
    try:
        yield
    except BaseException:
        errors.labels(operation).inc()
        raise
    finally:
        seconds.labels(operation).observe(time.perf_counter() - started)
