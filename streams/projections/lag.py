"""The history lags behind the log: readers wait for it, then add the missing results from the log, once."""

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import TypeVar

HISTORY_TIMEOUT = 15.0
"""Seconds without a further result in the history after which the results are read from the log."""
HISTORY_POLL = 0.2

T = TypeVar("T")

Recall = Callable[[str, datetime], Awaitable[None]]
"""Applies the results of a request that are on the log, from its creation on, to the history."""


class HistoryLagsError(Exception):
    """Results of the request are not in the history yet; the message says which."""


async def with_history(work: Callable[[], Awaitable[T]], recall: Callable[[], Awaitable[None]]) -> T:
    """Do ``work``; if the history lags for too long, recall the results once and do it again.

    Raises HistoryLagsError if they aren't on the log either.
    """
    try:
        return await work()
    except HistoryLagsError:
        await recall()
    return await work()
