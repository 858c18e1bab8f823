"""The status object: what people, programs and webhook receivers are told about a request."""

from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, computed_field
from pydantic.alias_generators import to_camel

from streams.events import RequestCompleted


class Status(BaseModel):
    """How far a request is. ``progress`` is 100 exactly when it is completed; expired is what comes after that."""

    model_config = ConfigDict(frozen=True, alias_generator=to_camel, populate_by_name=True)

    request_id: str
    status: Literal["processing", "completed", "cancelled", "expired"]
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

    @computed_field
    def progress(self) -> int:
        """Percent of the images that have their result; the last percent is the output CSV."""
        if self.status in ("completed", "expired"):
            return 100
        return min(99, (self.succeeded + self.failed) * 100 // self.total)

    def as_dict(self) -> dict[str, object]:
        """The object as it is handed out: both spellings of the id, for the clients of either habit."""
        data = self.model_dump(mode="json", by_alias=True)
        return {"requestId": self.request_id, "request_id": self.request_id, **data}


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
    )
