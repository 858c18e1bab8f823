"""Structured logging: JSON lines, or a readable form on a terminal; secrets are redacted."""

import io
import logging
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol, TextIO

import structlog
from structlog.typing import EventDict, ExcInfo, Processor, WrappedLogger

REPEATS_EVERY = 60.0  # seconds

# A URL's user and password, and its query and fragment, which may have keys and signatures.
_URL = re.compile(r"\b([a-zA-Z][a-zA-Z0-9+.-]{0,20}://)(?:[^\s/?#@]*@)?([^\s?#]*)([?#]\S*)?")
_SECRET = re.compile(r"(whsec_|(?i:\bauthorization\W{1,4}(?:bearer|basic)\s+))[A-Za-z0-9._~+/=-]+")


def redacted(text: str) -> str:
    """The text without secrets: passwords and queries of URLs, webhook secrets, credentials."""
    return _SECRET.sub(r"\1…", _URL.sub(_without_secrets, text))


def _without_secrets(url: re.Match[str]) -> str:
    return f"{url[1]}{url[2]}{url[3][0] + '…' if url[3] else ''}"


def _redact(_: WrappedLogger, __: str, line: EventDict) -> EventDict:
    return {key: _redacted_value(value) for key, value in line.items()}


def _redacted_value(value: Any) -> Any:
    match value:
        case str():
            return redacted(value)
        case dict():
            return {key: _redacted_value(entry) for key, entry in value.items()}
        case list() | tuple():
            return [_redacted_value(entry) for entry in value]
        case BaseException():
            return redacted(repr(value))
        case _:
            return value


def _redacted_traceback(to: TextIO, error: ExcInfo) -> None:
    plain = io.StringIO()
    structlog.dev.plain_traceback(plain, error)
    to.write(redacted(plain.getvalue()))


class LogSubject(Protocol):
    """The subject of log lines, such as an event."""

    def log_fields(self) -> dict[str, str]:
        """Fields that each line about it has."""


_subject: ContextVar[LogSubject | None] = ContextVar("log_subject", default=None)


def log_about(subject: LogSubject | None) -> None:
    """Add the subject's fields to each later log line of the current task.

    Far cheaper than structlog's bind_contextvars for subjects that are rarely logged: the fields are computed only
    when a line is written.
    """
    _subject.set(subject)


def _add_subject(_: WrappedLogger, __: str, line: EventDict) -> EventDict:
    subject = _subject.get()
    if subject is None:
        return line
    fields = subject.log_fields()
    # A line about another request must not have the ids of the current one.
    if line.get("request_id", fields.get("request_id")) != fields.get("request_id"):
        return line
    return {**fields, **line}


class NoRepeats(logging.Filter):
    """Rate limit of a library's log lines: passes the same message of a logger once a minute.

    aiokafka polls an unreachable broker without backoff, and logs each attempt; what differs between two of them, such
    as a number, doesn't make another message. For a handler: a logger's filters don't apply to its children.
    """

    def __init__(self, library: str) -> None:
        super().__init__()
        self._library = logging.Filter(library)
        self._last: dict[tuple[str, str], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if not self._library.filter(record):
            return True
        message, now = (record.name, str(record.msg)), time.monotonic()
        if now - self._last.get(message, -REPEATS_EVERY) < REPEATS_EVERY:
            return False
        if len(self._last) > 1000:
            self._last.clear()
        self._last[message] = now
        return True


def configure_logging(level: str) -> None:
    """Send our own and the libraries' log lines to standard error in one format."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        _add_subject,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    terminal = sys.stderr.isatty()
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *([] if terminal else [structlog.processors.format_exc_info]),
                _redact,
                structlog.dev.ConsoleRenderer(exception_formatter=_redacted_traceback)
                if terminal
                else structlog.processors.JSONRenderer(),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    # Only warnings and errors of the libraries.
    for name in ("aiokafka", "cassandra", "faust", "mode", "kafka", "asyncio"):
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    handler.addFilter(NoRepeats("aiokafka"))
    # It warns of every prepared statement without a keyspace; ours have none on purpose.
    logging.getLogger("cassandra.protocol").setLevel(logging.ERROR)


class _Collector(logging.Handler):
    """Collects messages instead of writing them."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@contextmanager
def silenced(library: str) -> Iterator[list[str]]:
    """Suppress a library's log lines about a failure that it also raises, so that the caller reports it once.

    Yields the suppressed messages: some libraries name the cause only there. Safe for concurrent tasks.
    """
    logger = logging.getLogger(library)
    collector = _Collector()
    logger.addHandler(collector)
    logger.propagate = False
    try:
        yield collector.messages
    finally:
        logger.removeHandler(collector)
        logger.propagate = not any(isinstance(handler, _Collector) for handler in logger.handlers)
