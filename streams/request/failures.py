"""The reasons why images fail, in words, and what to do about each: for docs, API, command line and page alike."""

import re
from typing import NamedTuple

HTTP_REASON = re.compile(r"fetch_http_([1-5]\d\d)")


class Failure(NamedTuple):
    """A reason in words, and what its reader can do about it."""

    title: str
    advice: str


_LATER = "Retry this reason later: the host's trouble may be over"
_EXPORT = "Export the image again, or upload another file"

FAILURES: dict[str, Failure] = {
    "fetch_bad_url": Failure("malformed URL", "Correct the URL in the CSV and upload it again"),
    "fetch_forbidden_scheme": Failure("URL that is not http(s)", "Use http or https URLs"),
    "fetch_forbidden_port": Failure(
        "forbidden port", "Use port 80 or 443, or allow the port: SHRINKSTREAM_FETCH_ALLOW"
    ),
    "fetch_forbidden_address": Failure(
        "private address", "Use a public address, or allow the host: SHRINKSTREAM_FETCH_ALLOW"
    ),
    "fetch_dns_failed": Failure("unknown host", "Check the host's name in the URL; if it is right, retry later"),
    "fetch_connect_failed": Failure("no connection", _LATER),
    "fetch_tls_failed": Failure("no valid certificate", "The host must renew its certificate; retry this reason then"),
    "fetch_timeout": Failure("time-out", _LATER),
    "fetch_host_unavailable": Failure("host that stopped responding", _LATER),
    "fetch_too_many_redirects": Failure("too many redirects", "Use the URL that the redirects should end at"),
    "fetch_incomplete": Failure("incomplete download", _LATER),
    "fetch_bad_encoding": Failure("unreadable encoding", "The host must send the image without br or zstd"),
    "fetch_bad_response": Failure("broken HTTP response", "Check the URL in a browser; its host answers wrongly"),
    "fetch_empty": Failure("empty response", "Check the URL in a browser; its host sends no image"),
    "fetch_http_403": Failure(
        "403", "The host forbids downloads: ask it to allow them, or send what it expects: SHRINKSTREAM_FETCH_HEADERS"
    ),
    "fetch_http_404": Failure("404", "There is no image at the URL: correct it in the CSV and upload it again"),
    "fetch_http_429": Failure("429", "The host limits downloads: retry this reason later"),
    "too_large": Failure("file too large", "Use a smaller file, or raise SHRINKSTREAM_MAX_IMAGE_BYTES"),
    "not_an_image": Failure("not an image", "Check the URL in a browser: it must lead to the image itself"),
    "web_page": Failure("not an image: a web page", "Use the image's own URL, not a share link or the page around it"),
    "unsupported_format": Failure("unsupported format", "Convert the image to JPEG, PNG or WebP"),
    "truncated_image": Failure("incomplete file", _EXPORT),
    "broken_image": Failure("damaged file", _EXPORT),
    "too_many_pixels": Failure("too many pixels", "Use a smaller image, or raise SHRINKSTREAM_MAX_IMAGE_PIXELS"),
    "too_many_frames": Failure("too many frames", "Use a shorter animation"),
    "cannot_encode": Failure("output format can't represent it", "Choose another format, or a largest size"),
    "decode_timeout": Failure("too costly to decode", _EXPORT),
    "decode_hung": Failure("hanging decoder", _EXPORT),
    "decode_crashed": Failure("decoder crash", _EXPORT),
    "decode_memory": Failure("too much memory to decode", "Use a smaller image, or raise SHRINKSTREAM_CODEC_MEMORY"),
    "lost": Failure("no result", "Retry this reason; if it comes again, look at the workers' logs"),
}


def is_reason(text: str) -> bool:
    """Whether an image can fail for this reason."""
    return text in FAILURES or HTTP_REASON.fullmatch(text) is not None


def failure_of(reason: str) -> Failure:
    """The words for a reason; also for a code of a later release."""
    if known := FAILURES.get(reason):
        return known
    if found := HTTP_REASON.fullmatch(reason):
        advice = _LATER if found[1] >= "500" else "Check the URL in a browser: the host refuses it"
        return Failure(found[1], advice)
    return Failure(reason, "See the reason's code in docs/limits-and-reasons.md")
