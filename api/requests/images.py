"""Image list of a request: the result of each image, paged."""

from collections.abc import Callable
from http import HTTPStatus
from typing import Annotated, Any, get_args

from aiohttp import web
from pydantic import Field, TypeAdapter

from api.context import CONTEXT, Context
from api.contract.models import Image, ImagePage, ImageStatus
from api.contract.routes import Parameter, Response, Route
from api.http.paging import PAGE_PROBLEMS, choice_of, cursor_of, cursor_to, json_response, number_of, page_parameters
from api.http.problems import unavailable_on
from api.requests.status import status_of
from infra.cassandra.session import CassandraUnavailableError
from streams.projections.history.tables import LISTED
from streams.request.status import Status
from streams.request.tally import IMAGES_PER_CHUNK, chunk_of, chunk_range

STOPPED = ("cancelled", "expired")  # images without a result will not get one
DEFAULT_LIMIT = 100
MAX_LIMIT = 1000

# Cassandra buckets of 1,000 images read per page when filtering by status; the cursor continues after them.
MAX_BUCKETS = 10

_SHOWN = [column.field for column in LISTED if column.field in Image.model_fields]

_INDEX: TypeAdapter[int] = TypeAdapter(Annotated[int, Field(ge=0, lt=2**31)])


async def list_images(request: web.Request) -> web.Response:
    """``GET /api/requests/{id}/images``: a page of images in CSV order, optionally filtered by ``?status=``."""
    limit = number_of(request, "limit", default=DEFAULT_LIMIT, maximum=MAX_LIMIT)
    wanted = choice_of(request, "status", get_args(ImageStatus))
    start = cursor_of(request, _INDEX) or 0
    status = await status_of(request)
    if status.forgotten:
        return json_response(ImagePage(items=[], next_cursor=None))
    with unavailable_on(CassandraUnavailableError, reason="cannot read the images: Cassandra is unavailable"):
        return json_response(await _page(request.app[CONTEXT], status, start, limit, wanted))


async def _page(context: Context, status: Status, start: int, limit: int, wanted: str | None) -> ImagePage:
    may_match = bucket_filter(wanted, context, status)
    items: list[Image] = []
    index, buckets_read = start, 0
    while index < status.total and len(items) < limit and buckets_read < MAX_BUCKETS:
        bucket, _ = chunk_of(index)
        end = chunk_range(bucket, status.total).stop
        if not may_match(bucket):
            index = end
            continue
        buckets_read += 1
        rows = await context.history.listed_images(
            status.request_id,
            bucket,
            start=index,
            limit=limit - len(items) if wanted is None else IMAGES_PER_CHUNK,
            retry_for=0,
        )
        while index < end and len(items) < limit:
            image = image_of(index, rows.get(index), status)
            if wanted in (None, image.status):
                items.append(image)
            index += 1
    return ImagePage(items=items, next_cursor=cursor_to(index) if index < status.total else None)


def bucket_filter(wanted: str | None, context: Context, status: Status) -> Callable[[int], bool]:
    """Predicate that skips buckets without failed images, using the counts of the progress view."""
    # A cancelled retry still shows the failures of the run before it, which the view doesn't count.
    if wanted != "failed" or status.status in STOPPED:
        return lambda _: True
    return lambda bucket: context.view.chunk_failed(status.request_id, bucket) != 0


def image_of(index: int, known: dict[str, Any] | None, status: Status) -> Image:
    """An image with its result from the history, or a pending or cancelled one without."""
    without_result = Image(index=index, status="cancelled" if status.status in STOPPED else "pending")
    if known is None:
        return without_result
    succeeded = known["output_path"] is not None
    if not succeeded and known["run"] < status.run and status.status == "processing":
        return without_result  # requested again in the current run
    hidden = {"output_url"} if status.status == "expired" else set()
    if succeeded:  # the row may still hold the reason of an earlier run beside the success
        hidden |= {"reason", "detail"}
    shown = {field: known[field] for field in _SHOWN if field not in hidden}
    return Image(index=index, status="succeeded" if succeeded else "failed", attempt=known["run"], **shown)


def routes() -> list[Route]:
    return [
        Route(
            "GET",
            "/api/requests/{request_id}/images",
            list_images,
            tag="Requests",
            summary="List the images of a request",
            description="The result of each image, in CSV order.",
            parameters=(
                Parameter("status", "query", ImageStatus, "only images with this status"),
                *page_parameters(max_limit=MAX_LIMIT),
            ),
            responses={HTTPStatus.OK: Response("A page of images", {"application/json": ImagePage})},
            problems=PAGE_PROBLEMS,
        )
    ]
