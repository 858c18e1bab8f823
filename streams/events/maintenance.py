"""Operator commands to the progress workers, and their results: no facts, kept for a week, executed at most once."""

from typing import Annotated

from pydantic import Field

from streams.events.base import Event


class ProgressRebuildRequested(Event):
    """Command: rebuild a partition of the progress table from the log, as a whole or for one request."""

    topic = "maintenance"

    rebuild_id: str
    partition: Annotated[int, Field(ge=0, lt=2**31)]
    only_request: str | None = None

    @property
    def occurrence(self) -> str:
        return f"{self.rebuild_id}/{self.partition}"


class ProgressRebuilt(Event):
    """A partition of the progress table was rebuilt."""

    topic = "maintenance"

    rebuild_id: str
    partition: Annotated[int, Field(ge=0, lt=2**31)]
    events: int = Field(description="number of events read")
    changed: int = Field(description="number of keys of the table that differed from the log")
    seconds: float

    @property
    def occurrence(self) -> str:
        return f"{self.rebuild_id}/{self.partition}"
