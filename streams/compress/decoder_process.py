"""The inside of a decoder process: ``python -m streams.compress.decoder_process PARENT_PID CPU MEMORY``.

Shrinks one image after another until its standard input ends. Both ways a message is one line of JSON, which
says how many bytes follow, and those bytes. It imports the codec and the standard library, nothing else.

The limits that the kernel keeps, whatever a hostile file makes of this process:

* memory: RLIMIT_DATA, all private writable memory. RLIMIT_AS would count shared libraries and address space
  that is only reserved. Linux (4.7 and later) enforces it; macOS accepts and ignores it.
* CPU: RLIMIT_CPU counts the whole life of a process, but its soft limit may be moved: before each image it is
  set to what was used so far plus the allowance. It is the second line behind the pool's clock, for the case
  that the parent itself is stopped or stalled.
* life: on Linux the process dies with the thread that started it (PR_SET_PDEATHSIG); elsewhere it ends after
  the image it is at, when its standard input ends.
"""

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

from streams.compress.outcome import ImageRejected, Reason, Shrunk
from streams.compress.shrink import OUTPUT_FORMATS, shrink

PR_SET_PDEATHSIG = 1  # linux/prctl.h
# Decoding yields to the event loop, the brokers and whatever else has to answer in time.
NICENESS = 5
ORPHANED = 3
OUT_OF_MEMORY: dict[str, object] = {
    "reason": Reason.DECODE_MEMORY,
    "detail": "needs more memory than a decoder may use",
}


def main() -> int:
    parent, cpu_seconds, memory_bytes = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    # Ctrl-C reaches every process of a terminal: the parent decides when decoding ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _die_with(parent)
    os.nice(NICENESS)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _warm_up()
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    requests = sys.stdin.buffer
    # What a library prints must not end up among the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    _answer(answers, {"ready": True})
    while line := requests.readline():
        request = json.loads(line)
        try:
            data = requests.read(request["bytes"])
        except MemoryError:
            _answer(answers, OUT_OF_MEMORY)
            return 1  # the rest of the image still stands in the pipe
        if len(data) < request["bytes"]:
            break
        # From here on, the death of this process is the fault of this image.
        _answer(answers, {"taken": True})
        _allow_cpu(cpu_seconds)
        try:
            result = shrink(
                data,
                quality=request["quality"],
                max_pixels=request["max_pixels"],
                target_format=request["target_format"],
            )
        except ImageRejected as rejection:
            _answer(answers, {"reason": rejection.reason, "detail": rejection.detail})
        except MemoryError:
            _answer(answers, OUT_OF_MEMORY)
        else:
            _answer_shrunk(answers, result)
    return 0


def _answer(answers: BinaryIO, header: dict[str, object], data: bytes = b"") -> None:
    answers.write(json.dumps(header).encode() + b"\n")
    answers.write(data)
    answers.flush()


def _answer_shrunk(answers: BinaryIO, result: Shrunk) -> None:
    # An original need not come back: the parent has it.
    data = b"" if result.kept_original else result.data
    header = {
        "format": result.format,
        "width": result.width,
        "height": result.height,
        "kept_original": result.kept_original,
        "bytes": len(data),
    }
    _answer(answers, header, data)


def _die_with(parent: int) -> None:
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before it could be asked for a signal
        sys.exit(ORPHANED)


def _allow_cpu(seconds: float) -> None:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    allowed = math.ceil(usage.ru_utime + usage.ru_stime + seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (allowed, resource.RLIM_INFINITY))


def _warm_up() -> None:
    """Load every decoder and encoder now, so that the first image does not wait for it."""
    for name in OUTPUT_FORMATS:
        buffer = io.BytesIO()
        Image.new("RGB", (16, 16), "white").save(buffer, name)
        shrink(buffer.getvalue(), max_pixels=256)


if __name__ == "__main__":
    sys.exit(main())
