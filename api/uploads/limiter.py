"""Bound on the uploads in flight, and the threads for their CPU work."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import TypeVar

from aiohttp import web

from api.http.problems import unavailable
from api.http.quotas import ConcurrencyLimit

CSV_THREADS = 2
T = TypeVar("T")


class UploadLimiter:
    """Bounds the uploads in flight, and so their memory; runs their CPU work in a small thread pool.

    The work is pure Python and serialised by the GIL: more threads would only delay the event loop.
    """

    def __init__(self, limit: int, share: int) -> None:
        self._slots = ConcurrencyLimit(
            limit, share, lambda reason: unavailable(f"too many concurrent uploads: {reason}")
        )
        self.one_spreadsheet = asyncio.Semaphore(1)  # each takes up to a CPU and the memory of its process
        self._threads = ThreadPoolExecutor(CSV_THREADS, thread_name_prefix="csv")

    async def run(self, step: Callable[[], T]) -> T:
        """Run a short step of one upload in the thread pool, interleaved with the steps of the other uploads."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, step)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    @property
    def count(self) -> int:
        return self._slots.taken

    def admit(self, owner: str) -> AbstractContextManager[None]:
        """Count an upload while it is in flight; raise a 503 with Retry-After at the limit."""
        return self._slots.take(owner)


UPLOADS = web.AppKey("uploads", UploadLimiter)
