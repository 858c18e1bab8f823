"""Operator commands to the progress workers, and their results: no facts, kept for a week, executed at most once."""

from typing import Annotated

from pydantic import Field

from streams.events.base import Event


class _RebuildEvent(Event):
    topic = "maintenance"

    rebuild_id: str
    partition: Annotated[int, Field(ge=0, lt=2**31)]

    @property
    def occurrence(self) -> str:
        return f"{self.rebuild_id}/{self.partition}"


class ProgressRebuildRequested(_RebuildEvent):
    """Command: rebuild a partition of the progress table from the log, as a whole or for one request."""

    only_request: str | None = None


class ProgressRebuildStarted(_RebuildEvent):
    """The owner of the partition executes the command: a redelivery of it must not."""


class ProgressRebuilt(_RebuildEvent):
    """A partition of the progress table was rebuilt."""

    events: int = Field(description="number of events read")
    changed: int = Field(description="number of keys of the table that differed from the log")
    seconds: float


class ProgressRebuildFailed(_RebuildEvent):
    """The execution of the command failed or was interrupted; it is not repeated."""

    reason: str
