"""Which trace a request and its events belong to, whatever a caller sends (W3C Trace Context, level 1)."""

import re
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.events.base import Event
from streams.events.registry import decode
from streams.events.trace_context import PATTERN, trace_id_of, traceparent_of, usable
from streams.events.webhooks import WebhookAttempted
from streams.request.lifecycle import RequestState
from streams.request.outcome import outcome_of
from streams.request.reactions import output_requested
from streams.request.tally import Sums
from tests.support.event_examples import EXAMPLES, name_of
from tests.support.examples import REQUEST_ID, created, failed, processed, requested

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GIVEN = f"00-{TRACE}-{PARENT}-01"


@pytest.mark.parametrize(
    ("sent", "read"),
    [
        (GIVEN, GIVEN),
        (f"00-{TRACE}-{PARENT}-00", f"00-{TRACE}-{PARENT}-00"),
        # Flags that version 00 doesn't know are not handed on.
        (f"00-{TRACE}-{PARENT}-ff", GIVEN),
        (f"00-{TRACE}-{PARENT}-fe", f"00-{TRACE}-{PARENT}-00"),
        # A later version is read as far as it is like version 00, and handed on as version 00.
        (f"01-{TRACE}-{PARENT}-01", GIVEN),
        (f"cc-{TRACE}-{PARENT}-01-what-the-future-will-be-like", GIVEN),
        (f"cc-{TRACE}-{PARENT}-01-", GIVEN),
    ],
)
def test_a_context_is_taken_over(sent: str, read: str) -> None:
    assert usable([sent]) == read


@pytest.mark.parametrize(
    "sent",
    [
        "",
        "00",
        f"00-{TRACE}-{PARENT}",
        f"00-{TRACE}-{PARENT}-",
        f"00-{TRACE}-{PARENT}-1",
        f"00-{TRACE}-{PARENT}-011",
        f"00-{TRACE}-{PARENT}-01-",
        f"00-{TRACE}-{PARENT}-01-more",
        f"00-{TRACE}-{PARENT}-01.more",
        f"cc-{TRACE}-{PARENT}-01.more",
        f"cc-{TRACE}-{PARENT}-0100",
        f"ff-{TRACE}-{PARENT}-01",
        f"0-{TRACE}-{PARENT}-01",
        f"000-{TRACE}-{PARENT}-01",
        f".0-{TRACE}-{PARENT}-01",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{PARENT}-01",
        f"00-{TRACE}-{PARENT.upper()}-01",
        f"00-{TRACE[:-1]}-{PARENT}-01",
        f"00-{TRACE}0-{PARENT}-01",
        f"00-{TRACE[:-1]}.-{PARENT}-01",
        f"00-{TRACE}-{PARENT}0-01",
        f"00-{TRACE}-{PARENT}-0x",
        f"00-{TRACE}-{PARENT}-.0",
        f"00_{TRACE}_{PARENT}_01",
        f" {GIVEN}",
        f"{GIVEN}\n",
        f"{GIVEN},{GIVEN}",
        GIVEN.replace("0", "０"),  # noqa: RUF001 - digits of another script
        "0" * 100_000,
    ],
)
def test_anything_else_is_as_if_nothing_was_sent(sent: str) -> None:
    assert usable([sent]) is None


def test_more_than_one_context_is_none() -> None:
    assert usable([GIVEN, GIVEN]) is None
    assert usable([]) is None


@given(st.one_of(st.text(max_size=80), st.text("0123456789abcdef-fF", min_size=50, max_size=60)))
def test_any_header_yields_valid_trace_context(sent: str) -> None:
    read = usable([sent])
    assert read is None or re.fullmatch(PATTERN, read)


@given(st.uuids(), st.uuids())
def test_without_a_caller_the_trace_is_the_request(request: UUID, event: UUID) -> None:
    context = traceparent_of(str(request), None, str(event))
    if request.int:
        assert context.split("-")[1] == request.hex
    assert usable([context]) == context or not event.hex[:16].strip("0")


@given(st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True))
def test_request_without_uuid_has_trace_id(request_id: str) -> None:
    trace_id = trace_id_of(request_id, None)
    assert re.fullmatch("[0-9a-f]{32}", trace_id)
    assert trace_id.strip("0")
    assert trace_id == trace_id_of(request_id, None)


@pytest.mark.parametrize("event", EXAMPLES, ids=name_of)
def test_event_is_stable_span_of_its_request(event: Event) -> None:
    for sent in (None, f"00-{TRACE}-{PARENT}-00"):
        of_caller = event.model_copy(update={"traceparent": sent})
        context = of_caller.own_traceparent
        assert usable([context]) == context
        _, trace_id, span_id, flags = context.split("-")
        assert (trace_id, flags) == ((TRACE, "00") if sent else (trace_id_of(event.request_id, None), "01"))
        assert event.id.replace("-", "").startswith(span_id)
        assert decode(of_caller.encode()).own_traceparent == context
        assert of_caller.id == event.id, "what an event is doesn't depend on who asked"


def test_different_events_are_different_spans() -> None:
    spans = [created().own_traceparent, processed(requested()).own_traceparent, failed(requested()).own_traceparent]
    spans += [requested(index=index, run=run).own_traceparent for index in range(50) for run in range(3)]
    assert len(set(spans)) == len(spans)


def test_events_of_upload_have_trace_of_caller() -> None:
    creation = created(traceparent=GIVEN)
    image = requested(traceparent=GIVEN)
    for result in (processed(image), failed(image)):
        assert result.traceparent == GIVEN
    assert output_requested(RequestState.of(creation), Sums()).traceparent == GIVEN
    attempted = WebhookAttempted(
        request_id=REQUEST_ID, webhook_id="msg_1", attempt=1, status=204, milliseconds=5, traceparent=GIVEN
    )
    outcome = outcome_of(attempted)
    assert outcome is not None
    assert outcome.traceparent == GIVEN


def test_event_without_traceparent_keeps_its_bytes() -> None:
    assert b"traceparent" not in requested().encode()
    assert b"traceparent" in requested(traceparent=GIVEN).encode()
