"""Z1, Z2: a worker with a table writes only while the group's coordinator surely counts it as a member."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from aiokafka.protocol.commit import OffsetCommitRequest
from aiokafka.protocol.group import HeartbeatRequest, JoinGroupRequest, SyncGroupRequest

from infra.errors import end_process

_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""Runs on while the process is stopped, and while the machine is suspended."""

MARGIN = 0.2
"""Fraction of a timeout by which the lease ends early: two lost heartbeats out of three still fit."""

POLL = 0.05
"""Poll interval (s) while the lease is not held: heartbeats are answered in another thread."""

REBALANCE_IN_PROGRESS = 27
EXPULSIONS = {22: "IllegalGeneration", 25: "UnknownMemberId", 82: "FencedInstanceId"}
"""Kafka's error codes for a member that was removed from the group."""

Send = Callable[[Any], Awaitable[Any]]


def now() -> float:
    return time.clock_gettime(_CLOCK)


class Lease:
    """Until when the coordinator can't have given this worker's partitions to another.

    Trap: a worker that was stopped (SIGSTOP, a migrated machine) or cut off for longer than its session goes on with
    the events in its buffers, and overwrites its successor's records in the changelog; when it learns of its expulsion
    it first drains (transport/consumer.py ``on_partitions_revoked``).

    Guard: the lease is counted from the *sending* of the last heartbeat that was answered, as the coordinator's own
    timer began later. Nothing is written without it; an expulsion ends the process at once.
    """

    def __init__(self, session: float, rebalance: float, limit: float) -> None:
        """``session`` and ``rebalance``: the group's timeouts (s); ``limit``: maximum wait (s) for a heartbeat."""
        self._session = session * (1 - MARGIN)
        self._rebalance = rebalance * (1 - MARGIN)
        self._limit = limit
        self._ends = 0.0
        self._settled = 0.0  # when the last request was sent whose answer reported no rebalance
        self._has_joined = False
        self.term = 0
        """Incremented when a rebalance begins: a decision of an earlier term must not be written."""

    @property
    def is_held(self) -> bool:
        return now() < self._ends

    def require(self, write: str) -> None:
        """To be called right before a write; ends the process if the worker was away since `wait`."""
        if not self.is_held:
            end_process(f"no answered heartbeat is recent enough for {write}: another worker may own the partition")

    async def wait(self) -> None:
        """Wait until the lease is held: after an outage of the brokers the next heartbeat renews it or expels."""
        if self.is_held:
            return
        deadline = now() + self._limit
        while not self.is_held:
            if now() > deadline:
                end_process(f"no heartbeat was answered for {self._limit:.0f} s: another worker may own the partitions")
            await asyncio.sleep(POLL)

    def observing(self, send: Send) -> Send:
        """``send`` of the group coordinator's client (the consumer's thread), with its answers noted."""

        async def send_and_note(request: Any) -> Any:
            sent = now()
            response = await send(request)
            self.note(request, response, sent)
            return response

        return send_and_note

    def note(self, request: Any, response: Any, sent: float) -> None:
        """An answer of the coordinator to a request that was sent at ``sent``."""
        if not isinstance(request, HeartbeatRequest | JoinGroupRequest | SyncGroupRequest | OffsetCommitRequest):
            return
        codes = _error_codes(response)
        if self._has_joined and (expelled := codes & EXPULSIONS.keys()):
            end_process(f"expelled from the group ({EXPULSIONS[min(expelled)]}): other workers own the partitions")
        if isinstance(request, HeartbeatRequest | SyncGroupRequest):
            if codes == {0}:
                self._has_joined = True
                self._settled = sent
            # A member that is late for a rebalance is expelled although its heartbeats are answered.
            if codes <= {0, REBALANCE_IN_PROGRESS}:
                self._ends = min(sent + self._session, self._settled + self._rebalance)


def _error_codes(response: Any) -> set[int]:
    if hasattr(response, "error_code"):
        return {response.error_code}
    return {code for _, partitions in response.topics for _, code in partitions}
