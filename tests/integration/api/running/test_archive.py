"""Archive of a request in a running API: complete, in order, and in constant memory. ``TEST_ARCHIVE_MB``: its size."""

import hashlib
import http.client
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import psutil
import pytest

from streams.events.base import Event, utc_now
from tests.integration.api.running.conftest import KEY, Api
from tests.integration.api.running.test_stats import record
from tests.support.examples import completed, created, processed, requested

pytestmark = pytest.mark.slow

MB = 1024 * 1024
ARCHIVE_MB = int(os.environ.get("TEST_ARCHIVE_MB", "192"))
EXTRA_MEMORY = 50 * MB
SIZES = (100_000, 400_000, 3 * MB)  # two that are read ahead, and one that is not


def stored_request(api: Api, size: int) -> tuple[str, int]:
    """A completed request whose images have ``size`` bytes together; returns its id and their number."""
    request_id, now = str(uuid4()), utc_now()
    folder = api.settings.data_dir / "storage" / "images" / request_id
    folder.mkdir(parents=True)
    contents = [os.urandom(length) for length in SIZES]
    events: list[Event] = []
    total = 0
    while total < size:
        index = len(events)
        content = contents[index % len(contents)]
        path = folder / f"{index}.jpg"
        if index < len(contents):
            path.write_bytes(content)
        else:
            path.hardlink_to(folder / f"{index % len(contents)}.jpg")
        image = processed(requested(request_id, index, owner="shop"), output_bytes=len(content))
        sha256 = hashlib.sha256(content).hexdigest()
        path_of = {"output_path": f"images/{request_id}/{index}.jpg", "sha256": sha256}
        events.append(image.model_copy(update=path_of))
        total += len(content)
    sums = {"total": len(events), "succeeded": len(events), "failed": 0, "owner": "shop", "created_at": now}
    record(
        api.settings,
        [
            created(request_id, total=len(events), owner="shop", time=now),
            *events,
            completed(request_id, time=now, **sums),
        ],
    )
    return request_id, len(events)


def streamed(api: Api, path: str) -> Iterator[bytes]:
    connection = http.client.HTTPConnection(urlsplit(api.url).netloc, timeout=120)
    connection.request("GET", path, headers={"X-API-Key": KEY})
    response = connection.getresponse()
    assert response.status == 200
    while chunk := response.read(MB):
        yield chunk
    connection.close()


def test_large_archive_needs_constant_memory(api: Api, tmp_path: Path) -> None:
    request_id, images = stored_request(api, ARCHIVE_MB * MB)
    process = psutil.Process(api.process.pid)
    list(streamed(api, f"/api/requests/{request_id}/archive.zip?from={images}"))  # what is imported and cached once
    before = peak = process.memory_info().rss
    archive = tmp_path / "archive.zip"
    with archive.open("wb") as file:
        for chunk in streamed(api, f"/api/requests/{request_id}/archive.zip"):
            file.write(chunk)
            peak = max(peak, process.memory_info().rss)
    print(f"{archive.stat().st_size / MB:.0f} MB, {images} images: {(peak - before) / MB:.1f} MB of memory")
    assert archive.stat().st_size > ARCHIVE_MB * MB
    assert peak - before < EXTRA_MEMORY
    folder = api.settings.data_dir / "storage" / "images" / request_id
    with zipfile.ZipFile(archive) as opened:
        names = opened.namelist()
        assert [int(name.split()[0]) for name in names] == list(range(1, images + 1))
        for number in (0, 1, 2, images - 1):
            assert opened.read(names[number]) == (folder / f"{number}.jpg").read_bytes()
