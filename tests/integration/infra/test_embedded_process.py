"""A child process is started, logged, stopped, and never outlives its parent."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from infra.devserver.process import MAX_LOG_BYTES, ChildProcess
from tests.support.processes import is_gone

pytestmark = pytest.mark.slow

END_SECONDS = 120.0


def python(log_path: Path, code: str) -> ChildProcess:
    return ChildProcess("child", [sys.executable, "-u", "-c", code], log_path=log_path)


def until_logged(log_path: Path, text: str) -> str:
    deadline = time.monotonic() + END_SECONDS
    while text not in (log := log_path.read_text()):
        assert time.monotonic() < deadline, f"{text!r} is not in {log!r}"
        time.sleep(0.02)
    return log


async def test_output_is_appended_and_exit_status_reported(tmp_path: Path) -> None:
    log_path = tmp_path / "logs" / "child.log"

    for status in (0, 3):
        child = python(log_path, f"import sys; print('out', {status}); sys.stderr.write('err\\n'); sys.exit({status})")
        await child.start()
        assert await child.wait() == status == child.returncode
    assert log_path.read_text() == "out 0\nerr\nout 3\nerr\n"


async def test_child_gets_environment_and_working_directory(tmp_path: Path) -> None:
    child = ChildProcess(
        "child",
        [sys.executable, "-c", "import os; print(os.environ['GREETING'], 'HOME' in os.environ, os.getcwd())"],
        log_path=tmp_path / "log",
        env={"GREETING": "hello"},
        cwd=tmp_path,
    )
    await child.start()
    assert await child.wait() == 0
    assert (tmp_path / "log").read_text() == f"hello False {tmp_path}\n"


async def test_stop_sends_sigterm_and_lets_child_finish(tmp_path: Path) -> None:
    child = python(
        tmp_path / "log",
        "import signal, sys, time\n"
        "def finish(*_): print('finished'); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, finish); print('ready'); time.sleep(60)",
    )
    await child.start()
    await asyncio.to_thread(until_logged, tmp_path / "log", "ready\n")
    await child.stop(grace_seconds=END_SECONDS)
    assert child.returncode == 0
    assert (tmp_path / "log").read_text() == "ready\nfinished\n"


async def test_child_ignoring_sigterm_is_killed_after_the_grace_time(tmp_path: Path) -> None:
    child = python(
        tmp_path / "log",
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready'); time.sleep(60)",
    )
    await child.start()
    await asyncio.to_thread(until_logged, tmp_path / "log", "ready")
    await child.stop(grace_seconds=0.2)
    assert child.returncode == -signal.SIGKILL
    await child.stop(grace_seconds=0.2)  # nothing left to do is no error


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
async def test_grandchildren_end_with_the_child_however_it_ends(end: signal.Signals, tmp_path: Path) -> None:
    child = python(
        tmp_path / "log",
        "import subprocess, time; print(subprocess.Popen(['sleep', '60']).pid, 'left'); time.sleep(60)",
    )
    await child.start()
    grandchild = int((await asyncio.to_thread(until_logged, tmp_path / "log", "left")).split()[0])
    os.kill(child.pid, end)
    assert await child.wait() == -end
    await child.stop(END_SECONDS)
    assert is_gone(grandchild)


async def test_ctrl_c_reaches_the_parent_and_not_the_child(tmp_path: Path) -> None:
    child = python(tmp_path / "log", "import time; time.sleep(60)")
    await child.start()
    try:
        assert os.getsid(child.pid) == child.pid != os.getsid(0)
    finally:
        await child.stop(0)


async def test_leash_adds_no_process_and_keeps_broken_pipes_working(tmp_path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("only Linux ties a process to its parent without a process in between")
    child = ChildProcess("yes", ["sh", "-c", "yes | head -n 1; echo pid $$"], log_path=tmp_path / "log")
    await child.start()
    pid = child.pid
    await child.wait()
    assert (tmp_path / "log").read_text() == f"y\npid {pid}\n"


async def test_log_over_the_limit_is_rotated_at_start(tmp_path: Path) -> None:
    log_path = tmp_path / "log"
    log_path.write_bytes(b"x" * (MAX_LOG_BYTES + 1))

    child = python(log_path, "print('new')")
    await child.start()
    await child.wait()
    assert log_path.read_text() == "new\n"
    assert (tmp_path / "log.1").stat().st_size == MAX_LOG_BYTES + 1


async def test_last_error_line_names_log_and_ignores_earlier_runs(tmp_path: Path) -> None:
    log_path = tmp_path / "log"
    log_path.write_text("ERROR of yesterday\n")
    child = python(log_path, "print('INFO fine'); raise ValueError('the disk is full')")
    await child.start()
    await child.wait()
    assert child.exit_summary() == f"child ended with status 1: ValueError: the disk is full (log: {log_path})"


async def test_missing_command_is_named(tmp_path: Path) -> None:
    child = ChildProcess("child", ["/no/such/command"], log_path=tmp_path / "log")
    await child.start()
    await child.wait()
    assert "cannot run /no/such/command: No such file or directory" in child.exit_summary()


PARENT = """
import asyncio, sys
from pathlib import Path
from infra.devserver.process import ChildProcess

async def main():
    log = Path(sys.argv[1])
    child = ChildProcess("child", ["sh", "-c", "echo $$; exec sleep 60"], log_path=log)
    await child.start()
    while not log.read_text().endswith("\\n"):
        await asyncio.sleep(0.02)
    print(child.pid, flush=True)
    await child.wait()

asyncio.run(main())
"""

# The way of systems without PR_SET_PDEATHSIG, which works on Linux, too.
WATCHING_PARENT = """
import os, subprocess, sys
code = f"from infra.devserver.leash import watch; watch({os.getpid()}, ['sh', '-c', 'echo $$; exec sleep 60'])"
subprocess.run([sys.executable, "-c", code])
"""


@pytest.mark.parametrize("code", [PARENT, WATCHING_PARENT], ids=["kernel", "watching"])
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_child_ends_with_its_parent_however_that_ends(code: str, end: signal.Signals, tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "log")], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert psutil.pid_exists(child)
        parent.send_signal(end)
        parent.wait(END_SECONDS)
    assert is_gone(child)


@pytest.mark.parametrize(("command", "status"), [("exit 7", 7), ("kill -9 $$", 128 + 9)])
def test_watching_leash_reports_status_as_a_shell_does(command: str, status: int) -> None:
    code = (
        "import os, sys; from infra.devserver.leash import watch;"
        f"sys.exit(watch(os.getppid(), ['sh', '-c', {command!r}]))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=END_SECONDS, check=False).returncode == status


def test_watching_leash_forwards_sigterm_during_start() -> None:
    code = (
        "import os, signal, subprocess, sys; from infra.devserver.leash import watch; start = subprocess.Popen\n"
        "def interrupted(*arguments, **options):\n"
        "    child = start(*arguments, **options); os.kill(os.getpid(), signal.SIGTERM); return child\n"
        "subprocess.Popen = interrupted; sys.exit(watch(os.getppid(), ['sleep', '60']))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=END_SECONDS, check=False).returncode == 128 + 15


def test_watching_leash_forwards_sigterm() -> None:
    code = (
        "import os, sys; from infra.devserver.leash import watch;"
        "sys.exit(watch(os.getppid(), ['sh', '-c', 'trap \"exit 5\" TERM; echo ready; while :; do sleep 0.1; done']))"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as leash:
        assert leash.stdout is not None
        assert leash.stdout.readline() == "ready\n"
        leash.terminate()
        assert leash.wait(END_SECONDS) == 5
