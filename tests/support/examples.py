"""Events of an example request, for the tests that need some: every detail is given, none comes from a clock."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from streams.events.images import ImageFailed, ImageProcessed, ImageRequested
from streams.events.requests import OutputCsvRequested, RequestCompleted, RequestCreated

REQUEST_ID = "5f0c7a52-7c5e-4d0e-9b5e-2f6a1c3d4e5f"
NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
HEADER = ("S. No.", "Product Name", "Input Image URLs")


def created(request_id: str = REQUEST_ID, *, total: int = 1, rows: int = 1, **fields: Any) -> RequestCreated:
    return RequestCreated(
        **{
            "request_id": request_id,
            "time": NOON,
            "total": total,
            "rows": rows,
            "header": HEADER,
            "body_sha256": "0" * 64,
            **fields,
        }
    )


def requested(request_id: str = REQUEST_ID, index: int = 0, **fields: Any) -> ImageRequested:
    """An image in a row of its own, unless ``fields`` say otherwise; a later run is an hour later."""
    return ImageRequested(
        **{
            "request_id": request_id,
            "index": index,
            "time": NOON + timedelta(hours=fields.get("run", 0)),
            "row": index,
            "position": 0,
            "serial": str(index + 1),
            "product_name": f"Shoe {index}",
            "input_url": f"https://shop.example/{index}.jpg",
            "cells": (str(index + 1), f"Shoe {index}", f"https://shop.example/{index}.jpg"),
            **fields,
        }
    )


def processed(request: ImageRequested, *, input_bytes: int = 1000, output_bytes: int = 400) -> ImageProcessed:
    return ImageProcessed.of(
        request,
        time=request.time + timedelta(seconds=request.index + 1),
        output_url=f"https://cdn.example/{request.index}.jpg",
        output_path=f"images/{request.index}.jpg",
        input_bytes=input_bytes,
        output_bytes=output_bytes,
        format="jpeg",
        width=640,
        height=480,
        sha256="1" * 64,
        fetch_ms=30,
        shrink_ms=20,
        store_ms=1,
    )


def failed(request: ImageRequested, reason: str = "fetch_http_404") -> ImageFailed:
    return ImageFailed.of(
        request,
        time=request.time + timedelta(seconds=request.index + 1),
        reason=reason,
        detail="the server says that there is no such file",
    )


def output_requested(results: Sequence[ImageProcessed | ImageFailed], **fields: Any) -> OutputCsvRequested:
    """What the progress app writes once every image has its result."""
    done = [result for result in results if isinstance(result, ImageProcessed)]
    return OutputCsvRequested(
        **{
            "request_id": results[0].request_id,
            "time": max(result.time for result in results),
            "total": len(results),
            "succeeded": len(done),
            "failed": len(results) - len(done),
            "input_bytes": sum(result.input_bytes for result in done),
            "output_bytes": sum(result.output_bytes for result in done),
            "created_at": NOON,
            **fields,
        }
    )


def completed(request_id: str = REQUEST_ID, **fields: Any) -> RequestCompleted:
    return RequestCompleted(
        **{
            "request_id": request_id,
            "time": NOON + timedelta(minutes=1),
            "total": 3,
            "succeeded": 2,
            "failed": 1,
            "input_bytes": 2000,
            "output_bytes": 800,
            "created_at": NOON,
            "output_csv_url": f"https://shrink.example/api/download/{request_id}",
            "output_csv_path": f"csv/{request_id}/0.csv",
            **fields,
        }
    )
