"""Commands of operators to the progress workers, and their answers."""

from typing import Annotated

from pydantic import Field

from streams.events.base import Event


class ProgressRebuildRequested(Event):
    """The progress worker of a partition is to fold the log anew: all of it, or only what is about one request."""

    topic = "progress_tasks"

    rebuild_id: str
    partition: Annotated[int, Field(ge=0, lt=2**31)]
    only_request: str | None = None

    @property
    def occurrence(self) -> str:
        return f"{self.rebuild_id}/{self.partition}"


class ProgressRebuilt(Event):
    """A partition of the progress table was folded anew."""

    topic = "progress_tasks"

    rebuild_id: str
    partition: Annotated[int, Field(ge=0, lt=2**31)]
    events: int = Field(description="events read")
    changed: int = Field(description="records of the table that were other than what the log says")
    seconds: float

    @property
    def occurrence(self) -> str:
        return f"{self.rebuild_id}/{self.partition}"
