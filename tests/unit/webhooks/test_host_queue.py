"""The queue of a host's hints, with a list in place of Cassandra."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from streams.webhooks.host_queue import NEVER, PAGE, START, Cursor, HostQueue, Slot
from streams.webhooks.store import SLOT, Hint, slot_of

BEGIN = datetime(2026, 11, 1, 12, tzinfo=UTC)


def hint(seconds: int, name: str = "msg") -> Hint:
    return Hint(0, "shop.example", BEGIN + timedelta(seconds=seconds), name)


class World:
    """Hints that are stored, and those that the queue handed out."""

    def __init__(self) -> None:
        self.queue = HostQueue()
        self.stored: list[Hint] = []
        self.sent: list[str] = []

    def write(self, new: Hint) -> None:
        self.stored.append(new)
        self.queue.note(new.slot, new.due)

    def page(self, start: datetime, after: Cursor) -> list[Hint]:
        found = [one for one in self.stored if one.slot == start and (one.due, one.webhook_id) > after]
        return sorted(found, key=lambda one: (one.due, one.webhook_id))[:PAGE]

    def read(self, now: datetime, *, before: Hint | None = None, after: Hint | None = None) -> None:
        """Read a page; hints may be written before and after it is taken from the store."""
        start, slot = self.queue.first()
        if slot.due > now:
            return
        cursor = slot.begin_page()
        if before is not None:
            self.write(before)
        page = self.page(start, cursor)
        if after is not None:
            self.write(after)
        self.sent += [one.webhook_id for one in slot.end_page(cursor, page, now)]


STEPS = ("write", "read", "read, write before", "read, write after")
seconds = st.integers(0, 3 * int(SLOT.total_seconds()))
steps = st.lists(st.tuples(st.sampled_from(STEPS), seconds, seconds))


@given(steps)
def test_every_hint_is_read_once_it_is_due(steps: list[tuple[str, int, int]]) -> None:
    world = World()
    for number, (step, due, now) in enumerate(steps):
        new = hint(due, f"msg-{number}")
        at = BEGIN + timedelta(seconds=now)
        if step == "write":
            world.write(new)
        else:
            world.read(at, before=new if "before" in step else None, after=new if "after" in step else None)
    end = BEGIN + 4 * SLOT
    for _ in range(4 * len(steps) + 4):
        world.read(end)
    assert world.queue.due == NEVER
    assert set(world.sent) == {one.webhook_id for one in world.stored}


def test_no_hint_is_read_before_it_is_due() -> None:
    world = World()
    world.write(hint(30, "later"))
    world.write(hint(10, "now"))
    world.read(BEGIN + timedelta(seconds=20))
    assert world.sent == ["now"]
    assert world.queue.due == hint(30).due


def test_full_page_is_followed_by_another() -> None:
    world = World()
    for number in range(2 * PAGE + 1):
        world.write(hint(0, f"msg-{number:03}"))
    for _ in range(3):
        world.read(BEGIN)
    assert len(world.sent) == len(set(world.sent)) == 2 * PAGE + 1


def test_empty_page_leaves_nothing_due() -> None:
    slot = Slot(BEGIN)
    cursor = slot.begin_page()
    assert slot.end_page(cursor, [], BEGIN) == []
    assert (slot.due, slot.cursor) == (NEVER, START)


def test_queue_begins_with_the_first_slot() -> None:
    queue = HostQueue()
    late, early = hint(1500), hint(100)
    for one in (late, early):
        queue.note(one.slot, one.due)
    start, _ = queue.first()
    assert start == slot_of(early.due)
