"""Logging: one line per thing that matters, JSON for machines, readable on a terminal."""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

REPEATS_EVERY = 10.0  # seconds


class LogSubject(Protocol):
    """What lines may be about."""

    def log_fields(self) -> dict[str, str]:
        """What each line says of it."""


_subject: ContextVar[LogSubject | None] = ContextVar("log_subject", default=None)


def log_about(subject: LogSubject | None) -> None:
    """Say in each line of the current task, from here on, what it is about.

    For what is rarely logged about far cheaper than structlog's bind_contextvars: nothing is worked out before a line
    is written.
    """
    _subject.set(subject)


def _add_subject(_: WrappedLogger, __: str, line: EventDict) -> EventDict:
    subject = _subject.get()
    return line if subject is None else {**subject.log_fields(), **line}


class NoRepeats(logging.Filter):
    """Lets the same message of a logger through once in ten seconds.

    aiokafka's idempotent producer asks for a broker that is away without a pause, and logs each attempt.
    """

    def __init__(self) -> None:
        super().__init__()
        self._last: dict[tuple[str, str], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        message, now = (record.name, record.getMessage()), time.monotonic()
        if now - self._last.get(message, -REPEATS_EVERY) < REPEATS_EVERY:
            return False
        if len(self._last) > 1000:
            self._last.clear()
        self._last[message] = now
        return True


def configure_logging(level: str) -> None:
    """Send our own and the libraries' log records to standard error in one form."""
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
                structlog.dev.ConsoleRenderer() if terminal else structlog.processors.JSONRenderer(),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    # The libraries' news is not ours: what goes wrong in them is.
    for name in ("aiokafka", "cassandra", "faust", "mode", "kafka", "asyncio"):
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    logging.getLogger("aiokafka").addFilter(NoRepeats())
    # It warns of every prepared statement that leaves the keyspace to the connection, as ours do on purpose.
    logging.getLogger("cassandra.protocol").setLevel(logging.ERROR)


class _Collector(logging.Handler):
    """Keeps what is said instead of telling it."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


@contextmanager
def silenced(library: str) -> Iterator[list[str]]:
    """Keep a library quiet about a failure that is raised as well, and told once, by whoever catches it.

    Yields what it would have said, as some name the cause only there. May be used by several tasks at once.
    """
    logger = logging.getLogger(library)
    collector = _Collector()
    logger.addHandler(collector)
    logger.propagate = False
    try:
        yield collector.said
    finally:
        logger.removeHandler(collector)
        logger.propagate = not any(isinstance(handler, _Collector) for handler in logger.handlers)
