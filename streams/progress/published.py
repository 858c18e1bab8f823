"""Reactions that this process has published: a redelivery does not publish them again.

After a restart or a rebalance up to all results of a request are redelivered, and each of them finds it settled.
Without this each would request the output CSV once more.
"""

import hashlib
from collections.abc import Awaitable, Callable, Iterable, Iterator

from streams.events.base import Event

REMEMBERED = 10_000
"""Reactions, the last ones, of 16 bytes each."""


class Published:
    """Digests of whole events: a reaction with other sums is another one, though its id is the same."""

    def __init__(self, remembered: int = REMEMBERED) -> None:
        self._remembered = remembered
        self._digests: dict[bytes, None] = {}  # in the order of their publication

    async def append_new(
        self, events: Iterable[Event], append_all: Callable[[Iterable[Event]], Awaitable[None]]
    ) -> None:
        """Append the events that were not appended before; those that ``append_all`` fails on count as not appended."""
        appended: list[bytes] = []

        def new() -> Iterator[Event]:
            for event in events:
                digest = hashlib.blake2b(event.encode(), digest_size=16).digest()
                if digest not in self._digests:
                    appended.append(digest)
                    yield event

        await append_all(new())
        self._digests.update(dict.fromkeys(appended))
        while len(self._digests) > self._remembered:
            del self._digests[next(iter(self._digests))]
