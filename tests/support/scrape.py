"""What a Prometheus would read at a running system."""

import json
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from infra.cli.system import TARGETS


@dataclass(frozen=True)
class Sample:
    """One value of one process."""

    role: str
    name: str
    labels: dict[str, str]
    value: float


@dataclass(frozen=True)
class Scrape:
    """All values of all processes of a system."""

    samples: list[Sample]

    def total(self, name: str, **labels: str) -> float:
        """The sum over all processes of the values that have these labels."""
        return sum(
            sample.value
            for sample in self.samples
            if sample.name == name and sample.labels.items() >= {**labels}.items()
        )


def addresses(data_dir: Path) -> dict[str, tuple[str, str]]:
    """The role and the address of each process of `up`, by its name."""
    targets = json.loads((data_dir / TARGETS).read_text())
    return {entry["labels"]["process"]: (entry["labels"]["role"], entry["targets"][0]) for entry in targets}


def scrape(data_dir: Path) -> Scrape:
    return Scrape([sample for role, address in addresses(data_dir).values() for sample in samples_of(role, address)])


def samples_of(role: str, address: str) -> Iterator[Sample]:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=60) as answer:
        text = answer.read().decode()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            yield Sample(role, sample.name, dict(sample.labels), sample.value)
