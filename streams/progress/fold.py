"""How far each request is: a pure fold of events into small records.

The state of a request is one row, written a handful of times, and one chunk for each 1,000 of its images,
written once per image. A chunk holds two bits per image and the sums over its images, so what is written per
event stays the same however large the request is, and both can never disagree: they are one record.

The fold does not mind repeats (an image that is settled changes nothing) nor order (results may come before
the request, a retry's before the retry), except that what is told of a request as a whole follows its RequestCreated.
``read`` looks a record up; what ``fold`` returns is to be written.

A request is processed in runs: the first, and one for each retry. What ends a run is its completion or its
cancellation; where both are told, because the output CSV was being written already, it is complete: a receiver
may have been told so.
"""

import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeGuard

from pydantic import AwareDatetime, BaseModel

from streams.events import (
    Event,
    ImageFailed,
    ImageProcessed,
    ImagesRequestedAgain,
    ImagesSettled,
    OutputCsvRequested,
    RequestCancelled,
    RequestCompleted,
    RequestCreated,
    RequestExpired,
    RequestFilesRemoved,
    RequestRecorded,
    RequestRetried,
    RequestStopped,
    WebhookDelivered,
    WebhookFailed,
    WebhookKind,
    WebhookRedeliveryRequested,
)
from streams.request.webhook import DeliveryStatus, WebhookState, delivery_status

IMAGES_PER_CHUNK = 1000
IMAGES_PER_MESSAGE = 100
"""How many consecutive images a receiver is told of together."""
WAITING, FAILED, SUCCEEDED = 0, 1, 2

Read = Callable[[bytes], bytes | None]
Changes = dict[bytes, bytes | None]  # None: the record goes

# What stays of a request that left the table, so that a late repeat doesn't bring it back.
DONE = b"done "


class RequestRow(BaseModel):
    """What is known of a request beside its images."""

    total: int
    rows: int
    header: tuple[str, ...]
    owner: str
    created_at: AwareDatetime
    updated_at: AwareDatetime
    webhook_url: str | None = None
    run: int = 0
    run_began_at: AwareDatetime | None = None  # None: with the request
    cancelled_run: int | None = None
    completed_run: int | None = None
    completed_at: AwareDatetime | None = None
    completed_failed: int | None = None  # how many of its images the output CSV says have failed
    output_csv_url: str | None = None
    output_csv_path: str | None = None
    webhook_standing: DeliveryStatus | None = None
    webhook_events: tuple[WebhookKind, ...] | None = None
    recorded_run: int | None = None
    image_offsets: dict[int, tuple[int, int]] = {}
    asked_run: int = 0  # the latest run whose images have been asked for
    heals: int = 0  # how often that run has been helped
    files_removed: bool = False
    traceparent: str | None = None

    @property
    def webhook(self) -> WebhookState | None:
        """How telling the receiver of this run's completion stands."""
        said = self.webhook_standing
        return said.state if said is not None and said.run >= self.run else None

    @property
    def is_completed(self) -> bool:
        return self.completed_run is not None and self.completed_run >= self.run

    @property
    def is_cancelled(self) -> bool:
        return self.cancelled_run is not None and self.cancelled_run >= self.run and not self.is_completed

    @property
    def requested_at(self) -> datetime:
        """When the images of this run were asked for."""
        return self.run_began_at or self.created_at


class Chunk(NamedTuple):
    """The sums over up to 1,000 images, and the state of each in two bits.

    ``run`` is the highest attempt seen: a failure counts only if it is of that run, because a retry asks for
    every failed image again.
    """

    run: int
    succeeded: int
    failed: int
    input_bytes: int
    output_bytes: int
    updated_ms: int
    states: bytes

    def state(self, position: int) -> int:
        byte = position >> 2
        return (self.states[byte] >> ((position & 3) * 2)) & 3 if byte < len(self.states) else WAITING

    def settled(self, run: int) -> int:
        """How many images have their result in the given run of the request."""
        return self.succeeded + self.failed_in(run)

    def failed_in(self, run: int) -> int:
        return self.failed if self.run >= run else 0


# run, succeeded, failed, input bytes, output bytes, time of the last change; the states follow
_CHUNK = struct.Struct("<HHHQQQ")
EMPTY = Chunk(0, 0, 0, 0, 0, 0, b"")


def encode_chunk(chunk: Chunk) -> bytes:
    return _CHUNK.pack(*chunk[:-1]) + chunk.states


def decode_chunk(value: bytes | None) -> Chunk:
    if value is None:
        return EMPTY
    run, succeeded, failed, input_bytes, output_bytes, updated_ms = _CHUNK.unpack_from(value)
    return Chunk(run, succeeded, failed, input_bytes, output_bytes, updated_ms, value[_CHUNK.size :])


def encode_row(row: RequestRow) -> bytes:
    return row.model_dump_json(exclude_none=True).encode()


def decode_row(value: bytes) -> RequestRow:
    return RequestRow.model_validate_json(value)


def row_key(request_id: str) -> bytes:
    return request_id.encode()


def chunk_key(request_id: str, number: int) -> bytes:
    return b"%s/%d" % (request_id.encode(), number)


def split_key(key: bytes) -> tuple[str, int | None]:
    """Request id, and the chunk's number or None for the request's row."""
    request_id, _, number = key.decode().partition("/")
    return request_id, int(number) if number else None


def chunk_count(total: int) -> int:
    return -(-total // IMAGES_PER_CHUNK)


def chunk_size(number: int, total: int) -> int:
    """Number of images in a chunk: the last one may have fewer."""
    return min(IMAGES_PER_CHUNK, total - number * IMAGES_PER_CHUNK)


def fold(event: Event, read: Read) -> Changes:
    """The records that ``event`` changes; none for a repeat or an event that doesn't matter here."""
    match event:
        case ImageProcessed() | ImageFailed():
            return _fold_result(event, read)
        case RequestCreated():
            return _fold_created(event, read)
        case RequestCompleted():
            return _fold_completed(event, read)
        case RequestCancelled():
            return _fold_cancelled(event, read)
        case RequestRetried():
            return _fold_retried(event, read)
        case RequestFilesRemoved():
            return _fold_files_removed(event, read)
        case WebhookDelivered() | WebhookFailed() | WebhookRedeliveryRequested():
            return _fold_webhook(event, read)
        case ImagesRequestedAgain():
            return _fold_heal(event, read)
        case RequestRecorded():
            return _fold_recorded(event, read)
        case RequestExpired():
            return _fold_expired(event, read)
        case _:
            return {}


def _fold_result(event: ImageProcessed | ImageFailed, read: Read) -> Changes:
    number, position = divmod(event.index, IMAGES_PER_CHUNK)
    if is_done(read(row_key(event.request_id))):
        return {}
    key = chunk_key(event.request_id, number)
    before = decode_chunk(read(key))
    after = _settle(before, position, event)
    return {} if after is before else {key: encode_chunk(after)}


def _settle(chunk: Chunk, position: int, event: ImageProcessed | ImageFailed) -> Chunk:
    if event.attempt > chunk.run:
        chunk = _start_run(chunk, event.attempt)
    state = chunk.state(position)
    if isinstance(event, ImageProcessed):
        if state == SUCCEEDED:
            return chunk
        return chunk._replace(
            succeeded=chunk.succeeded + 1,
            failed=chunk.failed - (state == FAILED),
            input_bytes=chunk.input_bytes + event.input_bytes,
            output_bytes=chunk.output_bytes + event.output_bytes,
            updated_ms=max(chunk.updated_ms, milliseconds(event.time)),
            states=_with_state(chunk.states, position, SUCCEEDED),
        )
    if state != WAITING or event.attempt < chunk.run:
        return chunk
    return chunk._replace(
        failed=chunk.failed + 1,
        updated_ms=max(chunk.updated_ms, milliseconds(event.time)),
        states=_with_state(chunk.states, position, FAILED),
    )


def _start_run(chunk: Chunk, run: int) -> Chunk:
    """A retry began: what had failed is waiting again."""
    only_succeeded = bytes(byte & 0b10101010 for byte in chunk.states)
    return chunk._replace(run=run, failed=0, states=only_succeeded)


def _with_state(states: bytes, position: int, state: int) -> bytes:
    byte, shift = position >> 2, (position & 3) * 2
    changed = bytearray(states.ljust(byte + 1, b"\0"))
    changed[byte] = changed[byte] & ~(3 << shift) | state << shift
    return bytes(changed)


def _fold_created(event: RequestCreated, read: Read) -> Changes:
    key = row_key(event.request_id)
    if read(key) is not None:
        return {}
    row = RequestRow(
        total=event.total,
        rows=event.rows,
        header=event.header,
        owner=event.owner,
        created_at=event.time,
        updated_at=event.time,
        webhook_url=event.webhook_url,
        webhook_events=event.webhook_events or None,
        image_offsets=event.image_offsets,
        traceparent=event.traceparent,
    )
    return {key: encode_row(row)}


def _fold_completed(event: RequestCompleted, read: Read) -> Changes:
    row = _read_row(event, read)
    if row is None:
        return {}
    news = _webhook(row, event)
    # Of two completions of a run, the one with fewer failures is the later: a success had come late.
    if row.completed_run is None or (event.run, -event.failed) > (row.completed_run, -(row.completed_failed or 0)):
        news |= {
            "completed_run": event.run,
            "completed_at": event.time,
            "completed_failed": event.failed,
            "output_csv_url": event.output_csv_url,
            "output_csv_path": event.output_csv_path,
        }
    return _changed(event, row, news)


def _fold_cancelled(event: RequestCancelled, read: Read) -> Changes:
    row = _read_row(event, read)
    if row is None:
        return {}
    latest = max(event.run, -1 if row.cancelled_run is None else row.cancelled_run)
    return _changed(event, row, {"cancelled_run": latest, "updated_at": max(row.updated_at, event.time)})


def _fold_retried(event: RequestRetried, read: Read) -> Changes:
    row = _read_row(event, read)
    if row is None:
        return {}
    if row.files_removed:
        return {}  # it was accepted in the moment before that was known
    news: dict[str, object] = {"updated_at": max(row.updated_at, event.time)}
    if event.run > row.run:
        news |= {"run": event.run, "run_began_at": event.time}
    return _changed(event, row, news)


def _fold_files_removed(event: RequestFilesRemoved, read: Read) -> Changes:
    row = _read_row(event, read)
    if row is None:
        return {}
    # A retry that was accepted while this was being decided doesn't count.
    ended = [run for run in (row.completed_run, row.cancelled_run) if run is not None]
    news = {"files_removed": True, "run": max(ended, default=row.run), "updated_at": max(row.updated_at, event.time)}
    return _changed(event, row, news)


def _fold_webhook(event: WebhookDelivered | WebhookFailed | WebhookRedeliveryRequested, read: Read) -> Changes:
    row = _read_row(event, read)
    return {} if row is None else _changed(event, row, _webhook(row, event))


def _webhook(
    row: RequestRow, event: RequestCompleted | WebhookDelivered | WebhookFailed | WebhookRedeliveryRequested
) -> dict[str, object]:
    """What changes of a row by what the event says of its webhook."""
    said = delivery_status(event)
    news: dict[str, object] = {"updated_at": max(row.updated_at, event.time)}
    if said is not None and (row.webhook_standing is None or said > row.webhook_standing):
        news["webhook_standing"] = said
    return news


def _fold_heal(event: ImagesRequestedAgain, read: Read) -> Changes:
    row = _read_row(event, read)
    if row is None:
        return {}
    news: dict[str, object] = {"updated_at": max(row.updated_at, event.time)}
    if (event.run, event.heal) > (row.asked_run, row.heals):
        news |= {"asked_run": event.run, "heals": event.heal, "image_offsets": event.image_offsets}
    return _changed(event, row, news)


def _fold_recorded(event: RequestRecorded, read: Read) -> Changes:
    row = _read_row(event, read)
    if row is None or (row.recorded_run is not None and event.run <= row.recorded_run):
        return {}
    return {row_key(event.request_id): encode_row(row.model_copy(update={"recorded_run": event.run}))}


def _fold_expired(event: RequestExpired, read: Read) -> Changes:
    key = row_key(event.request_id)
    value = read(key)
    if event.stage == "forgotten":
        return {key: None} if is_done(value) and done_run(value) <= event.run else {}
    if event.stage == "abandoned":
        if value is not None and not is_done(value):
            return {}  # its request has come after all
        keys = (chunk_key(event.request_id, number) for number in range(chunk_count(event.images or 0)))
        return {chunk: None for chunk in keys if read(chunk) is not None}
    row = _read_row(event, read)
    if row is None or row.run > event.run:
        return {}
    chunks: Changes = {chunk_key(event.request_id, number): None for number in range(chunk_count(row.total))}
    return {**chunks, key: DONE + b"%d %d" % (milliseconds(event.time), event.run)}


def is_done(value: bytes | None) -> TypeGuard[bytes]:
    """Whether a row is only the mark of a request that left the table."""
    return value is not None and value.startswith(DONE)


def done_at(mark: bytes) -> datetime:
    """When a request left the table."""
    return from_milliseconds(int(mark.split()[1]))


def done_run(mark: bytes) -> int:
    """The run after which a request left the table; marks from before there were runs don't name it."""
    return int((*mark.split(), b"0")[2])


def must_return(event: Event, read: Read) -> TypeGuard[RequestRetried]:
    """Whether the event is about a request that left the table and has to be in it again.

    Its records are then to be built anew from the log, which ``fold`` can't do.
    """
    if not isinstance(event, RequestRetried):
        return False
    value = read(row_key(event.request_id))
    return value is None or (is_done(value) and done_run(value) < event.run)


def _changed(event: Event, row: RequestRow, news: dict[str, object]) -> Changes:
    """The row with its news, if they are any."""
    after = row.model_copy(update=news)
    return {} if after == row else {row_key(event.request_id): encode_row(after)}


def _read_row(event: Event, read: Read) -> RequestRow | None:
    value = read(row_key(event.request_id))
    return None if value is None or is_done(value) else decode_row(value)


@dataclass(frozen=True)
class Sums:
    """What a request's images add up to."""

    succeeded: int = 0
    failed: int = 0
    input_bytes: int = 0
    output_bytes: int = 0
    updated_ms: int = 0

    @property
    def settled(self) -> int:
        return self.succeeded + self.failed


def add_up(chunks: Iterator[Chunk], run: int) -> Sums:
    succeeded = failed = input_bytes = output_bytes = updated_ms = 0
    for chunk in chunks:
        succeeded += chunk.succeeded
        failed += chunk.failed_in(run)
        input_bytes += chunk.input_bytes
        output_bytes += chunk.output_bytes
        updated_ms = max(updated_ms, chunk.updated_ms)
    return Sums(succeeded, failed, input_bytes, output_bytes, updated_ms)


def output_due(event: Event, read: Read) -> OutputCsvRequested | None:
    """The output CSV that is to be written now that ``event`` is folded in, if any.

    Asked after each event, a repeat too: the process may have died between folding and asking, and the
    answer has the same id each time. The chunks are only added up when the one that changed is full.
    """
    if not isinstance(event, ImageProcessed | ImageFailed | RequestCreated | RequestRetried):
        return None
    row = _read_row(event, read)
    if row is None or row.is_cancelled or row.files_removed or (row.is_completed and not row.completed_failed):
        return None
    if isinstance(event, ImageProcessed | ImageFailed):
        number = event.index // IMAGES_PER_CHUNK
        if decode_chunk(read(chunk_key(event.request_id, number))).settled(row.run) < chunk_size(number, row.total):
            return None
    chunks = []
    for number in range(chunk_count(row.total)):
        chunk = decode_chunk(read(chunk_key(event.request_id, number)))
        if chunk.settled(row.run) < chunk_size(number, row.total):
            return None
        chunks.append(chunk)
    counted = add_up(iter(chunks), row.run)
    # A success that came after the completion, from a worker that had lost its partition: the output CSV lacks it.
    if row.is_completed and counted.failed >= (row.completed_failed or 0):
        return None
    return output_request(event.request_id, row, counted)


def images_due(event: Event, read: Read) -> Iterator[ImagesSettled]:
    """The images that a receiver is to be told of now that ``event`` is folded in.

    As with `output_due`: asked after each event, and the answer to a repeat is the same.
    """
    if not isinstance(event, ImageProcessed | ImageFailed | RequestCreated):
        return
    value = read(row_key(event.request_id))
    if value is None or b'"webhook_events"' not in value or is_done(value):
        return  # as nearly always: without reading the row
    row = decode_row(value)
    if row.webhook_url is None or row.webhook_events is None:
        return
    if isinstance(event, RequestCreated):  # which may come after its results
        firsts: Iterable[int] = range(0, row.total, IMAGES_PER_MESSAGE)
    else:
        firsts = (event.index // IMAGES_PER_MESSAGE * IMAGES_PER_MESSAGE,)
    for first in firsts:
        number, position = divmod(first, IMAGES_PER_CHUNK)
        count = min(IMAGES_PER_MESSAGE, row.total - first)
        chunk = decode_chunk(read(chunk_key(event.request_id, number)))
        states = {chunk.state(position + place) for place in range(count)}
        if WAITING not in states and (FAILED not in states or chunk.run >= row.run):
            yield ImagesSettled(
                request_id=event.request_id,
                run=row.run,
                first=first,
                count=count,
                created_at=row.created_at,
                webhook_url=row.webhook_url,
                webhook_events=row.webhook_events,
                traceparent=row.traceparent,
                time=from_milliseconds(chunk.updated_ms),
            )


def output_request(request_id: str, row: RequestRow, sums: Sums) -> OutputCsvRequested:
    return OutputCsvRequested(**_summary(request_id, row, sums), header=row.header)


def stopped(request_id: str, row: RequestRow, sums: Sums) -> RequestStopped:
    """What is known of a cancelled request; later than all that was told of it before."""
    return RequestStopped(**_summary(request_id, row, sums) | {"time": last_change(row, sums)})


def last_change(row: RequestRow, sums: Sums) -> datetime:
    return max(row.updated_at, from_milliseconds(sums.updated_ms))


def _summary(request_id: str, row: RequestRow, sums: Sums) -> dict[str, Any]:
    return {
        "request_id": request_id,
        "run": row.run,
        "total": row.total,
        "succeeded": sums.succeeded,
        "failed": sums.failed,
        "input_bytes": sums.input_bytes,
        "output_bytes": sums.output_bytes,
        "created_at": row.created_at,
        "webhook_url": row.webhook_url,
        "owner": row.owner,
        "traceparent": row.traceparent,
        # When the last image was settled: the same whenever this is asked again.
        "time": max(row.requested_at, from_milliseconds(sums.updated_ms)),
    }


def milliseconds(time: datetime) -> int:
    return int(time.timestamp() * 1000)


def from_milliseconds(value: int) -> datetime:
    return datetime.fromtimestamp(value / 1000, UTC)
