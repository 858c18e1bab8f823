"""How the tests of asynchronous code run it."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def run(test: Coroutine[Any, Any, T]) -> T:
    """Run a test's coroutine; code that waits for ever is a failure, not a hanging test run."""

    async def bounded() -> T:
        async with asyncio.timeout(60):
            return await test

    return asyncio.run(bounded())


async def eventually(question: Callable[[], Awaitable[bool]], timeout: float = 10) -> None:
    """Return as soon as the answer is yes; TimeoutError if that takes longer than ``timeout`` seconds."""
    async with asyncio.timeout(timeout):
        while not await question():  # noqa: ASYNC110 - what is asked for happens on a server
            await asyncio.sleep(0.02)
