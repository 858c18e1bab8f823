"""Waiting for what happens elsewhere."""

import asyncio
from collections.abc import Awaitable, Callable


async def eventually(question: Callable[[], Awaitable[bool]], timeout: float = 10) -> None:
    """Return as soon as the answer is yes; TimeoutError if that takes longer than ``timeout`` seconds."""
    async with asyncio.timeout(timeout):
        while not await question():  # noqa: ASYNC110 - what is asked for happens on a server
            await asyncio.sleep(0.02)
