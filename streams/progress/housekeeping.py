"""What a look at the progress table finds to do: retries to begin, requests that stand still, requests that may leave.

Nothing in a stream processor can rule out that an event gets lost, so a request is never trusted to finish by
itself: one that makes no progress is found here and helped, as often as the limit says, and then ended.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from streams.events import OutputCsvRequested, RequestExpired, RequestStopped
from streams.progress.fold import (
    FAILED,
    IMAGES_PER_CHUNK,
    WAITING,
    Read,
    RequestRow,
    Sums,
    add_up,
    chunk_count,
    chunk_key,
    chunk_size,
    decode_chunk,
    decode_row,
    done_at,
    done_run,
    from_milliseconds,
    is_done,
    last_change,
    output_request,
    row_key,
    split_key,
    stopped,
)

# A repeat of an event older than that is as good as impossible.
DONE_MARK_KEPT = timedelta(days=7)


@dataclass(frozen=True)
class Limits:
    """When a request stands still, how often it is helped, how long a finished one stays."""

    stall_after: timedelta
    heal_limit: int
    grace: timedelta


@dataclass(frozen=True)
class Unasked:
    """A retry whose images have not been asked for. ``missing``: their indexes."""

    request_id: str
    row: RequestRow
    missing: tuple[int, ...]


@dataclass(frozen=True)
class Stalled:
    """A request whose images have had no result for too long. ``missing``: their indexes."""

    request_id: str
    row: RequestRow
    missing: tuple[int, ...]
    give_up: bool


Task = Unasked | Stalled | OutputCsvRequested | RequestStopped | RequestExpired


def task_for(request_id: str, value: bytes, read: Read, now: datetime, limits: Limits) -> Task | None:
    """What is to be done about the request whose row is ``value``, if anything."""
    if is_done(value):
        if now - done_at(value) > DONE_MARK_KEPT:
            return RequestExpired(request_id=request_id, stage="forgotten", run=done_run(value))
        return None
    row = decode_row(value)
    if row.is_completed:
        finished = row.webhook != "pending" and row.recorded_run == row.run
        if finished and now - row.updated_at > limits.grace:
            return RequestExpired(request_id=request_id, stage="done", run=row.run)
        return None
    sums = _sums(request_id, row, read)
    if row.is_cancelled:
        if now - last_change(row, sums) <= limits.grace:
            return None
        if row.recorded_run == row.run:
            return RequestExpired(request_id=request_id, stage="done", run=row.run)
        return stopped(request_id, row, sums)
    if row.asked_run < row.run and sums.settled < row.total:
        return Unasked(request_id, row, tuple(_missing(request_id, row, read)))
    if now - last_change(row, sums) <= limits.stall_after:
        return None
    if sums.settled >= row.total:
        return output_request(request_id, row, sums)
    missing = tuple(_missing(request_id, row, read))
    return Stalled(request_id, row, missing, give_up=row.heals >= limits.heal_limit)


def abandoned(records: Iterable[tuple[bytes, bytes]], read: Read, now: datetime) -> Iterator[RequestExpired]:
    """What is to be said about the chunks among ``records`` of the table that have had no request for too long.

    Their upload was cut off before its RequestCreated, or a result was repeated when its request had long left. Should
    the request come after all, the healer finds the results on the log.
    """
    last: dict[str, tuple[int, int]] = {}  # request id → its highest chunk, and when one of them changed last
    for key, value in records:
        request_id, number = split_key(key)
        if number is None:
            continue
        row = read(row_key(request_id))
        if row is None or is_done(row):
            highest, updated_ms = last.get(request_id, (0, 0))
            last[request_id] = max(highest, number), max(updated_ms, decode_chunk(value).updated_ms)
    for request_id, (highest, updated_ms) in last.items():
        if now - from_milliseconds(updated_ms) > DONE_MARK_KEPT:
            images = (highest + 1) * IMAGES_PER_CHUNK
            yield RequestExpired(request_id=request_id, stage="abandoned", images=images)


def _sums(request_id: str, row: RequestRow, read: Read) -> Sums:
    chunks = (decode_chunk(read(chunk_key(request_id, number))) for number in range(chunk_count(row.total)))
    return add_up(chunks, row.run)


def _missing(request_id: str, row: RequestRow, read: Read) -> Iterator[int]:
    for number in range(chunk_count(row.total)):
        chunk = decode_chunk(read(chunk_key(request_id, number)))
        for position in range(chunk_size(number, row.total)):
            state = chunk.state(position)
            # What failed in an earlier run was asked for again.
            if state == WAITING or (state == FAILED and chunk.run < row.run):
                yield number * IMAGES_PER_CHUNK + position
