"""The history's tables: each column is declared once, and gives the statements and the mapping of the API."""

from datetime import datetime

from infra.cassandra.insert import Column, Insert, columns


def month_of(time: datetime) -> int:
    """The month of a time in UTC, counted from January of year 0."""
    return time.year * 12 + time.month - 1


# images_by_request
_IMAGE_KEY = columns("request_id", image_index="index")
OF_RESULT = columns(
    "run", "position", "serial", "product_name", "input_url", "requested_at", row_number="row", settled_at="time"
)
OF_SUCCESS = columns(
    "output_url", "output_path", "input_bytes", "output_bytes", "format", "width", "height", "sha256",
    "kept_original", "milliseconds",
)  # fmt: skip
OF_FAILURE = columns("reason", "detail")
CELLS = Column("cells")

LISTED = (*OF_RESULT, *OF_SUCCESS, *OF_FAILURE)
"""What lists show of an image: without the cells of its CSV row, up to 64 KB."""
IMAGE = (*LISTED, CELLS)

INSERT_SUCCESS, INSERT_FAILURE = (
    Insert("images_by_request", (*_IMAGE_KEY, *OF_RESULT, CELLS, *own), ("bucket", "cells_bytes"))
    for own in (OF_SUCCESS, OF_FAILURE)
)

# images_by_product_month
_PRODUCT_IMAGE = columns("owner", "product_name", "requested_at", "request_id", "input_url", image_index="index")
INSERT_PRODUCT_SUCCESS, INSERT_PRODUCT_FAILURE = (
    Insert("images_by_product_month", (*_PRODUCT_IMAGE, *own), ("month", "part"))
    for own in (columns("output_url", "input_bytes", "output_bytes", "format"), columns("reason"))
)

# requests
_OF_REQUEST = columns("request_id", "owner", "total", "webhook_url")
_OF_SUMMARY = (*_OF_REQUEST, *columns("created_at", "succeeded", "failed", "input_bytes", "output_bytes"))
INSERT_CREATED = Insert("requests", (*_OF_REQUEST, *columns("header", created_at="time", updated_at="time")))
INSERT_COMPLETED = Insert(
    "requests",
    (*_OF_SUMMARY, *columns("run", "output_csv_url", "output_csv_path", completed_at="time", updated_at="time")),
)
INSERT_STOPPED = Insert("requests", _OF_SUMMARY)
INSERT_CANCELLED = Insert("requests", columns("request_id", cancelled_run="run", cancelled_at="time"))
INSERT_RETRIED = Insert("requests", columns("request_id", retried_run="run", retried_at="time"))
INSERT_EXPIRED = Insert("requests", columns("request_id", expired_at="time"))
INSERT_FORGOTTEN = Insert("requests", columns("request_id", expired_at="time", forgotten_at="time"))
ADD_DELIVERED = "UPDATE requests USING TIMESTAMP ? SET delivered_runs = delivered_runs + ? WHERE request_id = ?"
SET_WEBHOOK = "UPDATE requests USING TIMESTAMP ? SET webhook_states[?] = ? WHERE request_id = ?"

# sums_by_owner
SUMS = ("succeeded", "failed", "input_bytes", "output_bytes")
INSERT_SUMS = Insert("sums_by_owner", columns("owner", "request_id", *SUMS), ("day", "failures"))

# requests_by_owner, days_by_owner, months_by_owner
INSERT_OWNED = Insert(
    "requests_by_owner", columns("owner", "request_id", created_at="time"), ("day",), timestamped=False
)
INSERT_DAY = "INSERT INTO days_by_owner (owner, list, day) VALUES (?, 'requests', ?)"
INSERT_MONTH = "INSERT INTO months_by_owner (owner, list, month, part) VALUES (?, 'images', ?, ?)"
