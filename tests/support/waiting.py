"""Waiting for what happens elsewhere."""

import asyncio
import time
from collections.abc import Awaitable, Callable


async def eventually(question: Callable[[], Awaitable[bool]], timeout: float = 120) -> None:
    """Return as soon as the answer is yes; TimeoutError if that takes longer than ``timeout`` seconds."""
    async with asyncio.timeout(timeout):
        while not await question():  # noqa: ASYNC110 - what is asked for happens on a server
            await asyncio.sleep(0.02)


def wait_until(condition: Callable[[], object], what: str, timeout: float = 120) -> None:
    """Return as soon as the condition holds; AssertionError if that takes longer than ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not in {timeout} s: {what}"
        time.sleep(0.05)
