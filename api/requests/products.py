"""Product history: all image results of a product name, newest first."""

from http import HTTPStatus
from typing import Annotated, Any

from aiohttp import web
from pydantic import Field, TypeAdapter

from api.context import CONTEXT
from api.contract.models import ProductHistoryPage, ProductImage
from api.contract.routes import Parameter, Response, Route
from api.http.api_keys import OWNER
from api.http.paging import PAGE_PROBLEMS, cursor_of, cursor_to, json_response, number_of, page_parameters
from api.http.problems import unavailable_on
from infra.cassandra.session import CassandraUnavailableError, utc
from streams.events.base import Time
from streams.projections.history.queries import NEWEST_IMAGE, ProductCursor

DEFAULT_LIMIT = 100
MAX_LIMIT = 1000

_Index = Annotated[int, Field(ge=0, lt=2**31)]
_CURSOR: TypeAdapter[tuple[Time, str, int]] = TypeAdapter(tuple[Time, str, _Index])


async def product_history(request: web.Request) -> web.Response:
    """``GET /api/products/{name}/history``: a page of images, newest first; empty for an unknown product."""
    limit = number_of(request, "limit", default=DEFAULT_LIMIT, maximum=MAX_LIMIT)
    cursor = cursor_of(request, _CURSOR)
    before = ProductCursor(*cursor) if cursor else NEWEST_IMAGE
    with unavailable_on(CassandraUnavailableError, reason="cannot read the product history: Cassandra is unavailable"):
        rows, following = await request.app[CONTEXT].history.product_images(
            request[OWNER], request.match_info["name"], before, limit
        )
    return json_response(
        ProductHistoryPage(
            items=[_image_of(row) for row in rows], next_cursor=cursor_to(tuple(following)) if following else None
        )
    )


def _image_of(row: Any) -> ProductImage:
    return ProductImage(
        request_id=row.request_id,
        index=row.image_index,
        requested_at=utc(row.requested_at),
        status="succeeded" if row.output_url else "failed",
        input_url=row.input_url,
        output_url=row.output_url,
        reason=None if row.output_url else row.reason,
        input_bytes=row.input_bytes,
        output_bytes=row.output_bytes,
        format=row.format,
    )


def routes() -> list[Route]:
    return [
        Route(
            "GET",
            "/api/products/{name}/history",
            product_history,
            tag="Products",
            summary="List the images of a product",
            description="All results of the product's images over all requests, newest first.",
            parameters=(
                Parameter("name", "path", str, "the product name of the CSV", "Shoe"),
                *page_parameters(max_limit=MAX_LIMIT),
            ),
            responses={HTTPStatus.OK: Response("A page of images", {"application/json": ProductHistoryPage})},
            problems=PAGE_PROBLEMS,
        )
    ]
