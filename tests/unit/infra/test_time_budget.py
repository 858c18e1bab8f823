"""The time budget of a request to another host."""

import asyncio

import pytest

from infra.outbound import budget as budgets
from infra.outbound.budget import TimeBudget


async def test_pauses_count_once_the_bound_is_used_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budgets, "MAX_PAUSED", 0.1)
    budget = TimeBudget(60)
    for _ in range(3):
        with budget.paused():
            await asyncio.sleep(0.1)
    assert budget.spent >= 0.2


async def test_unbounded_pause_never_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budgets, "MAX_PAUSED", 0)
    budget = TimeBudget(60)
    began = asyncio.get_running_loop().time()
    with budget.paused(bounded=False):
        await asyncio.sleep(0.1)
    assert budget.spent <= asyncio.get_running_loop().time() - began - 0.1
