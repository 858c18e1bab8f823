"""Groups of workers on the real broker."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.faust_guards.cluster import Cluster
from tests.integration.faust_guards.group import Group


@pytest.fixture
def new_group(kafka_address: str, tmp_path: Path) -> Iterator[Callable[..., Group]]:
    """Makes groups, whose workers end with the test."""
    cluster = Cluster(kafka_address)
    groups: list[Group] = []

    def new(**spec: Any) -> Group:
        groups.append(Group(cluster, tmp_path, **spec))
        return groups[-1]

    yield new
    for group in groups:
        group.kill_all()
