"""A semaphore whose slots are shared fairly: by group (an owner's lane), then by host, then by request."""

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

Group = tuple[str, bool]
"""Owner and lane: whether the request uses the bulk partitions."""

OWN_SHARE = 0.75
"""Maximum share for one group of the slots that the other groups leave: the rest is free for the next group at once.

The dynamic threshold of Choudhury and Hahne (IEEE/ACM Transactions on Networking 6, 1998), for slots that can't be
preempted.
"""

SPARE = 1
"""Slots that the first group leaves free in `slots_with_a_spare`."""

_Queue = OrderedDict[str, deque[asyncio.Future[None]]]  # by request


class FairSlots:
    """At most ``limit`` slots are taken at a time, ``per_host`` of them by tasks that are at the same host.

    A free slot goes to the group with the fewest slots; within it, hosts take turns, and for a host its requests.
    ``per_host`` doesn't apply where ``is_exempt`` returns True. The memory is proportional to the waiting tasks.
    """

    def __init__(
        self,
        limit: int,
        *,
        per_host: int | None = None,
        share: float = OWN_SHARE,
        is_exempt: Callable[[Group, str], bool] = lambda *_: False,
    ) -> None:
        self._limit = limit
        self._per_host = per_host or limit
        self._share = share
        self._is_exempt = is_exempt
        self._groups: Counter[Group] = Counter()
        self._hosts: Counter[str] = Counter()
        self._waiting: OrderedDict[Group, OrderedDict[str, _Queue]] = OrderedDict()
        self.taken = 0
        self.waiting = 0

    @asynccontextmanager
    async def slot(self, group: Group, host: str, request: str) -> AsyncIterator[Callable[[], None]]:
        """Wait for a slot, and hold it for the block.

        Yields a function that leaves the host to others: the task keeps its slot, but has no more to do there.
        """
        await self._take(group, host, request)
        is_at_host = True

        def leave_host() -> None:
            nonlocal is_at_host
            if is_at_host:
                is_at_host = False
                self._leave(host)
                self._fill()

        try:
            yield leave_host
        finally:
            self._release(group)
            leave_host()
            self._fill()

    async def _take(self, group: Group, host: str, request: str) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        hosts = self._waiting.setdefault(group, OrderedDict())
        hosts.setdefault(host, OrderedDict()).setdefault(request, deque()).append(turn)
        self.waiting += 1
        self._fill()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._withdraw(group, host, request, turn)
            else:
                self._release(group)
                self._leave(host)
                self._fill()
            raise

    def _release(self, group: Group) -> None:
        self.taken -= 1
        self._groups[group] -= 1
        if not self._groups[group]:
            del self._groups[group]

    def _leave(self, host: str) -> None:
        self._hosts[host] -= 1
        if not self._hosts[host]:
            del self._hosts[host]

    def _fill(self) -> None:
        while self.taken < self._limit and (following := self._next()) is not None:
            self._start(*following)

    def _next(self) -> tuple[Group, str] | None:
        for group in sorted(self._waiting, key=self._groups.__getitem__):
            own = self._groups[group]
            left = self._limit - self.taken + own  # by the other groups
            if own >= max(1, int(self._share * left)):
                continue
            for host in self._waiting[group]:
                if self._hosts[host] < self._per_host or self._is_exempt(group, host):
                    return group, host
        return None

    def _start(self, group: Group, host: str) -> None:
        hosts = self._waiting[group]
        requests = hosts[host]
        request = next(iter(requests))
        turn = requests[request].popleft()
        requests.move_to_end(request)
        hosts.move_to_end(host)
        self._waiting.move_to_end(group)
        self._note_removal(group, host, request)
        if turn.cancelled():  # its task has not run since
            return
        self.taken += 1
        self._groups[group] += 1
        self._hosts[host] += 1
        turn.set_result(None)

    def _withdraw(self, group: Group, host: str, request: str, turn: "asyncio.Future[None]") -> None:
        try:
            self._waiting[group][host][request].remove(turn)
        except (KeyError, ValueError):
            return  # `_start` has removed it
        self._note_removal(group, host, request)

    def _note_removal(self, group: Group, host: str, request: str) -> None:
        self.waiting -= 1
        hosts = self._waiting[group]
        if not hosts[host][request]:
            del hosts[host][request]
        if not hosts[host]:
            del hosts[host]
        if not hosts:
            del self._waiting[group]


def slots_with_a_spare(limit: int) -> FairSlots:
    """``limit`` slots for one group, and SPARE for the next one's first task, although the others last long."""
    return FairSlots(limit + SPARE, share=(limit + 0.5) / (limit + SPARE))  # half a slot more: rounding is downwards
