"""A retry is begun on a real log: each image that has not succeeded is asked for once, in the new run."""

from collections import defaultdict
from datetime import timedelta

from infra.settings import Settings
from streams.events.base import Event
from streams.events.images import ImageFailed, ImageProcessed, ImageRequested
from streams.events.progress import ImagesRerequested
from streams.events.registry import decode
from streams.events.requests import RequestRetried
from streams.log.producer import EventLog
from streams.progress.reconciler import Reconciler
from streams.progress.store import apply, fold, row_key
from tests.support.examples import NOON, completed, created, failed, processed, requested
from tests.support.topic_reader import events_in, records_in


async def test_early_retry_requests_each_unsuccessful_image_once(settings: Settings, request_id: str) -> None:
    log = EventLog(settings)
    await log.start()
    try:
        images = [requested(request_id, index) for index in range(4)]
        # The last is not on the log, which should not happen, and must not keep the request from its end.
        offsets: dict[int, tuple[int, int]] = {}
        for image in images[:3]:
            written = await log.append(image)
            first, last = offsets.get(written.partition, (written.offset, written.offset))
            offsets[written.partition] = (min(first, written.offset), max(last, written.offset))
        retried = RequestRetried(request_id=request_id, run=1, created_at=NOON, time=completed().time)
        table: dict[bytes, bytes] = {}
        story: list[Event] = [created(request_id, total=4, owner="shop", image_offsets=offsets)]
        story += [processed(images[0]), *(failed(image) for image in images[1:]), completed(request_id), retried]
        for event in story:
            apply(fold(event, table.get).changes, table)
        reconciler, key = Reconciler(settings, log), row_key(request_id)
        for _ in range(2):
            await reconciler.run_pass([(request_id, table[key])], table.get)

        topics = log.topics
        asked = [
            event
            for index in range(4)
            for event in await events_in(settings, topics.image_requests, f"{request_id}/{index}")
            if isinstance(event, ImageRequested) and event.run == 1
        ]
        assert asked == [
            image.model_copy(update={"run": 1, "owner": "shop", "time": retried.time}) for image in images[1:3]
        ]
        (unheard_of,) = await events_in(settings, topics.image_results, request_id)
        assert isinstance(unheard_of, ImageFailed)
        assert (unheard_of.index, unheard_of.run, unheard_of.reason) == (3, 1, "lost")
        (again,) = await events_in(settings, topics.progress, request_id)
        assert isinstance(again, ImagesRerequested)
        assert (again.run, again.cause, again.round, again.missing) == (1, "retry", 0, 2)
        # A later retry need not read what was requested before this one.
        new: dict[int, list[int]] = defaultdict(list)
        for record in await records_in(settings, topics.image_requests):
            event = decode(record.value)
            if isinstance(event, ImageRequested) and (event.request_id, event.run) == (request_id, 1):
                new[record.partition].append(record.offset)
        assert again.image_offsets == {number: (min(found), max(found)) for number, found in new.items()}
    finally:
        await log.stop()


async def test_retry_of_one_reason_keeps_the_other_failures(settings: Settings, request_id: str) -> None:
    """They fail again in the new run, as their last run did; a retry of all that follows still finds every image."""
    log = EventLog(settings)
    await log.start()
    try:
        images = [requested(request_id, index) for index in range(4)]
        offsets: dict[int, tuple[int, int]] = {}
        for image in images:
            written = await log.append(image)
            first, last = offsets.get(written.partition, (written.offset, written.offset))
            offsets[written.partition] = (min(first, written.offset), max(last, written.offset))
        results: list[ImageProcessed | ImageFailed] = [
            processed(images[0]),
            *(
                failed(image).model_copy(update={"reason": reason, "detail": f"of image {image.index}"})
                for image, reason in zip(images[1:3], ("fetch_timeout", "web_page"), strict=True)
            ),
        ]  # the last image has no result
        for result in results:
            await log.append(result)
        table: dict[bytes, bytes] = {}
        reconciler, key = Reconciler(settings, log), row_key(request_id)

        async def start_retry(run: int, reason: str | None) -> list[ImageRequested]:
            retried = RequestRetried(
                request_id=request_id, run=run, reason=reason, created_at=NOON, time=NOON + timedelta(hours=run)
            )
            apply(fold(retried, table.get).changes, table)
            await reconciler.run_pass([(request_id, table[key])], table.get)
            rerequested = (await events_in(settings, log.topics.progress, request_id))[-1]
            apply(fold(rerequested, table.get).changes, table)
            return [
                event
                for index in range(4)
                for event in await events_in(settings, log.topics.image_requests, f"{request_id}/{index}")
                if isinstance(event, ImageRequested) and event.run == run
            ]

        for event in (created(request_id, total=4, image_offsets=offsets), *results):
            apply(fold(event, table.get).changes, table)
        assert [image.index for image in await start_retry(1, "fetch_timeout")] == [1, 3]
        (*_, again) = await events_in(settings, log.topics.image_results, request_id)
        assert isinstance(again, ImageFailed)
        assert (again.index, again.run, again.reason, again.detail) == (2, 1, "web_page", "of image 2")
        assert again.requested_at == again.time == NOON + timedelta(hours=1)
        apply(fold(again, table.get).changes, table)
        assert [image.index for image in await start_retry(2, None)] == [1, 2, 3]
        assert len(await events_in(settings, log.topics.image_results, request_id)) == 4
    finally:
        await log.stop()
