"""The bytes of downloaded images are bounded, and nobody waits for ever."""

import asyncio
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from streams.compress.byte_budget import ByteBudget

LIMIT = 100


def peak_of(downloads: Sequence[Sequence[int]]) -> int:
    """Runs downloads, each the sizes of its pieces, side by side; returns the most bytes that were held at a time."""
    budget = ByteBudget(LIMIT)
    peak = 0

    async def download(pieces: Sequence[int]) -> None:
        nonlocal peak
        with budget.holding() as holding:
            for piece in pieces:
                await holding.grow(piece)
                peak = max(peak, budget.held)
                await asyncio.sleep(0)
            await asyncio.sleep(0)

    async def main() -> None:
        async with asyncio.timeout(60):
            await asyncio.gather(*map(download, downloads))

    asyncio.run(main())
    assert budget.held == 0
    return peak


@settings(max_examples=60)
@given(st.lists(st.lists(st.integers(1, 80), max_size=6), max_size=12))
def test_downloads_exceed_limit_by_at_most_one_image(downloads: list[list[int]]) -> None:
    assert peak_of(downloads) <= LIMIT + max((sum(pieces) for pieces in downloads), default=0)


def test_downloads_wait_while_budget_is_exhausted() -> None:
    assert peak_of([[60], [60], [60], [60]]) == 60


def test_an_image_beyond_the_limit_is_let_through_alone() -> None:
    assert peak_of([[50, 50, 50], [10]]) <= 160


async def test_cancelled_download_releases_its_bytes() -> None:
    budget = ByteBudget(LIMIT)
    with budget.holding() as first:
        await first.grow(90)

        async def second() -> None:
            with budget.holding() as holding:
                await holding.grow(90)

        waiting = asyncio.create_task(second())
        await asyncio.sleep(0.01)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert budget.held == 90
    assert budget.held == 0
