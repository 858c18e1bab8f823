"""Turns an uploaded spreadsheet into a CSV, in a process that can be killed."""

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import structlog

from api.http.problems import unavailable
from api.uploads.csv.dialect import CsvRejected, Dialect
from api.uploads.csv.header import ColumnMapping
from api.uploads.csv.problems import CsvProblem
from api.uploads.limiter import UploadLimiter
from api.uploads.receive import Received, no_room
from api.uploads.spreadsheet_process import OUT_OF_MEMORY
from infra.disk import free_bytes
from infra.settings import Settings
from infra.spool import spool_file
from streams.compress.decoders.sandbox import environment

logger = structlog.get_logger(__name__)

CPU_SECONDS = 30  # a million rows take some 7 s
MEMORY_BYTES = 512 * 1024 * 1024
WAIT_SECONDS = 120.0
"""Seconds for which an upload waits for its spreadsheet to be read, its turn included."""
MAX_ANSWER_BYTES = 64 * 1024

# XLSX and ODS are ZIP archives; XLS, and anything protected by a password, is a compound file of OLE.
SIGNATURES = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1")

DIALECT = Dialect("utf-8", ",", counts_rows=True)

# How a process ends that has used up its CPU seconds, or whose allocation failed (Rust aborts); within the sandbox
# abort(3) can't send its signal and ends in an illegal instruction.
_LIMIT_SIGNALS = frozenset({signal.SIGXCPU, signal.SIGABRT, signal.SIGSEGV, signal.SIGILL, signal.SIGBUS})


@asynccontextmanager
async def as_csv(
    received: Received, mapping: ColumnMapping, settings: Settings, uploads: UploadLimiter
) -> AsyncIterator[Received]:
    """The upload itself, or the CSV of its sheet, which is deleted on exit. Raises CsvRejected and Problem."""
    if not await asyncio.to_thread(_is_spreadsheet, received.path):
        yield received
        return
    room = max(0, await asyncio.to_thread(free_bytes, received.path.parent) - settings.min_free_bytes)
    with spool_file(received.path.parent, "sheet-") as file:
        limit = min(settings.max_upload_bytes, int(room))
        try:
            async with asyncio.timeout(WAIT_SECONDS), uploads.one_spreadsheet:
                answer = await _convert(received.path, file, limit, mapping)
        except TimeoutError:
            raise unavailable("cannot read the spreadsheet: too many others are being read") from None
        if "is_full" in answer and limit < settings.max_upload_bytes:
            raise no_room()
        if "is_full" in answer:
            raise CsvRejected.because(
                CsvProblem.SPREADSHEET_TOO_LARGE,
                f"the sheet has more than {settings.max_upload_bytes:,} bytes as CSV, the limit",
            )
        if "code" in answer:
            raise CsvRejected.because(CsvProblem(answer["code"]), answer["detail"])
        sheet = answer["sheet"] if answer["sheets"] > 1 else None
        yield replace(received, path=Path(file.name), dialect=DIALECT, sheet=sheet)


def _is_spreadsheet(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(8).startswith(SIGNATURES)


async def _convert(path: Path, to: BinaryIO, max_bytes: int, mapping: ColumnMapping) -> dict[str, Any]:
    """Write the sheet as CSV; returns the process's answer. Raises CsvRejected if it was stopped by a limit."""
    with path.open("rb") as source:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "api.uploads.spreadsheet_process"),
            *(str(CPU_SECONDS), str(MEMORY_BYTES), str(max_bytes), str(to.fileno()), json.dumps(dict(mapping))),
            stdin=source,
            stdout=asyncio.subprocess.PIPE,
            pass_fds=(to.fileno(),),
            env=environment({}),
        )
    try:
        assert process.stdout is not None
        output = await process.stdout.read(MAX_ANSWER_BYTES)
        code = await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if code == 0:
        answer: dict[str, Any] = json.loads(output)
        return answer
    if -code in _LIMIT_SIGNALS or code == OUT_OF_MEMORY:
        raise CsvRejected.because(
            CsvProblem.SPREADSHEET_TOO_LARGE,
            f"reading the spreadsheet takes more than {CPU_SECONDS} CPU seconds or {MEMORY_BYTES:,} bytes of memory:"
            " save it as CSV",
        )
    logger.error("reading spreadsheet failed", exit_code=code)
    raise unavailable("cannot read the spreadsheet: its reader was stopped")
