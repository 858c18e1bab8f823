"""Shared resources of an app's agents (producer, connections, pools): opened by the first agent, closed by the last."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")


class Resources(Generic[T]):
    """``async with resources as shared`` in each agent: ``T`` lives as long as one of them runs.

    ``open_all`` puts each resource that it opens onto the stack, so that all are closed, in reverse order.
    """

    def __init__(self, open_all: Callable[[AsyncExitStack], Awaitable[T]]) -> None:
        self._open_all = open_all
        self._stack = AsyncExitStack()
        self._changing = asyncio.Lock()
        self._users = 0
        self._opened: T | None = None

    @property
    def opened(self) -> T | None:
        """The open resources; None before the first agent and after the last."""
        return self._opened

    def problem_of(self, problem: Callable[[T], str | None]) -> Callable[[], str | None]:
        """A readiness check of the open resources; before, there is no problem."""
        return lambda: None if self._opened is None else problem(self._opened)

    async def __aenter__(self) -> T:
        async with self._changing:
            if self._opened is None:
                try:
                    self._opened = await self._open_all(self._stack)
                except BaseException:
                    await self._stack.aclose()
                    raise
            self._users += 1
            return self._opened

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        async with self._changing:
            self._users -= 1
            if self._users == 0:
                self._opened = None
                await self._stack.aclose()
