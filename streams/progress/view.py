"""The progress table seen from another process: a group-less reader of its changelog.

Every API process has one and so can answer for every request, however many progress workers own the table.
Beside the changelog it reads the requests topic from where the progress workers had got to, so that a request, its
cancellation and its retry are known from the moment they are on Kafka, even while no progress worker runs.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeAlias

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaError
from aiokafka.structs import RecordMetadata

from infra.cancellation import cancel_and_wait
from infra.errors import ExplainedError
from infra.kafka.admin import admin_client, committed_offsets, partitions_of
from infra.settings import Settings
from streams.events.base import Event
from streams.events.registry import decode_or_none
from streams.events.requests import RequestCancelled, RequestCompleted, RequestCreated, RequestRetried
from streams.log.follower import Follower
from streams.log.topics import Topics
from streams.progress.owner_index import RequestsByOwner
from streams.progress.store import decode_row, decode_tally, split_key
from streams.request.lifecycle import Phase, RequestState, Tombstone, evolve
from streams.request.status import Status, completed_status
from streams.request.tally import EMPTY, Tally

logger = structlog.get_logger(__name__)

STALE_AFTER = 10.0
"""Maximum age (s) of a status in an answer; long enough for several checks on a busy machine."""
FRESH_INTERVAL = 1.0


class StaleViewError(ExplainedError):
    """The view has not caught up with Kafka, so an answer could be stale."""


_Ahead: TypeAlias = RequestRetried | RequestCancelled | RequestCompleted


@dataclass
class _Request:
    state: RequestState | None = None
    tallies: dict[int, Tally] = field(default_factory=dict)
    # Events on the requests topic that the row doesn't have yet: the latest of each kind.
    ahead: dict[type[Event], _Ahead] = field(default_factory=dict)
    # Kept until something of the request changes: many clients may poll it meanwhile.
    known_status: Status | None = None

    @property
    def is_empty(self) -> bool:
        return self.state is None and not self.tallies and not self.ahead

    def current(self) -> RequestState | None:
        """The state once the progress workers have folded what this view has read."""
        state: RequestState | Tombstone | None = self.state
        for event in self.ahead.values():
            state = evolve(state, event)
        return state if isinstance(state, RequestState) else None

    def status(self) -> Status | None:
        if self.known_status is None:
            state = self.current()
            self.known_status = None if state is None else self._status_of(state)
        return self.known_status

    def _status_of(self, state: RequestState) -> Status:
        completed = self.ahead.get(RequestCompleted)
        if isinstance(completed, RequestCompleted) and state.phase == Phase.COMPLETED:
            return completed_status(completed, state.webhook)  # the tallies may lag behind it, too
        return Status.of(state, self.tallies.values())


class ProgressView:
    """The state of every request that is in the progress table. All methods belong to one event loop."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._topics = Topics(settings.topic_prefix)
        self._requests: dict[str, _Request] = {}
        self._evicted: set[str] = set()
        # Skipping to the end of a topic that was truncated or created again would leave the view wrong.
        self._follower = Follower(settings, self._take)
        self._watchers: dict[str, set[asyncio.Event]] = {}
        self._by_owner = RequestsByOwner()
        self._tasks: list[asyncio.Task[None]] = []
        self._fresh_at = -STALE_AFTER  # the event loop's time at which the view was not behind Kafka

    async def start(self, timeout: float = 60) -> None:
        """Read what there is; ``timeout`` seconds to connect, and as many to read.

        Raises KafkaUnavailableError or StaleViewError when that takes longer.
        """
        await self._follower.start(self._starting_positions, timeout)
        self._tasks.append(asyncio.create_task(self._follower.run(), name="progress view"))
        await self.catch_up(timeout)
        self._tasks.append(asyncio.create_task(self._keep_catching_up(), name="progress view's age"))

    def __len__(self) -> int:
        """Number of requests in the view."""
        return len(self._requests)

    async def stop(self) -> None:
        await cancel_and_wait(*self._tasks)
        await self._follower.stop()

    async def broken(self) -> None:
        """Wait until reading ends, which it does only with an error; raises that."""
        done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()

    def require_fresh(self) -> None:
        """Raise StaleViewError if the view may lack events that were written ``STALE_AFTER`` seconds ago."""
        if asyncio.get_running_loop().time() - self._fresh_at > STALE_AFTER:
            raise StaleViewError(f"the progress view has not caught up with Kafka for {STALE_AFTER:g} s")

    def get(self, request_id: str) -> Status | None:
        """The status as of the last record read, however old; None for a request that is not there."""
        request = self._requests.get(request_id)
        return request.status() if request else None

    def retry_of(self, request_id: str) -> RequestRetried | None:
        """The retry of an evicted request, until that is restored."""
        request = self._requests.get(request_id)
        retried = request.ahead.get(RequestRetried) if request and request.state is None else None
        return retried if isinstance(retried, RequestRetried) else None

    def was_forestalled(self, retried: RequestRetried) -> bool:
        """Whether another retry of the same run, with another reason, was read before this one, which has no effect."""
        request = self._requests.get(retried.request_id)
        if request is None:
            return False
        state, ahead = request.current(), request.ahead.get(RequestRetried)
        if state is None:  # evicted, and not restored yet
            return isinstance(ahead, RequestRetried) and ahead.run == retried.run and ahead.reason != retried.reason
        return state.retried_run == retried.run and state.retried_reason != retried.reason

    def requests_of(self, owner: str, before: tuple[datetime, str] | None) -> Iterator[tuple[datetime, str]]:
        """When each request of an owner that is in the progress table was created, and its id, newest first.

        ``before``: only what comes after that in this order. To be used up before anything else is awaited.
        """
        return self._by_owner.newest_first(owner, before)

    def chunk_failed(self, request_id: str, chunk: int) -> int | None:
        """How many images of a chunk have failed in the current run; None where the view doesn't know.

        It doesn't while a completion is ahead, as the tallies may lag behind it.
        """
        request = self._requests.get(request_id)
        state = request.current() if request else None
        if request is None or state is None or RequestCompleted in request.ahead:
            return None
        return request.tallies.get(chunk, EMPTY).failed_in(state.run)

    async def get_fresh(self, request_id: str, timeout: float = 5) -> Status | None:
        """The status; where the request is not known, after catching up with all that Kafka has by now.

        Raises StaleViewError when catching up takes longer than ``timeout`` seconds.
        """
        status = self.get(request_id)
        if status is None:
            await self.catch_up(timeout)
            status = self.get(request_id)
        return status

    async def catch_up(self, timeout: float) -> None:
        """Wait until everything that is on Kafka at the time of the call has been read."""
        begun = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(timeout):
                await self._follower.reach(await self.ask_ends())
        except (TimeoutError, KafkaError) as error:
            raise StaleViewError(f"the progress view has not caught up with Kafka: {error or 'too slow'}") from None
        self._fresh_at = max(self._fresh_at, begun)

    async def _keep_catching_up(self) -> None:
        while True:
            await asyncio.sleep(FRESH_INTERVAL)
            try:
                await self.catch_up(STALE_AFTER / 2)
            except StaleViewError as error:
                logger.debug("progress view may be stale", reason=str(error))  # the readiness check warns

    async def ask_ends(self) -> dict[TopicPartition, int]:
        """Where everything that is read ends by now. Raises KafkaError; the caller bounds the wait."""
        return await self._follower.ends()

    async def reached(self, written: RecordMetadata, timeout: float) -> None:
        """Wait until a record of the requests topic has been read; StaleViewError after ``timeout`` seconds."""
        partition = TopicPartition(written.topic, written.partition)
        try:
            async with asyncio.timeout(timeout):
                await self._follower.reach({partition: written.offset + 1})
        except TimeoutError:
            raise StaleViewError("the progress view has not caught up with Kafka") from None

    @contextmanager
    def watching(self, request_id: str) -> Iterator[asyncio.Event]:
        """An event that is set whenever something about the request was read; to be cleared by who waits for it.

        The cost of reading a record doesn't depend on the number of watchers of other requests.
        """
        changed = asyncio.Event()
        self._watchers.setdefault(request_id, set()).add(changed)
        try:
            yield changed
        finally:
            watchers = self._watchers[request_id]
            watchers.discard(changed)
            if not watchers:
                del self._watchers[request_id]

    async def _starting_positions(self, consumer: AIOKafkaConsumer) -> dict[TopicPartition, int]:
        async with admin_client(self._settings) as admin:
            changelog = await partitions_of(admin, self._topics.progress_changelog)
            requests = await partitions_of(admin, self._topics.requests)
            committed = await committed_offsets(admin, self._topics.group("progress"), requests)
        beginnings: dict[TopicPartition, int] = await consumer.beginning_offsets([*changelog, *requests])
        # Events that the progress workers have committed are in the changelog already.
        return beginnings | {partition: max(beginnings[partition], committed[partition]) for partition in requests}

    def _take(self, partition: TopicPartition, records: Iterable[ConsumerRecord[bytes, bytes]]) -> None:
        take: Callable[[ConsumerRecord[bytes, bytes]], None]
        take = self._take_request if partition.topic == self._topics.requests else self._take_change
        for record in records:
            take(record)

    def _take_change(self, record: ConsumerRecord[bytes, bytes]) -> None:
        assert record.key is not None
        request_id, chunk = split_key(record.key)
        request = self._requests.setdefault(request_id, _Request())
        if chunk is None:
            entry = decode_row(record.value) if record.value else None
            if isinstance(entry, Tombstone):
                self._evicted.add(request_id)
                self._put(request_id, request, None)
                request.ahead = {kind: event for kind, event in request.ahead.items() if event.run > entry.run}
            else:
                self._evicted.discard(request_id)
                self._put(request_id, request, entry)
        elif record.value:
            request.tallies[chunk] = decode_tally(record.value)
        else:
            request.tallies.pop(chunk, None)
        self._changed(request_id, request)

    def _put(self, request_id: str, request: _Request, state: RequestState | None) -> None:
        if request.state is not None:
            self._by_owner.discard(request.state.owner, request.state.created_at, request_id)
        if state is not None:
            self._by_owner.add(state.owner, state.created_at, request_id)
            # An event that changes nothing of the row is in it.
            ahead = request.ahead.items()
            request.ahead = {kind: event for kind, event in ahead if evolve(state, event) is not state}
        request.state = state

    def _take_request(self, record: ConsumerRecord[bytes, bytes]) -> None:
        event = decode_or_none(record.value)
        if not isinstance(event, RequestCreated | _Ahead):
            return
        request = self._requests.setdefault(event.request_id, _Request())
        if isinstance(event, RequestCreated):
            # A redelivery must not resurrect an evicted request.
            if request.state is None and event.request_id not in self._evicted:
                self._put(event.request_id, request, RequestState.of(event))
        elif request.state is None or evolve(request.state, event) is not request.state:
            known = request.ahead.get(type(event))
            if known is None or _rank(known) < _rank(event):
                request.ahead[type(event)] = event
        self._changed(event.request_id, request)

    def _changed(self, request_id: str, request: _Request) -> None:
        request.known_status = None
        if request.is_empty:
            del self._requests[request_id]
        for changed in self._watchers.get(request_id, ()):
            changed.set()


def _rank(event: _Ahead) -> tuple[int, int]:
    """The greater one supersedes: a later run, or a completion of the same run with fewer failures."""
    return event.run, -event.failed if isinstance(event, RequestCompleted) else 0
