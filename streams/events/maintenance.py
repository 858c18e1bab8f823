"""Commands of operators to the progress workers, and their answers."""

from typing import Annotated

from pydantic import Field

from streams.events.base import Event


class ProgressRebuildRequested(Event):
    """Command: rebuild a partition of the progress table from the log, as a whole or for one request."""

    topic = "progress_tasks"

    rebuild_id: str
    partition: Annotated[int, Field(ge=0, lt=2**31)]
    only_request: str | None = None

    @property
    def occurrence(self) -> str:
        return f"{self.rebuild_id}/{self.partition}"


class ProgressRebuilt(Event):
    """A partition of the progress table was rebuilt."""

    topic = "progress_tasks"

    rebuild_id: str
    partition: Annotated[int, Field(ge=0, lt=2**31)]
    events: int = Field(description="events read")
    changed: int = Field(description="records of the table that were other than what the log says")
    seconds: float

    @property
    def occurrence(self) -> str:
        return f"{self.rebuild_id}/{self.partition}"
