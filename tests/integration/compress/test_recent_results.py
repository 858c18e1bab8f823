"""What a worker learns from the end of the results topic before it begins."""

import asyncio

import pytest

from infra.settings import Settings
from streams.compress import dedup as recent_results
from streams.compress.dedup import RecentResults
from streams.log.producer import EventLog
from tests.support.examples import failed, processed, requested


async def test_every_result_on_the_log_is_known(settings: Settings, request_id: str) -> None:
    done, broken, waiting = (requested(request_id, index) for index in range(3))
    again = requested(request_id, 1, run=1)

    log = EventLog(settings)
    await log.start()
    try:
        await log.append(processed(done))
        await log.append(failed(broken))
        recent = RecentResults(settings)
        known = [await recent.has_result(image) for image in (done, broken, waiting, again)]
        assert known == [True, True, False, False]
        await log.append(processed(waiting))
        assert not await recent.has_result(waiting), "what this worker writes itself it has no need to read"
        recent.expire()
        assert await recent.has_result(waiting)
    finally:
        await log.stop()


async def test_only_the_tail_of_the_topic_is_read(
    settings: Settings, request_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recent_results, "TAIL", 50)
    images = [requested(request_id, index) for index in range(80)]

    log = EventLog(settings)
    await log.start()
    try:
        for image in images:  # all in the partition of their request
            await log.append(processed(image))
        recent = RecentResults(settings)
        assert [await recent.has_result(image) for image in images] == [False] * 30 + [True] * 50
    finally:
        await log.stop()


async def test_records_expiring_during_a_read_are_read_again(settings: Settings, request_id: str) -> None:
    image = requested(request_id)

    log = EventLog(settings)
    await log.start()
    try:
        recent = RecentResults(settings)
        load = recent._load

        async def overtaken() -> set[tuple[str, int, int]]:
            recent._load = load  # type: ignore[method-assign]  # only the first time
            loaded = await load()
            await log.append(processed(image))  # another worker's last, before this one gets its partitions
            recent.expire()
            return loaded

        recent._load = overtaken  # type: ignore[method-assign]  # reads as before, while the world goes on
        assert await recent.has_result(image)
    finally:
        await log.stop()


async def test_concurrent_callers_share_one_read(settings: Settings, request_id: str) -> None:
    recent = RecentResults(settings)
    loads = 0
    load = recent._load

    async def counted() -> set[tuple[str, int, int]]:
        nonlocal loads
        loads += 1
        return await load()

    recent._load = counted  # type: ignore[method-assign]  # counts, and does the same
    images = [requested(request_id, index) for index in range(30)]
    assert await asyncio.gather(*(recent.has_result(image) for image in images)) == [False] * 30
    assert loads == 1
