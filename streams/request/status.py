"""The status object: the body of status answers and, at completion, of webhooks."""

from collections.abc import Iterable
from typing import Annotated, Literal, Self

from pydantic import AwareDatetime, BaseModel, Field, computed_field

from streams.events.base import JsonModel
from streams.events.requests import RequestCompleted
from streams.request.lifecycle import Phase, RequestState
from streams.request.tally import Tally, add_up, from_milliseconds
from streams.request.webhook import WebhookState


class OfRequest(JsonModel):
    """Base of the objects that tell the id of their request in both spellings."""

    request_id: str

    @computed_field(alias="request_id")
    def other_spelling(self) -> str:
        """The id again in snake_case, for clients that expect it."""
        return self.request_id


class Status(OfRequest):
    """Status of a request. ``progress`` is 100 exactly when the request is completed, or was until it expired."""

    status: Phase
    total: int
    succeeded: int
    failed: int
    input_bytes: int
    output_bytes: int
    created_at: AwareDatetime
    updated_at: AwareDatetime
    completed_at: AwareDatetime | None = None
    output_csv_url: str | None = None
    output_csv_path: str | None = Field(None, exclude=True, description="key in the storage; internal")
    owner: str = Field("", exclude=True, description="name of the API key that made the request")
    webhook: WebhookState | None = None
    run: int = Field(0, exclude=True, description="0, and one more after each retry")
    forgotten: bool = Field(
        False,
        exclude_if=lambda forgotten: not forgotten,
        description="true: its product names and URLs were removed; else absent",
    )

    @computed_field
    def progress(self) -> Annotated[int, Field(ge=0, le=100)]:
        """Percent of the images that have their result; the last percent is the output CSV."""
        if self.completed_at is not None:
            return 100
        return min(99, (self.succeeded + self.failed) * 100 // self.total)

    def as_dict(self) -> dict[str, object]:
        """The JSON object."""
        return self.model_dump(mode="json", by_alias=True)

    @classmethod
    def of(cls, state: RequestState, tallies: Iterable[Tally]) -> Self:
        """The status of a request, given its state and the tallies of its images."""
        sums = add_up(tallies, state.run)
        completion = state.completion if state.is_completed else None
        readable = None if state.is_expired else completion
        return cls(
            request_id=state.request_id,
            status=state.phase,
            total=state.total,
            succeeded=sums.succeeded,
            failed=sums.failed,
            input_bytes=sums.input_bytes,
            output_bytes=sums.output_bytes,
            created_at=state.created_at,
            updated_at=max(state.updated_at, from_milliseconds(sums.updated_ms)),
            completed_at=completion.at if completion else None,
            output_csv_url=readable.output_csv_url if readable else None,
            output_csv_path=readable.output_csv_path if readable else None,
            owner=state.owner,
            webhook=state.webhook,
            run=state.run,
            forgotten=state.is_forgotten,
        )


class WebhookMessage(BaseModel):
    """The body of a webhook, as Standard Webhooks has it."""

    type: Literal["request.completed"]
    timestamp: AwareDatetime
    data: Status


def completed_status(event: RequestCompleted, webhook: WebhookState | None) -> Status:
    """The status of a request at the moment of its completion."""
    return Status(
        **event.model_dump(include=set(Status.model_fields)),
        status=Phase.COMPLETED,
        updated_at=event.time,
        completed_at=event.time,
        webhook=webhook,
    )
