"""Reactions are published once by a process, however often their cause is redelivered."""

from collections.abc import Iterable

import pytest

from streams.events.base import Event
from streams.events.requests import OutputCsvRequested
from streams.progress.published import Published
from tests.support.examples import created, failed, processed, requested
from tests.unit.request.folded import Folded

IMAGES = 60
RESULTS = [processed(requested(index=index)) for index in range(IMAGES)]


async def test_redelivered_results_request_the_output_once() -> None:
    request, published = Folded(), Published()
    appended: list[Event] = []

    async def append_all(events: Iterable[Event]) -> None:
        appended.extend(events)

    for event in [created(total=IMAGES), *RESULTS, *RESULTS]:
        await published.append_new(request.apply(event), append_all)
    assert [type(event) for event in appended] == [OutputCsvRequested]
    assert len(request.apply(*RESULTS)) == IMAGES, "without it one for each result"


async def test_late_success_requests_the_output_again() -> None:
    request, published = Folded(), Published()
    appended: list[Event] = []

    async def append_all(events: Iterable[Event]) -> None:
        appended.extend(events)

    late = requested(index=1)
    for event in [created(total=2), RESULTS[0], failed(late), processed(late)]:
        await published.append_new(request.apply(event), append_all)
    assert [event.failed for event in appended if isinstance(event, OutputCsvRequested)] == [1, 0]


async def test_failed_reaction_is_published_at_redelivery() -> None:
    request, published = Folded(created(total=1)), Published()
    appended: list[Event] = []

    async def fail(events: Iterable[Event]) -> None:
        list(events)
        raise OSError("not acknowledged")

    async def append_all(events: Iterable[Event]) -> None:
        appended.extend(events)

    with pytest.raises(OSError, match="not acknowledged"):
        await published.append_new(request.apply(RESULTS[0]), fail)
    await published.append_new(request.apply(RESULTS[0]), append_all)
    assert len(appended) == 1


async def test_memory_of_published_reactions_is_bounded() -> None:
    published = Published(remembered=2)
    appended: list[Event] = []

    async def append_all(events: Iterable[Event]) -> None:
        appended.extend(events)

    events = [created(f"request-{number}") for number in range(3)]
    for event in [*events, events[2], events[0]]:
        await published.append_new([event], append_all)
    assert appended == [*events, events[0]]
