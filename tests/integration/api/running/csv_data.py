"""What schemathesis can't learn from a JSON schema: which text is a CSV of ours, and which URL may be called."""

from typing import Any
from uuid import uuid4

import schemathesis
from hypothesis import strategies as st

from api.uploads.handler import UploadForm

names = st.text(st.characters(codec="utf-8", categories=["L", "N"]), min_size=1, max_size=20)
# Addresses that are never connected to: nothing is fetched in these tests.
urls = st.from_regex(r"https?://[a-z]{1,10}\.example/[a-z0-9/_-]{0,20}", fullmatch=True)
rows = st.tuples(names, names, st.lists(urls, min_size=1, max_size=3).map(" ".join))


def as_csv(table: list[tuple[str, str, str]]) -> bytes:
    lines = ["S. No.,Product Name,Input Image URLs", *(",".join(f'"{cell}"' for cell in row) for row in table)]
    return "\n".join(lines).encode()


csvs = st.lists(rows, min_size=1, max_size=5).map(as_csv)

schemathesis.openapi.media_type("text/csv", csvs)
schemathesis.openapi.format("binary", csvs.map(bytes.decode))
schemathesis.openapi.format("uri", urls)
mappings = ["product:Product Name", "urls:input image urls", '"product:Product Name",serial:S. No.']
schemathesis.openapi.format("column-mapping", st.sampled_from(mappings))


@schemathesis.hook
def map_body(context: schemathesis.HookContext, body: Any) -> Any:
    """Leave out form fields that the document doesn't name: the names made for them can't stand in a form's headers."""
    if isinstance(body, dict):
        return {name: value for name, value in body.items() if name in UploadForm.model_fields}
    return body


@schemathesis.hook
def map_query(context: schemathesis.HookContext, query: dict[str, Any] | None) -> dict[str, Any] | None:
    """Leave out cursors: only those that a page has given out are valid, which no schema can say."""
    return {name: value for name, value in query.items() if name != "cursor"} if query else query


@schemathesis.hook
def before_call(context: schemathesis.HookContext, case: "schemathesis.Case[Any]", kwargs: dict[str, Any]) -> None:
    """Use each Idempotency-Key once: with another file it is refused, which no schema can say."""
    key = case.headers.get("Idempotency-Key")
    if isinstance(key, str) and len(key) <= 255:
        case.headers["Idempotency-Key"] = uuid4().hex
