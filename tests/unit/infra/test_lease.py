"""Z1, Z2: until when a worker may write."""

import asyncio
from typing import Any

import pytest
from aiokafka.protocol.commit import OffsetCommitRequest, OffsetCommitResponse_v2
from aiokafka.protocol.group import (
    HeartbeatRequest,
    HeartbeatResponse_v0,
    LeaveGroupRequest,
    LeaveGroupResponse_v0,
    SyncGroupRequest,
    SyncGroupResponse_v0,
)

from infra.faust import lease as lease_module
from infra.faust.lease import REBALANCE_IN_PROGRESS, Lease

HEARTBEAT = HeartbeatRequest("group", 1, "member")
SYNC = SyncGroupRequest("group", 1, "member", None, [])
COMMIT = OffsetCommitRequest("group", 1, "member", -1, [])
LEAVE = LeaveGroupRequest("group", "member")
UNKNOWN_MEMBER = 25


class Ended(Exception):
    """The process would have ended."""


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()

    def end(reason: str) -> None:
        raise Ended(reason)

    monkeypatch.setattr(lease_module, "now", clock)
    monkeypatch.setattr(lease_module, "end_process", end)
    return clock


@pytest.fixture
def lease(clock: Clock) -> Lease:
    """Of a worker that has just joined; 8 s of a session of 10 s."""
    lease = Lease(10, 60, 5)
    lease.note(SYNC, SyncGroupResponse_v0(0, b""), clock.now)
    return lease


def test_new_worker_holds_no_lease(clock: Clock) -> None:
    assert not Lease(10, 60, 5).is_held


def test_lease_counts_from_sending_of_heartbeat(lease: Lease, clock: Clock) -> None:
    clock.now += 5
    sent = clock.now
    clock.now += 7  # the answer is late
    lease.note(HEARTBEAT, HeartbeatResponse_v0(0), sent)
    assert lease.is_held
    clock.now = sent + 8
    assert not lease.is_held
    with pytest.raises(Ended, match="a table write"):
        lease.require("a table write")


def test_heartbeats_do_not_outlast_rebalance_timeout(lease: Lease, clock: Clock) -> None:
    for _ in range(16):
        clock.now += 3
        lease.note(HEARTBEAT, HeartbeatResponse_v0(REBALANCE_IN_PROGRESS), clock.now)
    assert not lease.is_held


@pytest.mark.parametrize("code", [22, 25, 82])
@pytest.mark.parametrize("request_", [HEARTBEAT, SYNC, COMMIT])
def test_expulsion_ends_process(lease: Lease, clock: Clock, request_: Any, code: int) -> None:
    responses = {
        HEARTBEAT: HeartbeatResponse_v0(code),
        SYNC: SyncGroupResponse_v0(code, b""),
        COMMIT: OffsetCommitResponse_v2([("topic", [(0, 0), (1, code)])]),
    }
    with pytest.raises(Ended, match="expelled"):
        lease.note(request_, responses[request_], clock.now)


def test_unknown_member_may_still_join(clock: Clock) -> None:
    Lease(10, 60, 5).note(SYNC, SyncGroupResponse_v0(UNKNOWN_MEMBER, b""), clock.now)


def test_leaving_group_is_no_expulsion(lease: Lease, clock: Clock) -> None:
    lease.note(LEAVE, LeaveGroupResponse_v0(UNKNOWN_MEMBER), clock.now)


async def test_waiting_ends_with_next_heartbeat(lease: Lease, clock: Clock) -> None:
    clock.now += 60
    waiting = asyncio.create_task(lease.wait())
    await asyncio.sleep(0)
    assert not waiting.done()
    lease.note(HEARTBEAT, HeartbeatResponse_v0(0), clock.now)
    await waiting


async def test_waiting_has_deadline(lease: Lease, clock: Clock) -> None:
    clock.now += 60
    waiting = asyncio.create_task(lease.wait())
    await asyncio.sleep(0)
    clock.now += 6
    with pytest.raises(Ended, match="5 s"):
        await waiting
