"""Reconciliation on a real log: only missed results are published again, and no request starves the others."""

from collections.abc import Sequence
from datetime import timedelta
from uuid import uuid4

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from infra.settings import Settings
from streams.events.base import Event, utc_now
from streams.events.images import ImageFailed, ImageRequested
from streams.events.progress import ImagesRerequested
from streams.events.requests import OutputCsvRequested, RequestCreated
from streams.log.producer import EventLog
from streams.progress import reconciler as reconciler_module
from streams.progress.reconciler import RebalancedError, Reconciler
from streams.progress.store import apply, fold, row_key
from streams.request.reconcile import Stalled
from tests.support.examples import created, failed, processed, requested
from tests.support.topic_reader import events_in

pytestmark = pytest.mark.slow

AN_HOUR_AGO = utc_now() - timedelta(hours=1)


async def commit_all(settings: Settings, group: str, topic: str) -> None:
    """The consumer group is done with all that there is on the topic."""
    consumer = AIOKafkaConsumer(bootstrap_servers=settings.kafka_brokers, group_id=group, enable_auto_commit=False)
    await consumer.start()
    try:
        partitions = [TopicPartition(topic, number) for number in range(settings.partitions)]
        consumer.assign(partitions)
        await consumer.commit(await consumer.end_offsets(partitions))
    finally:
        await consumer.stop()


async def asked_for(log: EventLog, images: Sequence[ImageRequested]) -> RequestCreated:
    """The images of a request are on the log; this is what says so."""
    offsets: dict[int, tuple[int, int]] = {}
    for image in images:
        written = await log.append(image)
        first, last = offsets.get(written.partition, (written.offset, written.offset))
        offsets[written.partition] = (min(first, written.offset), max(last, written.offset))
    return created(images[0].request_id, total=len(images), time=AN_HOUR_AGO, image_offsets=offsets)


def images_of(request_id: str, count: int) -> list[ImageRequested]:
    return [requested(request_id, index, time=AN_HOUR_AGO) for index in range(count)]


class Table(dict[bytes, bytes]):
    def fold(self, *events: Event) -> None:
        for event in events:
            apply(fold(event, self.get).changes, self)

    def rows(self, *request_ids: str) -> list[tuple[str, bytes]]:
        return [(request_id, self[row_key(request_id)]) for request_id in request_ids]


async def test_only_missed_results_are_published_again(kafka_settings: Settings, request_id: str) -> None:
    log = EventLog(kafka_settings)
    await log.start()
    try:
        images = images_of(request_id, 4)
        table = Table()
        table.fold(await asked_for(log, images))
        results = [processed(images[0]), failed(images[1]), processed(images[2]), processed(images[3])]
        for result in (*results[:2], results[0]):
            await log.append(result)
        await commit_all(kafka_settings, log.topics.group("progress"), log.topics.image_results)
        await commit_all(kafka_settings, log.topics.group("compress"), log.topics.image_requests)
        for result in results[2:]:  # the backlog of a progress worker that was away for long
            await log.append(result)
        await Reconciler(kafka_settings, log).run_pass(table.rows(request_id), table.get)

        written = await events_in(kafka_settings, log.topics.image_results, request_id)
        assert written == [*results[:2], results[0], *results[2:], *results[:2]]
        assert not await events_in(kafka_settings, log.topics.progress), "none is lost"
    finally:
        await log.stop()


async def test_pass_ends_with_rebalance(kafka_settings: Settings) -> None:
    async def refuse() -> None:
        raise RebalancedError

    log, of_pass = EventLog(kafka_settings), EventLog(kafka_settings, before_write=refuse)
    await log.start()
    await of_pass.start()
    try:
        table, lost = Table(), [str(uuid4()) for _ in range(2)]
        for request_id in lost:
            table.fold(await asked_for(log, images_of(request_id, 1)))
        await commit_all(kafka_settings, log.topics.group("compress"), log.topics.image_requests)
        with pytest.raises(RebalancedError):
            await Reconciler(kafka_settings, of_pass).run_pass(table.rows(*lost), table.get)
        assert len(await events_in(kafka_settings, log.topics.image_requests)) == len(lost), "none is requested again"
    finally:
        await of_pass.stop()
        await log.stop()


async def test_queued_images_do_not_starve_other_requests(
    kafka_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconciler_module, "REQUESTS_PER_PASS", 2)

    log = EventLog(kafka_settings)
    await log.start()
    try:
        table, lost, full = Table(), str(uuid4()), str(uuid4())
        table.fold(await asked_for(log, images_of(lost, 1)))
        await commit_all(kafka_settings, log.topics.group("compress"), log.topics.image_requests)
        queued = [str(uuid4()) for _ in range(4)]
        for request_id in queued:
            table.fold(await asked_for(log, images_of(request_id, 1)))
        table.fold(await asked_for(log, images_of(full, 1)), processed(images_of(full, 1)[0]))
        reconciler = Reconciler(kafka_settings, log)
        for _ in range(3):
            await reconciler.run_pass(table.rows(*queued, lost, full), table.get)

        outputs = await events_in(kafka_settings, log.topics.output_requests)
        assert [type(event) for event in outputs] == [OutputCsvRequested], "then with backoff"
        (again,) = await events_in(kafka_settings, log.topics.progress)
        assert isinstance(again, ImagesRerequested)
        assert again.request_id == lost
    finally:
        await log.stop()


async def test_unreadable_request_or_foreign_offset_stops_no_pass(
    kafka_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = EventLog(kafka_settings)
    await log.start()
    try:
        elsewhere, broken = str(uuid4()), str(uuid4())
        table = Table()
        table.fold(await asked_for(log, images_of(broken, 1)))
        # As said by a log that was copied from another cluster, which had more partitions.
        offsets = {0: (0, 5_000_000), 99: (0, 10)}
        table.fold(created(elsewhere, time=AN_HOUR_AGO, image_offsets=offsets))
        reconcile_others = Reconciler._reconcile

        async def reconcile_most(reconciler: Reconciler, task: Stalled, *others: object) -> None:
            if task.state.request_id == broken:
                raise OSError("its part of the log can't be read")
            await reconcile_others(reconciler, task, *others)  # type: ignore[arg-type]  # passed on as they came

        monkeypatch.setattr(Reconciler, "_reconcile", reconcile_most)
        await Reconciler(kafka_settings, log).run_pass(table.rows(broken, elsewhere), table.get)
        (given_up,) = await events_in(kafka_settings, log.topics.image_results)
        assert isinstance(given_up, ImageFailed)
        assert (given_up.request_id, given_up.reason) == (elsewhere, "lost")
    finally:
        await log.stop()
