"""The demo, where something stands in its way."""

import signal
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import pytest

from infra.cli import demo, requests
from infra.settings import Settings


async def test_stalled_demo_fails_with_last_log_lines(
    kafka_address: str, cassandra_address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def upload_while_compress_is_paused(*arguments: Any) -> str:
        for process in psutil.Process().children():
            if process.cmdline()[-2:] == ["worker", "compress"]:
                process.send_signal(signal.SIGSTOP)
        return await requests.upload(*arguments)

    monkeypatch.setattr(demo, "upload", upload_while_compress_is_paused)
    settings = Settings(
        kafka_brokers=kafka_address,
        cassandra_hosts=cassandra_address,
        cassandra_keyspace=f"demo_{uuid4().hex[:12]}",
        topic_prefix=f"demo-{uuid4().hex[:12]}",
        data_dir=tmp_path,
    )
    with pytest.raises(demo.DemoFailedError, match="no progress for 3 s") as failure:
        await demo.run_demo(settings, keep_data=True, stall_seconds=3)
    assert any(line.startswith("compress: ") for line in failure.value.details)
