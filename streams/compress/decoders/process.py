"""The main program of a decoder process: ``python -m streams.compress.decoders.process PARENT_PID CPU MEMORY IN OUT``.

Shrinks one image after another until its standard input ends. Both ways a message is one line of JSON, which
says how many bytes there are in a file: IN and OUT are the descriptors, inherited, of the files for images that
come and go. OUT begins with the number of the image, from 1, that the process has begun with. It imports the
codec and the standard library, nothing else.

The kernel enforces limits, even if a hostile file takes over this process:

* memory: RLIMIT_DATA, all private writable memory. RLIMIT_AS would count shared libraries and address space
  that is only reserved. Linux (4.7 and later) enforces it; macOS accepts and ignores it.
* files: RLIMIT_FSIZE as large as the memory; for the file OUT lies in memory, too.
* CPU: RLIMIT_CPU counts the whole life of a process, but its soft limit may be moved: before each image it is
  set to the time used so far plus the allowance. The pool's clock only catches a decoder that waits without using any.
* life: on Linux the process dies with the thread that started it (PR_SET_PDEATHSIG); elsewhere it ends after
  the image it is at, when its standard input ends.
* everything else: ``sandbox``, entered before the first image.
"""

import codecs
import ctypes
import io
import json
import math
import os
import resource
import signal
import sys
from typing import BinaryIO

from PIL import Image

from streams.compress.codec.outcome import (
    MAX_DETAIL_LENGTH,
    NUMBER_BYTES,
    OUTPUT_FORMATS,
    ImageRejected,
    Reason,
    Shrunk,
)
from streams.compress.codec.shrink import shrink
from streams.compress.decoders import sandbox

PR_SET_PDEATHSIG = 1  # linux/prctl.h
ORPHANED = 3
OUT_OF_MEMORY: dict[str, object] = {
    "reason": Reason.DECODE_MEMORY,
    "detail": "needs more memory than a decoder may use",
}


def main() -> int:
    parent, cpu_seconds, memory_bytes = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    images_in, images_out = int(sys.argv[4]), int(sys.argv[5])
    # Ctrl-C reaches every process of a terminal, and systemd's SIGTERM every process of a service: the parent drains
    # the in-flight images before it ends this process.
    for stop_signal in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop_signal, signal.SIG_IGN)
    _die_with(parent)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _warm_up()
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_FSIZE, (memory_bytes, memory_bytes))
    requests = sys.stdin.buffer
    # Output of libraries must not end up among the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    _answer(answers, {"missing": sandbox.enter()})
    for number, line in enumerate(iter(requests.readline, b""), 1):
        request = json.loads(line)
        # From here on, the death of this process is the fault of this image. Said in the file, because a message
        # would wake up the parent.
        _write(images_out, number.to_bytes(NUMBER_BYTES), at=0)
        _allow_cpu(cpu_seconds)
        try:
            result = shrink(
                _read(images_in, request["bytes"]),
                quality=request["quality"],
                max_pixels=request["max_pixels"],
                target_format=request["target_format"],
                max_width=request["max_width"],
                max_height=request["max_height"],
            )
        except ImageRejected as rejection:
            _answer(answers, {"reason": rejection.reason, "detail": rejection.detail[:MAX_DETAIL_LENGTH]})
        except MemoryError:
            _answer(answers, OUT_OF_MEMORY)
        else:
            # An original need not come back: the parent has it.
            data = b"" if result.kept_original else result.data
            _write(images_out, data, at=NUMBER_BYTES)
            _answer_shrunk(answers, result, len(data))
    return 0


def _read(descriptor: int, size: int) -> bytes:
    data = os.pread(descriptor, size, 0)
    assert len(data) == size, "the parent writes an image before its request"
    return data


def _write(descriptor: int, data: bytes, *, at: int) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.pwrite(descriptor, rest, at + len(data) - len(rest)) :]


def _answer(answers: BinaryIO, answer: dict[str, object]) -> None:
    answers.write(json.dumps(answer).encode() + b"\n")
    answers.flush()


def _answer_shrunk(answers: BinaryIO, result: Shrunk, size: int) -> None:
    header: dict[str, object] = {
        "format": result.format,
        "width": result.width,
        "height": result.height,
        "kept_original": result.kept_original,
        "quality": result.quality,
        "pages": result.pages,
        "truncated": result.truncated,
        "bytes": size,
        "decode_seconds": result.decode_seconds,
        "encode_seconds": result.encode_seconds,
    }
    _answer(answers, header)


def _die_with(parent: int) -> None:
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before prctl
        sys.exit(ORPHANED)


def _allow_cpu(seconds: float) -> None:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    allowed = math.ceil(usage.ru_utime + usage.ru_stime + seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (allowed, resource.RLIM_INFINITY))


def _warm_up() -> None:
    """Load everything now: within the sandbox there are no files, and the first image should not wait for it."""
    for encoding in ("utf-16", "latin-1"):
        codecs.lookup(encoding)  # Python loads these at their first use
    ramp = Image.linear_gradient("L").resize((32, 32))
    picture = Image.merge("RGB", (ramp, ramp.rotate(90), ramp))  # of so many colours that a PNG is quantised
    for name in OUTPUT_FORMATS:
        buffer = io.BytesIO()
        picture.save(buffer, name)
        shrink(buffer.getvalue(), quality="auto", max_pixels=32 * 32)


if __name__ == "__main__":
    sys.exit(main())
