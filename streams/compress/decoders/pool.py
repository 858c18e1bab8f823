"""A pool of decoder processes, each of which can be killed at the cost of only the image it is decoding.

Why processes: a decoder may hang, crash or eat all memory, and Pillow holds the interpreter lock while it
encodes. Why not ``multiprocessing`` or a pool built on it: its children import the parent's main module, and
with it Faust; and they share one pipe and one lock, which a child killed at the wrong moment leaves broken.
Here each child is a plain ``subprocess`` with its own pipes, so its death closes only these.

Nothing of Pillow runs in this process. An image is sent to a decoder only when that decoder is idle, so no
more than ``processes`` images are ever decoded at once, in ``processes * memory_bytes`` at most; all others
wait in their callers, first come first served.

The bytes of images don't go through the pipes, whose 64 KB would wake both sides up at every fill, but through two
memory files of each decoder, which it inherits: one copy in, one copy out, whatever the size.
"""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from tempfile import TemporaryFile
from types import TracebackType
from typing import Any, BinaryIO, Literal, Self

import structlog
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from infra.cancellation import cancel_and_wait, run_in_background
from infra.observability import metrics
from infra.observability.process_usage import cpu_seconds, ended_children_seconds, resident_bytes
from streams.compress.codec.outcome import (
    MAX_DETAIL_LENGTH,
    NUMBER_BYTES,
    OUTPUT_FORMATS,
    ImageRejected,
    Reason,
    Shrunk,
)
from streams.compress.decoders import sandbox

__all__ = ["DecoderPool", "DecoderUnavailable", "ImageRejected", "Reason", "Shrunk"]

START_TIMEOUT = 30.0
# Copied without letting others run: about a millisecond. Also what an image file in memory may keep for the next one.
COPIED_AT_ONCE = 4 * 1024 * 1024
# Freed memory that a decoder keeps for its next image instead of giving it back to the kernel, which would have to
# clear it again: a quarter of the processor time of 3-megapixel photos went there. Pillow's blocks are of 16 MiB
# (Pillow's manual, "Block allocator"); the others are glibc's (mallopt(3)), and mean nothing elsewhere. libvips has
# one thread, because there is a decoder for each core.
KEPT_BYTES = 64 * 1024 * 1024
LIBRARY_SETTINGS = {
    "PILLOW_BLOCKS_MAX": str(KEPT_BYTES // (16 * 1024 * 1024)),
    "MALLOC_MMAP_THRESHOLD_": str(KEPT_BYTES),
    "MALLOC_TRIM_THRESHOLD_": str(KEPT_BYTES),
    "VIPS_CONCURRENCY": "1",
}
# A decoder that died while idle is noticed when it is next used; its successor may have died too, or be killed at work.
ATTEMPTS = 3
# Wall-clock limit of an image in multiples of its CPU limit: only a decoder that gets no CPU reaches it.
WALL_CLOCK_FACTOR = 10

OUT_OF_CPU = "used up its CPU time"
NONSENSE = "the decoder's answer is malformed"

logger = structlog.get_logger(__name__)


class _Answer(BaseModel):
    """A decoder's answer. It is validated, because a hostile image may have taken over the decoder."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class _Made(_Answer):
    format: str
    width: int = Field(ge=1)
    height: int = Field(ge=1)
    kept_original: bool
    quality: int | None = Field(ge=1, le=100)
    pages: int | None = Field(ge=1)
    truncated: bool
    bytes: int = Field(ge=0)
    decode_seconds: float = Field(ge=0)
    encode_seconds: float = Field(ge=0)


class _Rejected(_Answer):
    reason: Reason
    detail: str = Field(max_length=MAX_DETAIL_LENGTH)


_ANSWERS: TypeAdapter[_Made | _Rejected] = TypeAdapter(_Made | _Rejected)


class DecoderUnavailable(Exception):
    """No decoder could be started or got CPU time, or the pool is closed: says nothing about the image."""


class DecoderPool:
    """``async with DecoderPool(2, timeout=20, memory_bytes=2**30) as pool: await pool.shrink(data, ...)``

    ``timeout``: CPU seconds one image may take; WALL_CLOCK_FACTOR times as long by the clock.
    ``memory_bytes``: private memory of one decoder, its 30 MB of interpreter included.
    """

    def __init__(self, processes: int, timeout: float, memory_bytes: int) -> None:
        if processes < 1:
            raise ValueError("a pool needs a process")
        self._timeout = timeout
        self._decoders = [_Decoder(timeout, memory_bytes) for _ in range(processes)]
        # The one used last comes first: its code and memory are in the processor's caches, and the spare stays small.
        self._idle: asyncio.LifoQueue[_Decoder] = asyncio.LifoQueue()
        self._restarts: set[asyncio.Task[None]] = set()
        self._open = False
        self._waiting = 0

    async def __aenter__(self) -> Self:
        """Starts and warms up all decoders. Raises DecoderUnavailable."""
        sandbox.hide_memory()
        started = await asyncio.gather(*(one.start() for one in self._decoders), return_exceptions=True)
        for failure in started:
            if failure is not None:
                await self._stop_all()
                raise failure
        if missing := self._decoders[0].unprotected:
            logger.warning("decoders run without their whole sandbox", missing=missing)
        for decoder in self._decoders:
            self._idle.put_nowait(decoder)
        self._open = True
        metrics.DECODERS.read_from(self._by_state)
        metrics.DECODER_WAITING.read_from(lambda: self._waiting)
        metrics.DECODER_MEMORY.read_from(lambda: sum(map(resident_bytes, self.process_ids)))
        metrics.DECODER_CPU.read_from(lambda: ended_children_seconds() + sum(map(cpu_seconds, self.process_ids)))
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._open = False
        await cancel_and_wait(*self._restarts)
        await self._stop_all()

    @property
    def process_ids(self) -> tuple[int, ...]:
        """Of the decoders alive now."""
        return tuple(pid for decoder in self._decoders if (pid := decoder.pid) is not None)

    def _by_state(self) -> dict[tuple[str, ...], float]:
        alive = [decoder.alive for decoder in self._decoders]
        busy = sum(decoder.alive and decoder.busy for decoder in self._decoders)
        return {("busy",): busy, ("idle",): sum(alive) - busy, ("down",): len(alive) - sum(alive)}

    async def shrink(
        self,
        data: bytes,
        *,
        quality: int | Literal["auto"],
        max_pixels: int,
        target_format: str | None = None,
        max_width: int | None = None,
        max_height: int | None = None,
    ) -> Shrunk:
        """Shrink one image in a decoder process, as ``streams.compress.codec.shrink.shrink`` does.

        Waits for a decoder to be free, however long that takes; only then the time limit starts. Cancelling
        kills the decoder. An image whose decoder is killed from outside is tried once more: the kernel, short of
        memory, takes the largest process, whatever has made it short. An image whose decoder hangs, or runs out of wall
        clock but not of CPU time, is tried again by a fresh decoder, ATTEMPTS times in all; it is rejected if each of
        them hangs. Raises ImageRejected, with ``decode_timeout``, ``decode_hung``, ``decode_crashed`` and
        ``decode_memory`` on top of the codec's own reasons, and DecoderUnavailable.
        """
        request = {
            "bytes": len(data),
            "quality": quality,
            "max_pixels": max_pixels,
            "target_format": target_format,
            "max_width": max_width,
            "max_height": max_height,
        }
        killed, hung = False, 0
        for _ in range(ATTEMPTS):
            async with self._decoder() as decoder:
                try:
                    return await decoder.shrink(request, data)
                except _Hung:
                    hung += 1
                    logger.warning("decoder hangs", idle_seconds=self._timeout)
                except _Starved as starved:
                    logger.warning("image ran out of wall-clock time, not of CPU time", cpu_seconds=starved.used)
                    continue
                except _DiedBefore:
                    continue
                except _DiedAt as death:
                    if not self._open:
                        raise DecoderUnavailable("the pool was closed") from None
                    if death.killed and not killed:
                        killed = True
                        continue
                    raise ImageRejected(death.reason, str(death)) from None
        if hung == ATTEMPTS:
            raise ImageRejected(Reason.DECODE_HUNG, f"{ATTEMPTS} decoders in a row used no CPU for {self._timeout:g} s")
        raise DecoderUnavailable(
            f"{ATTEMPTS} decoders in a row died early or got too little CPU time; is the machine overloaded?"
        )

    @asynccontextmanager
    async def _decoder(self) -> AsyncIterator["_Decoder"]:
        """An idle decoder, alive; afterwards it goes back, or its successor does."""
        if not self._open:
            raise DecoderUnavailable("the pool is closed")
        self._waiting += 1
        try:
            decoder = await self._idle.get()
        finally:
            self._waiting -= 1
        try:
            if not self._open:
                raise DecoderUnavailable("the pool was closed")
            if not decoder.alive:
                metrics.DECODER_RESTARTS.inc()
                await decoder.stop()
                await decoder.start()
            decoder.busy = True
            yield decoder
        finally:
            if not self._open or (decoder.alive and not decoder.busy):
                # In a closed pool, too: each of those who still wait is woken by the one before.
                self._idle.put_nowait(decoder)
            else:
                restart = run_in_background(
                    self._restart(decoder), name="restart a decoder", on_failure=_note_failed_restart
                )
                self._restarts.add(restart)
                restart.add_done_callback(self._restarts.discard)
                restart.add_done_callback(lambda _: self._idle.put_nowait(decoder))  # also if it was cancelled

    async def _restart(self, decoder: "_Decoder") -> None:
        try:
            await decoder.stop()
            if self._open:
                metrics.DECODER_RESTARTS.inc()
                await decoder.start()
        except DecoderUnavailable:
            # Its next user starts it again, and gets the error if that fails, too.
            await decoder.stop()

    async def _stop_all(self) -> None:
        await asyncio.gather(*(decoder.stop() for decoder in self._decoders))


def _note_failed_restart(error: BaseException) -> None:
    logger.error("decoder not restarted", exc_info=error)


class _DiedBefore(Exception):
    """The decoder was dead before it had the whole image: not the image's fault."""


class _Hung(Exception):
    """The decoder waits, and uses no CPU time."""


class _Starved(Exception):
    """The wall-clock limit is over, the CPU limit isn't: the decoder got only ``used`` seconds of CPU time."""

    def __init__(self, used: float) -> None:
        super().__init__(used)
        self.used = round(used, 2)


class _DiedAt(Exception):
    """The decoder died at this image. ``killed``: by another process; the pool kills none that a caller waits for."""

    def __init__(self, reason: Reason, text: str, *, killed: bool = False) -> None:
        super().__init__(text)
        self.reason = reason
        self.killed = killed


class _Decoder:
    """A decoder of the pool: a child process, which is replaced when it has died."""

    def __init__(self, cpu_seconds: float, memory_bytes: int) -> None:
        self._arguments = (str(os.getpid()), str(cpu_seconds), str(memory_bytes))
        self._timeout = cpu_seconds
        self._process: asyncio.subprocess.Process | None = None
        self._images: _ImageFiles | None = None
        # Layers of the sandbox that the kernel lacks.
        self.unprotected: list[str] = []
        # From the first byte of a request to the last of its answer: in between, the pipes are of no use to others.
        self.busy = False

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.returncode is None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None and self.alive else None

    @property
    def cpu_seconds(self) -> float:
        """CPU time of the process that runs now, 0 where that isn't known."""
        return cpu_seconds(self.pid) if self.pid is not None else 0.0

    async def start(self) -> None:
        self.busy = True
        try:
            # New files for each process: a killed one may still have the old ones open.
            self._images = _ImageFiles()
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "streams.compress.decoders.process",
                *self._arguments,
                *map(str, self._images.descriptors),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                pass_fds=self._images.descriptors,
                env=sandbox.environment(LIBRARY_SETTINGS),
            )
            async with asyncio.timeout(START_TIMEOUT):
                ready = await _stream(self._process.stdout).readline()
        except (OSError, TimeoutError) as error:
            await self.stop()
            raise DecoderUnavailable(f"a decoder did not start: {error!r}") from error
        if not ready:
            await self.stop()
            raise DecoderUnavailable("a decoder ended while it started; its error is on standard error")
        self.unprotected = json.loads(ready)["missing"]
        self.busy = False

    async def stop(self) -> None:
        self._images = None  # closed when the last user of them is done
        if self._process is None:
            return
        if self.alive:
            with suppress(ProcessLookupError):
                self._process.kill()
        await self._process.wait()
        self._process = None

    async def shrink(self, request: dict[str, Any], data: bytes) -> Shrunk:
        process, images = self._process, self._images
        if process is None or process.stdin is None or images is None:
            raise _DiedBefore
        await images.put(data)
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            await process.stdin.drain()
        except (BrokenPipeError, ConnectionResetError):
            raise _DiedBefore from None
        line = await self._answer(process)
        if not line.endswith(b"\n"):
            if images.started != images.sent:
                raise _DiedBefore
            raise await self._death(process)
        try:
            answer = _ANSWERS.validate_json(line)
        except ValidationError:
            raise _DiedAt(Reason.DECODE_CRASHED, NONSENSE) from None
        if isinstance(answer, _Rejected):
            self.busy = False
            raise ImageRejected(answer.reason, answer.detail)
        body = data if answer.kept_original else await images.take(answer.bytes)
        expected = (request["target_format"],) if request["target_format"] else OUTPUT_FORMATS
        if answer.format not in expected or (not answer.kept_original and len(body) != answer.bytes):
            raise _DiedAt(Reason.DECODE_CRASHED, NONSENSE)
        self.busy = False
        return Shrunk(body, **answer.model_dump(exclude={"bytes"}))

    async def _answer(self, process: asyncio.subprocess.Process) -> bytes:
        """The next line of the decoder; without its end if the decoder died, which it has done by then.

        A decoder without any CPU time for as long as an image may use waits for something that never comes: an
        overloaded machine gives each process some. Before the next attempt a fresh decoder shrinks images of ours.
        It waits in the caller's task: the decoder is idle during each turn of the event loop until its next image.
        """
        used_before = used = self.cpu_seconds
        for _ in range(WALL_CLOCK_FACTOR):
            with suppress(TimeoutError):
                async with asyncio.timeout(self._timeout):
                    line = await _line(process)
                    if not line.endswith(b"\n"):
                        await process.wait()
                    return line
            if self.cpu_seconds == used:
                raise _Hung
            used = self.cpu_seconds
        if used - used_before >= self._timeout:  # it has moved its own limit
            raise ImageRejected(Reason.DECODE_TIMEOUT, OUT_OF_CPU)
        raise _Starved(used - used_before)

    @staticmethod
    async def _death(process: asyncio.subprocess.Process) -> _DiedAt:
        code = await process.wait()
        if code == -signal.SIGXCPU:
            return _DiedAt(Reason.DECODE_TIMEOUT, OUT_OF_CPU)
        killed = code == -signal.SIGKILL
        return _DiedAt(Reason.DECODE_CRASHED, f"the decoder ended with {_exit_name(code)}", killed=killed)


async def _line(process: asyncio.subprocess.Process) -> bytes:
    """The next line of a decoder, without its end if the decoder died. Raises _DiedAt if it is too long."""
    try:
        return await _stream(process.stdout).readline()
    except ValueError:
        raise _DiedAt(Reason.DECODE_CRASHED, NONSENSE) from None


class _ImageFiles:
    """The two files through which images go to a decoder and come back: in memory, without a name, used again."""

    def __init__(self) -> None:
        self._to_decoder, self._from_decoder = _memory_file(), _memory_file()
        self.sent = 0

    @property
    def started(self) -> int:
        """The number of the image that the decoder has started last."""
        return int.from_bytes(os.pread(self._from_decoder.fileno(), NUMBER_BYTES, 0))

    @property
    def descriptors(self) -> tuple[int, int]:
        return self._to_decoder.fileno(), self._from_decoder.fileno()

    def __del__(self) -> None:
        self._to_decoder.close()
        self._from_decoder.close()

    async def put(self, data: bytes) -> None:
        """Write ``data`` at the start. Older bytes behind it are kept up to a bound: their pages are reused."""
        for file in (self._to_decoder, self._from_decoder):
            if os.fstat(file.fileno()).st_size > COPIED_AT_ONCE:
                file.truncate(0)
        self.sent += 1
        rest = memoryview(data)
        while True:
            rest = rest[os.pwrite(self._to_decoder.fileno(), rest[:COPIED_AT_ONCE], len(data) - len(rest)) :]
            if not rest:
                return
            await asyncio.sleep(0)

    async def take(self, size: int) -> bytes:
        """The ``size`` bytes that the decoder has written."""
        parts = []
        for start in range(0, size, COPIED_AT_ONCE):
            if start:
                await asyncio.sleep(0)
            parts.append(os.pread(self._from_decoder.fileno(), min(COPIED_AT_ONCE, size - start), NUMBER_BYTES + start))
        return b"".join(parts)  # of one part: that part itself


def _memory_file() -> BinaryIO:
    if sys.platform == "linux":
        return os.fdopen(os.memfd_create("image"), "w+b", buffering=0)
    return TemporaryFile(buffering=0)


def _exit_name(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit status {code}"


def _stream(reader: asyncio.StreamReader | None) -> asyncio.StreamReader:
    if reader is None:
        raise DecoderUnavailable("a decoder has no pipe")
    return reader
