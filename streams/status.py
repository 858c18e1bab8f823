"""The status object: what people, programs and webhook receivers are told about a request."""

from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, computed_field
from pydantic.alias_generators import to_camel

from streams.events import RequestCompleted


class Status(BaseModel):
    """How far a request is. ``progress`` is 100 exactly when ``status`` is ``completed``."""

    model_config = ConfigDict(frozen=True, alias_generator=to_camel, populate_by_name=True)

    request_id: str
    status: Literal["processing", "completed", "cancelled"]
    total: int
    succeeded: int
    failed: int
    input_bytes: int
    output_bytes: int
    created_at: AwareDatetime
    updated_at: AwareDatetime
    completed_at: AwareDatetime | None = None
    output_csv_url: str | None = None
    output_csv_path: str | None = Field(None, exclude=True, description="key in the storage; not told to the outside")
    owner: str = Field("", exclude=True, description="name of the API key that made the request")
    webhook: Literal["pending", "delivered", "failed"] | None = None
    run: int = Field(0, exclude=True, description="0, and one more after each retry")

    @computed_field(alias="request_id")
    def other_spelling(self) -> str:
        """The id once more, for the clients of the other habit."""
        return self.request_id

    @computed_field
    def progress(self) -> Annotated[int, Field(ge=0, le=100)]:
        """Percent of the images that have their result; the last percent is the output CSV."""
        if self.status == "completed":
            return 100
        return min(99, (self.succeeded + self.failed) * 100 // self.total)

    def as_dict(self) -> dict[str, object]:
        """The object as it is handed out."""
        return self.model_dump(mode="json", by_alias=True)

    def in_run(self, run: int, began_at: datetime) -> Self:
        """The status of the same request when a retry has begun of which nothing else is known yet."""
        return self.model_copy(
            update={
                "status": "processing",
                "failed": 0,
                "updated_at": max(self.updated_at, began_at),
                "completed_at": None,
                "output_csv_url": None,
                "output_csv_path": None,
                "webhook": None,
                "run": run,
            }
        )


class WebhookMessage(BaseModel):
    """The body of a webhook, as Standard Webhooks has it."""

    type: Literal["request.completed"]
    timestamp: AwareDatetime
    data: Status


def completed_status(event: RequestCompleted, webhook: Literal["pending", "delivered", "failed"] | None) -> Status:
    """The status of a request at the moment of its completion."""
    return Status(
        request_id=event.request_id,
        status="completed",
        total=event.total,
        succeeded=event.succeeded,
        failed=event.failed,
        input_bytes=event.input_bytes,
        output_bytes=event.output_bytes,
        created_at=event.created_at,
        updated_at=event.time,
        completed_at=event.time,
        output_csv_url=event.output_csv_url,
        output_csv_path=event.output_csv_path,
        owner=event.owner,
        webhook=webhook,
        run=event.run,
    )
