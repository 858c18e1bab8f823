"""Options of an upload: webhook receiver and events, output format, quality and size, names of the CSV's columns."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self, get_args

from api.http.problems import Problem, ProblemCode
from api.uploads.csv.header import NO_MAPPING, ColumnMapping, parse_mapping
from infra.outbound.addresses import AllowList
from infra.outbound.reasons import ForbiddenUrl
from infra.outbound.urls import check_url
from infra.settings import Settings
from streams.events.base import MAX_SIDE, AnyQuality, ImageFormat, WebhookKind

FORMATS: tuple[ImageFormat, ...] = get_args(ImageFormat)
WEBHOOK_FIELDS = ("webhookUrl", "webhook_url")
WEBHOOK_EVENTS = "webhookEvents"
FIELDS = (*WEBHOOK_FIELDS, WEBHOOK_EVENTS, "format", "quality", "maxWidth", "maxHeight", "columns")
_QUALITY = re.compile(r"[0-9]{1,3}")
_SIDE = re.compile(r"[0-9]{1,5}")


@dataclass(frozen=True)
class UploadOptions:
    """``format`` None: keep the format of each input image; ``quality`` is 1 to 100, or ``auto``;
    ``max_width`` and ``max_height`` are in pixels, None: no limit.

    ``webhook_events``: sent in addition to ``request.completed``, which is always sent.
    """

    webhook_url: str | None
    webhook_events: tuple[WebhookKind, ...]
    quality: AnyQuality
    format: ImageFormat | None
    max_width: int | None
    max_height: int | None
    columns: ColumnMapping

    @classmethod
    def of(cls, fields: Mapping[str, Sequence[str]], settings: Settings, fetch_allow: AllowList) -> Self:
        """Parse form fields; the first value of a field wins, in columns that of a role.

        Raises Problem (422) for any invalid value.
        """
        urls = [_webhook_url(url, fetch_allow) for name in WEBHOOK_FIELDS for url in fields.get(name, ())]
        webhook_events = _webhook_events(fields.get(WEBHOOK_EVENTS, ()))
        qualities = [_quality(text) for text in fields.get("quality", ())]
        formats = [_format(text) for text in fields.get("format", ())]
        return cls(
            urls[0] if urls else settings.webhook_url,
            webhook_events,
            qualities[0] if qualities else settings.quality,
            formats[0] if formats else None,
            _max_side("maxWidth", fields, settings.max_width),
            _max_side("maxHeight", fields, settings.max_height),
            _columns(fields.get("columns", ())),
        )


def _webhook_url(url: str, fetch_allow: AllowList) -> str:
    try:
        check_url(url, fetch_allow)
    except ForbiddenUrl as error:
        raise Problem(ProblemCode.BAD_WEBHOOK_URL, f"invalid webhookUrl: {error.detail}") from None
    return url


def _webhook_events(given: Sequence[str]) -> tuple[WebhookKind, ...]:
    names = {name.strip() for name in ",".join(given).split(",")} - {""}
    if unknown := sorted(names - set(get_args(WebhookKind))):
        raise Problem(
            ProblemCode.BAD_WEBHOOK_EVENTS,
            f"unknown webhook event {unknown[0][:100]!r}: use {', '.join(get_args(WebhookKind))}",
        )
    return tuple(kind for kind in get_args(WebhookKind) if kind in names and kind != "request.completed")


def _quality(text: str) -> AnyQuality:
    if text.lower() == "auto":
        return "auto"
    if not _QUALITY.fullmatch(text) or not 1 <= int(text) <= 100:
        raise Problem(ProblemCode.BAD_QUALITY, "invalid quality: it must be an integer from 1 to 100, or auto")
    return int(text)


def _max_side(name: str, fields: Mapping[str, Sequence[str]], default: int) -> int | None:
    """A limit of a side; 0 is none, also where the settings have one."""
    given = fields.get(name, ())
    for text in given:
        if not _SIDE.fullmatch(text) or int(text) > MAX_SIDE:
            raise Problem(ProblemCode.BAD_SIZE, f"invalid {name}: it must be an integer from 0 to {MAX_SIDE}")
    return (int(given[0]) if given else default) or None


def _format(text: str) -> ImageFormat:
    name = text.lower()
    for known in FORMATS:
        if name == known or (name == "jpg" and known == "jpeg"):
            return known
    raise Problem(ProblemCode.BAD_FORMAT, f"invalid format: it must be one of {', '.join(FORMATS)}")


def _columns(given: Sequence[str]) -> ColumnMapping:
    mapping: ColumnMapping = NO_MAPPING
    try:
        for text in given:
            mapping = {**parse_mapping(text), **mapping}
    except ValueError as error:
        raise Problem(ProblemCode.BAD_COLUMNS, f"invalid columns: {error}") from None
    return mapping
