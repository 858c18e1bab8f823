"""The same work, asked for many times, is done once."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Result = TypeVar("Result")


class Once(Generic[Key, Result]):
    """Remembers up to ``most`` results for ``seconds`` each, and who is at work on which.

    A failure is told to those who wait for it and forgotten with that. A worker that is cancelled fails nobody else:
    one of those who wait goes on in its place.
    """

    def __init__(self, seconds: float, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._most = most
        self._clock = clock
        self._done: OrderedDict[Key, tuple[float, Result]] = OrderedDict()
        self._under_way: dict[Key, asyncio.Future[Result]] = {}

    def __len__(self) -> int:
        return len(self._done) + len(self._under_way)

    async def get(self, key: Key, work: Callable[[], Awaitable[Result]]) -> tuple[Result, bool]:
        """The result, and whether this call has done the work. Raises what ``work`` raises."""
        while True:
            if (known := self._remembered(key)) is not None:
                return known, False
            if (other := self._under_way.get(key)) is None:
                return await self._do(key, work), True
            try:
                return await asyncio.shield(other), False
            except asyncio.CancelledError:
                us = asyncio.current_task()
                if not other.cancelled() or (us is not None and us.cancelling()):
                    raise  # it is us who are cancelled, if not us alone

    def forget(self, key: Key) -> None:
        """The remembered result is of no use any more."""
        self._done.pop(key, None)

    def _remembered(self, key: Key) -> Result | None:
        while self._done:
            oldest, (expires, _) = next(iter(self._done.items()))
            if expires > self._clock():
                break
            del self._done[oldest]
        entry = self._done.get(key)
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
            future.exception()  # it is raised here: nobody else need be waiting for it
            raise
        else:
            future.set_result(result)
            if self._seconds > 0:
                self._done[key] = (self._clock() + self._seconds, result)
                self._done.move_to_end(key)
                while len(self._done) > self._most:
                    self._done.popitem(last=False)
            return result
        finally:
            del self._under_way[key]
