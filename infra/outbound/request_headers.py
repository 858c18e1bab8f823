"""Headers that some hosts want of a download (the setting FETCH_HEADERS): User-Agent, Referer, Accept."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

from yarl import URL

from infra.outbound.addresses import _parse_host

NAMES = {"user-agent": "User-Agent", "referer": "Referer", "accept": "Accept"}

OWN_ORIGIN = "origin"
"""Value of Referer that stands for the origin of the image's own URL, as a page of that shop would send it."""

_VALUE = re.compile(r"[\x20-\x7e]{1,1000}")


@dataclass(frozen=True)
class RequestHeaders:
    """Host pattern → headers. A pattern is a host, ``.domain`` (it and its subdomains) or ``*``; the closest wins."""

    by_host: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a JSON object, such as ``{".shop.example": {"Referer": "origin"}}``.

        Raises ValueError, whose message names the malformed entry.
        """
        if not text.strip():
            return cls()
        try:
            entries = json.loads(text)
        except ValueError as error:
            raise ValueError(f"it is not JSON: {error}") from None
        if not isinstance(entries, dict):
            raise ValueError('it is no JSON object: write {"host": {"User-Agent": "…"}}')  # noqa: TRY004
        return cls({_parse_pattern(host): _parse_headers(host, headers) for host, headers in entries.items()})

    def of(self, url: URL) -> dict[str, str]:
        """The headers of a GET of this URL, by their usual names."""
        if not self.by_host:
            return {}
        host = (url.raw_host or "").removesuffix(".")
        labels = host.split(".")
        suffixes = ["." + ".".join(labels[start:]) for start in reversed(range(len(labels)))]
        headers: dict[str, str] = {}
        for pattern in ("*", *suffixes, host):
            headers |= self.by_host.get(pattern, {})
        if headers.get("Referer") == OWN_ORIGIN:
            headers["Referer"] = f"{url.scheme}://{url.host_port_subcomponent}/"
        return headers


def _parse_pattern(text: str) -> str:
    if text == "*":
        return text
    try:
        host = str(_parse_host(text.removeprefix("."))).removesuffix(".")
    except ValueError as error:
        raise ValueError(f"{text!r} is neither a host, a .domain nor *: {error}") from None
    return "." + host if text.startswith(".") else host


def _parse_headers(host: str, headers: object) -> dict[str, str]:
    if not isinstance(headers, dict):
        raise ValueError(f"the headers of {host!r} are no JSON object")  # noqa: TRY004
    parsed = {}
    for name, value in headers.items():
        if name.lower() not in NAMES:
            raise ValueError(f"header {name!r} of {host!r} is none of {', '.join(NAMES.values())}")
        if not isinstance(value, str) or not _VALUE.fullmatch(value):
            raise ValueError(f"the value of {name} of {host!r} is no text of 1 to 1,000 ASCII characters")
        parsed[NAMES[name.lower()]] = value
    return parsed
