"""Single flight: concurrent calls for the same key share one execution, and its result is cached for a while."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Result = TypeVar("Result")


class SingleFlight(Generic[Key, Result]):
    """Caches up to ``most`` results for ``seconds`` each, and shares the executions under way.

    A failure is raised in every waiting caller and not cached. When the executing caller is cancelled, one of the
    waiting callers executes the work instead.
    """

    def __init__(self, seconds: float, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._most = most
        self._clock = clock
        self._results: OrderedDict[Key, tuple[float, Result]] = OrderedDict()
        self._under_way: dict[Key, asyncio.Future[Result]] = {}

    def __len__(self) -> int:
        return len(self._results) + len(self._under_way)

    async def get(self, key: Key, work: Callable[[], Awaitable[Result]]) -> tuple[Result, bool]:
        """The result, and whether this call executed the work. Raises the exceptions of ``work``."""
        while True:
            if (cached := self._cached(key)) is not None:
                return cached, False
            if (other := self._under_way.get(key)) is None:
                return await self._do(key, work), True
            try:
                return await asyncio.shield(other), False
            except asyncio.CancelledError:
                us = asyncio.current_task()
                if not other.cancelled() or (us is not None and us.cancelling()):
                    raise  # this caller is cancelled, too

    def forget(self, key: Key) -> None:
        """Drop a cached result that is no longer valid."""
        self._results.pop(key, None)

    def _cached(self, key: Key) -> Result | None:
        while self._results:
            oldest, (expires, _) = next(iter(self._results.items()))
            if expires > self._clock():
                break
            del self._results[oldest]
        entry = self._results.get(key)
        return None if entry is None else entry[1]

    async def _do(self, key: Key, work: Callable[[], Awaitable[Result]]) -> Result:
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._under_way[key] = future
        try:
            result = await work()
        except asyncio.CancelledError:
            future.cancel()
            raise
        except BaseException as error:
            future.set_exception(error)
            future.exception()  # retrieved: it is raised below, and there may be no other caller
            raise
        else:
            future.set_result(result)
            if self._seconds > 0:
                self._results[key] = (self._clock() + self._seconds, result)
                self._results.move_to_end(key)
                while len(self._results) > self._most:
                    self._results.popitem(last=False)
            return result
        finally:
            del self._under_way[key]
