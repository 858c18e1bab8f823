"""Waiting for what happens elsewhere.

A question may cost the machine as much as the work that it waits for: between two, at least its own time passes.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable


async def eventually(question: Callable[[], Awaitable[bool]], timeout: float = 240) -> None:
    """Return as soon as the answer is yes; TimeoutError if that takes longer than ``timeout`` seconds."""
    async with asyncio.timeout(timeout):
        asked = time.monotonic()
        while not await question():
            await asyncio.sleep(max(0.02, time.monotonic() - asked))
            asked = time.monotonic()


def wait_until(condition: Callable[[], object], what: str, timeout: float = 240) -> None:
    """Return as soon as the condition holds; AssertionError if that takes longer than ``timeout`` seconds."""
    asked = time.monotonic()
    deadline = asked + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not in {timeout} s: {what}"
        time.sleep(max(0.05, time.monotonic() - asked))
        asked = time.monotonic()
