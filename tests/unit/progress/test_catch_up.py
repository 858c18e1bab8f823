"""Catching up with the log after an assignment."""

from collections.abc import Iterable, Mapping

from streams.progress.catch_up import CatchUp

Inputs = tuple[str, int]


class Log:
    def __init__(self) -> None:
        self.ends: dict[Inputs, int] = {}
        self.positions: dict[Inputs, int] = {}
        self.catch_up = CatchUp(lambda number: [("requests", number), ("progress", number)], self.ask, self.position)

    async def ask(self, inputs: Iterable[Inputs]) -> Mapping[Inputs, int]:
        return {each: self.ends.get(each, 0) for each in inputs}

    def position(self, each: Inputs) -> int | None:
        return self.positions.get(each)


async def test_partition_catches_up_on_every_topic() -> None:
    log = Log()
    log.ends = {("requests", 0): 5, ("progress", 0): 3}
    log.positions = {("requests", 0): 5, ("progress", 0): 2}
    assert await log.catch_up.among({0, 1}) == {1}, "the other one is empty"
    log.positions["progress", 0] = 3
    assert await log.catch_up.among({0, 1}) == {0, 1}


async def test_events_after_assignment_do_not_delay() -> None:
    log = Log()
    log.ends = {("requests", 0): 5}
    assert await log.catch_up.among({0}) == set()
    log.ends["requests", 0] = 1000
    log.positions["requests", 0] = 5
    assert await log.catch_up.among({0}) == {0}


async def test_new_assignment_catches_up_again() -> None:
    log = Log()
    assert await log.catch_up.among({0}) == {0}
    assert await log.catch_up.among(set()) == set()
    log.ends["requests", 0] = 5
    assert await log.catch_up.among({0}) == set()
