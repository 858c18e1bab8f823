"""The pool keeps its promises while its decoders are attacked, killed and starved. Real processes throughout."""

import asyncio
import contextlib
import ctypes
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import structlog
from PIL import Image

from infra.observability.process_usage import cpu_seconds
from streams.compress.codec.shrink import shrink
from streams.compress.decoders import pool as pools
from streams.compress.decoders import sandbox
from streams.compress.decoders.pool import DecoderPool, DecoderUnavailable, ImageRejected, Reason, Shrunk
from tests.support.images import endless_jpeg, jpeg

LIMIT = 100_000_000
MEMORY = 1024**3
GET_DUMPABLE = 3  # linux/prctl.h
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="limits and signals of Linux")


@contextlib.asynccontextmanager
async def decoding(timeout: float = 20, memory: int = MEMORY, decoders: int = 2) -> AsyncIterator[DecoderPool]:
    """A pool of decoders, each of which takes half a second to start; none of them may outlive the pool."""
    async with DecoderPool(decoders, timeout, memory) as pool:
        yield pool
        last = pool.process_ids
    assert not any(alive(pid) for pid in last)


def alive(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


async def shrunk(pool: DecoderPool, data: bytes) -> Shrunk:
    return await pool.shrink(data, quality=50, max_pixels=LIMIT)


async def reason(pool: DecoderPool, data: bytes) -> Reason:
    with pytest.raises(ImageRejected) as caught:
        await shrunk(pool, data)
    return caught.value.reason


async def busy_decoder(pool: DecoderPool) -> int:
    """The decoder that has used processor time since it was asked for, once there is one."""

    def ticks(pid: int) -> int:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11])

    before = {pid: ticks(pid) for pid in pool.process_ids}
    async with asyncio.timeout(60):
        while True:
            await asyncio.sleep(0.05)
            for pid, used in before.items():
                if ticks(pid) > used + 20:
                    return pid


async def all_decoders(pool: DecoderPool, count: int = 2, *, but: int | None = None) -> None:
    """Wait until ``count`` decoders run, among them not ``but``."""
    async with asyncio.timeout(60):
        while len(pool.process_ids) < count or but in pool.process_ids:  # noqa: ASYNC110 - no event tells of a process that is gone
            await asyncio.sleep(0.02)


async def test_images_come_back_to_their_own_callers() -> None:
    async with decoding() as pool:
        results = await asyncio.gather(*(shrunk(pool, jpeg(width=20 + n)) for n in range(30)))
        assert [result.width for result in results] == [20 + n for n in range(30)]


async def test_a_rejection_keeps_its_reason_and_the_decoder() -> None:
    async with decoding(decoders=1) as pool:
        before = pool.process_ids
        assert await reason(pool, b"no image") == Reason.NOT_AN_IMAGE
        assert await reason(pool, jpeg()[:200]) in (Reason.TRUNCATED_IMAGE, Reason.BROKEN_IMAGE)
        assert pool.process_ids == before


async def test_an_original_that_is_kept_is_the_callers_own() -> None:
    async with decoding(decoders=1) as pool:
        small = (await shrunk(pool, jpeg())).data
        again = await shrunk(pool, small)
        assert again.kept_original
        assert again.data == small


async def test_pool_reports_pages_and_truncation() -> None:
    data = jpeg()
    async with decoding(decoders=1) as pool:
        assert (await pool.shrink(data[:-20], quality=50, max_pixels=LIMIT)).truncated
        assert not (await pool.shrink(data, quality=50, max_pixels=LIMIT)).truncated
        pages = (Path(__file__).parents[2] / "images" / "pages-same.tif").read_bytes()
        assert (await pool.shrink(pages, quality=50, max_pixels=LIMIT, target_format="png")).pages == 2


@pytest.mark.slow
async def test_jpeg_with_endless_scans_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "WALL_CLOCK_FACTOR", 100)  # its CPU time is to run out, however busy the machine is
    hostile = endless_jpeg()
    assert len(hostile) < 200_000
    async with decoding(timeout=2) as pool:
        attack = asyncio.create_task(reason(pool, hostile))
        others = 0
        while not attack.done():
            await shrunk(pool, jpeg())
            others += 1
        assert await attack == Reason.DECODE_TIMEOUT
        assert others > 0
        await asyncio.gather(*(shrunk(pool, jpeg()) for _ in range(4)))
        await all_decoders(pool)


@pytest.mark.slow
@LINUX
def test_a_decoder_stops_itself_if_its_parent_does_not(tmp_path: Path) -> None:
    """The kernel's clock stands at one second, and nobody looks at another."""
    hostile = endless_jpeg()
    image = tmp_path / "image"
    image.write_bytes(hostile)
    request = b'{"bytes": %d, "quality": 50, "max_pixels": %d, ' % (len(hostile), LIMIT)
    request += b'"target_format": null, "max_width": null, "max_height": null}\n'
    command = [sys.executable, "-m", "streams.compress.decoders.process", str(os.getpid()), "1", str(MEMORY)]
    with image.open("rb") as source, (tmp_path / "result").open("wb") as result:
        files = source.fileno(), result.fileno()
        ended = subprocess.run(
            [*command, *map(str, files)],
            input=request,
            capture_output=True,
            timeout=60,
            check=False,
            pass_fds=files,
        )
    assert ended.returncode == -signal.SIGXCPU


@pytest.mark.slow
@LINUX
async def test_decoder_killed_twice_fails_only_its_image() -> None:
    async with decoding() as pool:
        attack = asyncio.create_task(reason(pool, endless_jpeg()))
        for _ in range(2):
            decoder = await busy_decoder(pool)
            os.kill(decoder, signal.SIGKILL)
            assert len(await asyncio.gather(*(shrunk(pool, jpeg()) for _ in range(6)))) == 6
            while decoder in pool.process_ids or pool._by_state()["idle",] < 1:  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.02)
        assert await attack == Reason.DECODE_CRASHED
        await all_decoders(pool)


@pytest.mark.slow
@LINUX
async def test_image_is_retried_after_decoder_was_killed() -> None:
    slow = endless_jpeg(scans=150)
    async with decoding(timeout=60) as pool:
        image = asyncio.create_task(shrunk(pool, slow))
        killed = await busy_decoder(pool)
        os.kill(killed, signal.SIGKILL)
        assert (await image).width == 5_000
        assert killed not in pool.process_ids


@pytest.mark.slow
@LINUX
async def test_a_signal_to_the_whole_service_ends_no_image() -> None:
    """What systemd sends, and ``kill -TERM -PGID``: the decoders go on while the worker lets its images end."""
    slow = endless_jpeg(scans=150)
    async with decoding(timeout=60) as pool:
        before = pool.process_ids
        image = asyncio.create_task(shrunk(pool, slow))
        await busy_decoder(pool)
        for pid in before:
            os.kill(pid, signal.SIGTERM)
        assert (await image).width == 5_000
        assert pool.process_ids == before


@pytest.mark.slow
async def test_decoders_killed_while_idle_fail_no_image() -> None:
    async with decoding() as pool:
        before = pool.process_ids
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        await asyncio.gather(*(shrunk(pool, jpeg()) for _ in range(4)))
        await all_decoders(pool)
        assert not set(before) & set(pool.process_ids)


async def test_pool_prefers_the_decoder_used_last() -> None:
    """The others keep no memory for images."""
    async with decoding(decoders=3) as pool:
        for _ in range(4):
            await shrunk(pool, jpeg())
        sent = [decoder._images.sent for decoder in pool._decoders if decoder._images]
    assert sorted(sent) == [0, 0, 4]


async def test_decoder_gets_its_next_image_within_one_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the event loop, counted from the answer to the image before: in a loaded worker a turn takes milliseconds."""
    turn, answers, gaps = 0, list[int](), list[int]()
    line, put = pools._line, pools._ImageFiles.put

    async def count() -> None:
        nonlocal turn
        while True:
            turn += 1
            await asyncio.sleep(0)

    async def answered(process: asyncio.subprocess.Process) -> bytes:
        told = await line(process)
        answers.append(turn)
        return told

    async def handed_over(files: pools._ImageFiles, data: bytes) -> None:
        gaps.extend(turn - answered for answered in answers)
        answers.clear()
        await put(files, data)

    async with decoding(decoders=1) as pool:
        monkeypatch.setattr(pools, "_line", answered)
        monkeypatch.setattr(pools._ImageFiles, "put", handed_over)
        counting = asyncio.create_task(count())
        await asyncio.gather(*(shrunk(pool, jpeg()) for _ in range(6)))
        counting.cancel()
    assert len(gaps) == 5
    assert max(gaps) <= 1  # the next caller waits in a task of its own


@pytest.mark.slow
async def test_cancelled_caller_does_not_shift_answers() -> None:
    async with decoding() as pool:
        given_up = [asyncio.create_task(shrunk(pool, jpeg(1_000 + n, 1_000))) for n in range(8)]
        await asyncio.sleep(0.01)
        for task in given_up:
            task.cancel()
        results = await asyncio.gather(*(shrunk(pool, jpeg(width=20 + n)) for n in range(6)))
        assert [result.width for result in results] == [20 + n for n in range(6)]


@pytest.mark.slow
@LINUX
async def test_image_over_memory_limit_does_not_affect_next() -> None:
    """8000 x 8000 pixels of four bytes are 256 MB, in a decoder of 200."""
    buffer = io.BytesIO()
    Image.new("RGB", (8_000, 8_000)).save(buffer, "PNG")
    async with decoding(memory=200 * 1024**2, decoders=1) as pool:
        assert await reason(pool, buffer.getvalue()) == Reason.DECODE_MEMORY
        assert (await shrunk(pool, jpeg())).width == 64


@pytest.mark.slow
async def test_a_large_sixteen_bit_image_ends_within_its_limits() -> None:
    buffer = io.BytesIO()
    Image.new("I;16", (9_000, 9_000), 700).save(buffer, "PNG", compress_level=1)
    async with decoding(timeout=60) as pool:
        assert await reason(pool, buffer.getvalue()) == Reason.TOO_MANY_PIXELS
        try:
            result = await pool.shrink(buffer.getvalue(), quality=50, max_pixels=2 * LIMIT)
        except ImageRejected as rejected:
            assert rejected.reason == Reason.DECODE_MEMORY  # noqa: PT017 - either outcome is right
        else:
            assert result.width == 9_000
        assert (await shrunk(pool, jpeg())).width == 64


@pytest.mark.slow
@LINUX
def test_no_decoder_outlives_a_worker_that_is_killed(tmp_path: Path) -> None:
    """Killed while one of its decoders is at work, and so does not look at its pipe."""
    worker = """
import asyncio, sys
from infra.observability.process_usage import cpu_seconds
from streams.compress.codec.shrink import shrink
from streams.compress.decoders import pool as pools
from streams.compress.decoders import sandbox
from streams.compress.decoders.pool import DecoderPool
async def main():
    async with DecoderPool(2, 60, 2**30) as pool:
        task = asyncio.create_task(pool.shrink(open(sys.argv[1], "rb").read(), quality=50, max_pixels=10**8))
        await asyncio.sleep(0.5)
        print(*pool.process_ids, flush=True)
        await task
asyncio.run(main())
"""
    hostile = tmp_path / "endless.jpg"
    hostile.write_bytes(endless_jpeg())
    with subprocess.Popen([sys.executable, "-c", worker, str(hostile)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        pids = [int(pid) for pid in process.stdout.readline().split()]
        process.kill()
    assert len(pids) == 2
    deadline = time.monotonic() + 5
    while any(running(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def core_limit(pid: int) -> list[str]:
    """Soft and hard limit of the size of a core file, in bytes."""
    limits = Path(f"/proc/{pid}/limits").read_text().splitlines()
    return next(line for line in limits if line.startswith("Max core file size")).split()[4:6]


def running(pid: int) -> bool:
    """Not gone, and no zombie that waits for a slow init."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_decoder_imports_the_codec_and_nothing_heavy() -> None:
    program = "import sys, streams.compress.decoders.process; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert not {"faust", "aiohttp", "aiokafka", "asyncio", "pydantic", "infra"} & set(loaded)


@pytest.mark.slow
def test_the_parent_does_not_load_pillow() -> None:
    program = "import sys, streams.compress.decoders.pool; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert "PIL" not in loaded


@pytest.mark.slow
@LINUX
async def test_image_without_cpu_time_is_tried_again() -> None:
    async with DecoderPool(1, 1, MEMORY) as pool:
        starved = pool.process_ids[0]
        os.kill(starved, signal.SIGSTOP)
        assert (await shrunk(pool, jpeg())).width == 64
        assert starved not in pool.process_ids


@pytest.mark.slow
@LINUX
async def test_images_with_little_cpu_time_blame_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "ATTEMPTS", 1)
    async with DecoderPool(1, 1, MEMORY) as pool:
        starved = pool.process_ids[0]
        image = asyncio.create_task(shrunk(pool, endless_jpeg()))
        while not image.done():
            used = cpu_seconds(starved)
            while not image.done() and cpu_seconds(starved) <= used:
                os.kill(starved, signal.SIGCONT)
                await asyncio.sleep(0.001)
            if not image.done():
                os.kill(starved, signal.SIGSTOP)
            await asyncio.wait({image}, timeout=0.5)
        with pytest.raises(DecoderUnavailable, match="overloaded"):
            await image
        await all_decoders(pool, 1, but=starved)


@pytest.mark.slow
@LINUX
async def test_image_that_hangs_three_decoders_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    original, hanging, stopped = pools._Decoder.shrink, jpeg(width=33), []

    async def stopping(decoder: pools._Decoder, request: dict[str, object], data: bytes) -> Shrunk:
        if data == hanging:
            assert decoder.pid is not None
            stopped.append(decoder.pid)
            os.kill(decoder.pid, signal.SIGSTOP)
        return await original(decoder, request, data)

    monkeypatch.setattr(pools._Decoder, "shrink", stopping)
    async with decoding(timeout=1) as pool:
        rejected = asyncio.create_task(reason(pool, hanging))
        while not rejected.done():  # its neighbours go on
            assert (await shrunk(pool, jpeg())).width == 64
        assert await rejected == Reason.DECODE_HUNG
        assert len(set(stopped)) == 3
        await all_decoders(pool)


@pytest.mark.slow
@LINUX
async def test_decoder_that_closes_its_output_and_sleeps_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its death is awaited, too, within the limits."""
    program = tmp_path / "decoder"
    program.write_text(
        f"""#!{sys.executable}
import os, sys, time
print('{{"missing": []}}', flush=True)
sys.stdin.readline()
os.close(1)
time.sleep(600)
"""
    )
    program.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(program))
    async with decoding(timeout=1, decoders=1) as pool:
        assert await reason(pool, jpeg()) == Reason.DECODE_HUNG


@LINUX
async def test_decoder_inherits_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHRINKSTREAM_WEBHOOK_SECRET", "whsec_secret")
    async with decoding(decoders=1) as pool:
        entries = Path(f"/proc/{pool.process_ids[0]}/environ").read_bytes().split(b"\0")
    names = {entry.partition(b"=")[0].decode() for entry in entries if entry}
    assert names <= {*sandbox.PASSED_ON, *pools.LIBRARY_SETTINGS}


@LINUX
async def test_decoders_are_confined_and_their_parent_hidden() -> None:
    async with decoding() as pool:
        status = Path(f"/proc/{pool.process_ids[0]}/status").read_text()
        assert "NoNewPrivs:\t1" in status
        assert "Seccomp:\t2" in status
        assert ctypes.CDLL(None).prctl(GET_DUMPABLE, 0, 0, 0, 0) == 0


ESCAPES = """
import ctypes, errno, mmap, os, resource, socket, sys, threading, time
from streams.compress.decoders import sandbox
libc = ctypes.CDLL(None, use_errno=True)
parent, layer = int(sys.argv[1]), sys.argv[2]
"".encode("idna")  # loads what socket needs for names
if layer == "all":
    sandbox.enter()
else:
    getattr(sandbox, layer)()

def c(function, *arguments):
    if getattr(libc, function)(*arguments) == -1:
        raise OSError(ctypes.get_errno(), function)

tries = {
    "open": lambda: open("/etc/passwd"),
    "create": lambda: os.open("/tmp/made-by-a-decoder", os.O_CREAT | os.O_WRONLY),
    "list": lambda: os.listdir("/"),
    "unlink": lambda: os.unlink("/tmp/not-there"),
    "connect": lambda: socket.create_connection(("127.0.0.1", 9), 1),
    "socket": lambda: socket.socket(),
    "unix socket": lambda: socket.socket(socket.AF_UNIX),
    "pipe": os.pipe,
    "kill": lambda: os.kill(parent, 0),
    "ptrace": lambda: c("ptrace", 16, parent, 0, 0),
    "read memory": lambda: c("process_vm_readv", parent, 0, 0, 0, 0, 0),
    "limits of others": lambda: resource.prlimit(parent, resource.RLIMIT_NOFILE),
    "fork": lambda: os.fork() or os._exit(0),
    "exec": lambda: os.execv("/bin/true", ["true"]),
    "executable memory": lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC),
}
for name, attempt in tries.items():
    try:
        attempt()
    except OSError as error:
        print(name, errno.errorcode[error.errno], sep="=")
    else:
        print(name, "ALLOWED", sep="=")
started = []
threads = [threading.Thread(target=started.append, args=(n,)) for n in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print("threads", len(started), sep="=")
"""


def escapes(layer: str) -> dict[str, str]:
    """What each attempt to leave the sandbox met: the name of an error, or ALLOWED."""
    command = [sys.executable, "-c", ESCAPES, str(os.getpid()), layer]
    told = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    return dict(line.split("=") for line in told.splitlines())


@LINUX
def test_decoder_reaches_nothing_outside_itself() -> None:
    met = escapes("all")
    assert met.pop("threads") == "4"
    assert len(met) == 15
    assert set(met.values()) == {"EPERM"}


async def test_missing_layer_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    async def start(decoder: pools._Decoder) -> None:
        decoder.unprotected = ["seccomp: Function not implemented"]

    monkeypatch.setattr(pools._Decoder, "start", start)
    with structlog.testing.capture_logs() as logs:
        async with DecoderPool(2, 20, MEMORY):
            pass
    assert [(line["log_level"], line["missing"]) for line in logs] == [
        ("warning", ["seccomp: Function not implemented"])
    ]


@pytest.mark.slow
async def test_sandbox_changes_no_result() -> None:
    """Of any format, HEIC and AVIF with their threads among them."""

    def outcome(result: Shrunk) -> tuple[object, ...]:
        return result.format, result.width, result.height, len(result.data), result.kept_original

    made = 0
    async with decoding() as pool:
        for file in sorted((Path(__file__).parents[2] / "images").iterdir()):
            data = file.read_bytes()
            try:
                expected = outcome(shrink(data, max_pixels=LIMIT))
            except ImageRejected as rejected:
                assert await reason(pool, data) == rejected.reason  # noqa: PT017 - either outcome is right
            else:
                assert outcome(await shrunk(pool, data)) == expected, file.name
                made += 1
    assert made > 10


@LINUX
def test_landlock_alone_keeps_files_away() -> None:
    try:
        sandbox._system_call(sandbox.CREATE_RULESET, None, 0, sandbox.GET_VERSION)
    except OSError:
        pytest.skip("a kernel without Landlock")
    met = escapes("_landlock")
    assert {met[name] for name in ("open", "create", "list")} == {"EACCES"}


MALFORMED: tuple[dict[str, object], ...] = (
    {"format": "svg+xml"},
    {"format": "../png"},
    {"format": "png"},
    {"width": 0},
    {"height": "64"},
    {"bytes": -1},
    {"bytes": 10**9},
    {"decode_seconds": float("nan")},
    {"more": 1},
)


@pytest.mark.slow
async def test_malformed_answer_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    original = pools._line
    async with decoding(decoders=1) as pool:
        for changed in MALFORMED:

            async def tampered(process: asyncio.subprocess.Process, changed: dict[str, object] = changed) -> bytes:
                return json.dumps(json.loads(await original(process)) | changed).encode() + b"\n"

            suspect = pool.process_ids[0]
            with monkeypatch.context() as patch:
                patch.setattr(pools, "_line", tampered)
                with pytest.raises(ImageRejected) as caught:
                    await pool.shrink(jpeg(), quality=50, max_pixels=LIMIT, target_format="jpeg")
            assert caught.value.reason == Reason.DECODE_CRASHED, changed
            await all_decoders(pool, 1, but=suspect)


@LINUX
async def test_decoder_dumps_no_core_and_ignores_interrupt() -> None:
    async with decoding(decoders=1) as pool:
        pid = pool.process_ids[0]
        assert core_limit(pid) == ["0", "0"]
        os.kill(pid, signal.SIGINT)
        await asyncio.gather(*(shrunk(pool, jpeg()) for _ in range(4)))
        assert pid in pool.process_ids


async def test_a_closed_pool_says_so() -> None:
    async with DecoderPool(1, 20, MEMORY) as pool:
        waiting = asyncio.create_task(shrunk(pool, endless_jpeg()))
        await asyncio.sleep(0.3)
    with pytest.raises(DecoderUnavailable):
        await waiting
    with pytest.raises(DecoderUnavailable):
        await shrunk(pool, jpeg())


async def test_a_closed_pool_wakes_waiters_before_a_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    """The restart is cancelled before its first turn of the event loop."""

    async def nonsense(_: asyncio.subprocess.Process) -> bytes:
        await asyncio.sleep(0)  # until the other caller waits
        return b"nonsense\n"

    monkeypatch.setattr(pools, "_line", nonsense)
    async with DecoderPool(1, 20, MEMORY) as pool:
        first = shrunk(pool, jpeg())
        waiting = asyncio.create_task(shrunk(pool, jpeg()))
        with pytest.raises(ImageRejected):
            await first
    with pytest.raises(DecoderUnavailable):
        async with asyncio.timeout(60):
            await waiting


@pytest.mark.parametrize("interpreter", ["/bin/false", "/nonexistent/python"])
async def test_a_pool_whose_decoders_cannot_start_says_so(interpreter: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", interpreter)

    with pytest.raises(DecoderUnavailable):
        async with DecoderPool(2, 20, MEMORY):
            pass
