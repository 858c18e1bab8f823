"""One consumer group of a test: its topics, its worker processes, and what they did."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

from aiokafka.structs import ConsumerRecord

from infra.faust.fence import FENCE_KEY
from infra.kafka.producer import DELIVERY_TIMEOUT
from tests.integration.faust_guards.cluster import Cluster

EXIT_SECONDS = DELIVERY_TIMEOUT + 120
"""Deadline (s) of a worker's start and end on a busy machine; it may wait for a batch that is never acknowledged."""
ROOT = Path(__file__).parents[3]
Place = tuple[int, int]
"""Partition and offset."""


def at_once(work: Callable[["Group"], None], *groups: "Group") -> None:
    """The same with each group, side by side: most of it is waiting."""
    with ThreadPoolExecutor(len(groups)) as threads:
        list(threads.map(work, groups))


class Group:
    """Workers of one app, all with or all without a certain guard."""

    def __init__(
        self,
        cluster: Cluster,
        folder: Path,
        *,
        without: str | None = None,
        partitions: int = 1,
        in_flight: int = 0,
        max_seconds: float = 600,
        table: bool = False,
        cleanup: float = 0,
        publish_delay: float = 0,
        constants: dict[str, float] | None = None,
        options: dict[str, Any] | None = None,
        changelog: dict[str, str] | None = None,
        task_error: str = "",
        without_answers: bool = False,
        create: bool = True,
    ) -> None:
        self.cluster = cluster
        self.name = f"guards-{uuid4().hex[:8]}"
        self.topic = f"{self.name}-in"
        self.changelog = f"{self.name}-table-changelog"
        self.folder = folder / self.name
        self.folder.mkdir()
        self._journal = self.folder / "journal"
        self._processes: list[subprocess.Popen[bytes]] = []
        self._spec = {
            "name": self.name,
            "kafka": cluster.address,
            "data_dir": str(self.folder / "data"),
            "journal": str(self._journal),
            "without": without,
            "partitions": partitions,
            "in_flight": in_flight,
            "max_seconds": max_seconds,
            "table": table,
            "cleanup": cleanup,
            "publish_delay": publish_delay,
            "constants": constants or {},
            "options": options or {},
            "task_error": task_error,
            "without_answers": without_answers,
        }
        if create:
            cluster.create_topic(self.topic, partitions)
        if create and table:
            cluster.create_topic(self.changelog, partitions, {"cleanup.policy": "compact", **(changelog or {})})

    def produce(self, values: Sequence[bytes], partition: int | None = None) -> None:
        self.cluster.produce(self.topic, values, partition)

    def start(self, *command: str, seek_delay: float = 0, port: int | None = None) -> subprocess.Popen[bytes]:
        """A worker; ``command`` runs it in another way than ``run_worker`` (``python -m …``); ``port``: for probes."""
        spec = {**self._spec, "seek_delay": seek_delay}
        with self._log(len(self._processes)).open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", *(command or ["tests.integration.faust_guards.worker"])],
                cwd=self.folder,
                env={
                    **os.environ,
                    "WORKER_SPEC": json.dumps(spec),
                    "PYTHONPATH": str(ROOT),
                    **({} if port is None else {"SHRINKSTREAM_WORKER_PORT": str(port)}),
                },
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self._processes.append(process)
        return process

    def stop(self, process: subprocess.Popen[bytes]) -> int:
        process.send_signal(signal.SIGTERM)
        return process.wait(EXIT_SECONDS)

    def kill_all(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()

    def output(self, worker: int = 0) -> str:
        return self._log(worker).read_text()

    def started(self) -> Counter[Place]:
        """How often each event was handed to an agent."""
        return Counter(self._places("start"))

    def finished(self) -> Counter[Place]:
        return Counter(self._places("end"))

    def lines(self, what: str) -> list[list[str]]:
        text = self._journal.read_text() if self._journal.exists() else ""
        words = [line.split() for line in text.splitlines()]
        return [line[1:] for line in words if line[0] == what]

    def skipped(self) -> list[tuple[Place, Place]]:
        """Where the deliveries of a partition jumped forward, over events not delivered before."""
        ends: dict[int, int] = {}
        jumps = []
        for partition, offset in self._places("start"):
            end = ends.get(partition, -1)
            if offset > end + 1:
                jumps.append(((partition, end), (partition, offset)))
            ends[partition] = max(end, offset)
        return jumps

    def written(self) -> list[ConsumerRecord[bytes, bytes]]:
        """The changelog's records, without the fences of its owners."""
        return [record for record in self.cluster.read(self.changelog) if record.key != FENCE_KEY]

    def committed(self) -> dict[int, int]:
        return self.cluster.committed(self.name, self.topic)

    def lost(self) -> int:
        """How many events are committed that no agent has seen."""
        seen = self.started()
        return sum((partition, o) not in seen for partition, end in self.committed().items() for o in range(end))

    def _places(self, what: str) -> Iterator[Place]:
        return ((int(partition), int(offset)) for partition, offset in self.lines(what))

    def _log(self, worker: int) -> Path:
        return self.folder / f"worker-{worker}.log"
