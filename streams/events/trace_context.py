"""W3C Trace Context (level 1) of requests and events: https://www.w3.org/TR/trace-context-1/

A request is a trace. Its trace id is the caller's, if the upload has a usable ``traceparent``, else the request's id:
both have 16 bytes, so nothing needs to be stored. Each event is a span of the trace; the span id is the first half of
the event's id, so the same fact written again is the same span.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from hashlib import sha256
from uuid import UUID

PATTERN = r"^00-[0-9a-f]{32}-[0-9a-f]{16}-0[01]$"
HEADER = "traceparent"

_SENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL)
_SAMPLED = 0x01
_RECORDED = "01"  # what we trace is on the log for ever


def usable(sent: Sequence[str]) -> str | None:
    """The caller's context as version 00 writes it, from all ``traceparent`` headers of a request; None: there is none.

    Anything else than one valid value counts as none (3.2, 4.3): upper case, ids of zeros, version ff, and more than
    four parts in version 00. Of a later version the parts that it shares with version 00 are read. Of the flags only
    *sampled* is kept.
    """
    match = _SENT.fullmatch(sent[0]) if len(sent) == 1 else None
    if match is None:
        return None
    version, trace_id, parent_id, flags, more = match.groups()
    if version == "ff" or (version == "00" and more is not None) or not trace_id.strip("0") or not parent_id.strip("0"):
        return None
    return f"00-{trace_id}-{parent_id}-{int(flags, 16) & _SAMPLED:02x}"


def trace_id_of(request_id: str, given: str | None) -> str:
    """The trace of a request; ``given``: the caller's context, if there was one."""
    return given[3:35] if given else _own_trace_id(request_id)


@lru_cache(1024)
def _own_trace_id(request_id: str) -> str:
    try:
        trace_id = UUID(request_id).hex
    except ValueError:
        trace_id = ""  # another program created the request, with an id that is no UUID
    return trace_id if trace_id.strip("0") else sha256(request_id.encode()).hexdigest()[:32]


def traceparent_of(request_id: str, given: str | None, event_id: str) -> str:
    """The context that an event hands on: its request's trace, and the event as the parent of what follows."""
    span_id = event_id[:8] + event_id[9:13] + event_id[14:18]
    return f"00-{trace_id_of(request_id, given)}-{span_id}-{given[53:] if given else _RECORDED}"
