"""Storage in a folder: whole objects or none, under any key, and a clear error where it can't be used."""

import asyncio
import os
import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infra.observability.readiness import NOT_OPEN, NotReady
from infra.settings import Settings
from infra.storage import Storage, StorageError, check_storage

MIB = 1024 * 1024


def folder(path: Path) -> Storage:
    return Storage(path.as_uri(), "https://shrink.example")


async def content(storage: Storage, key: str) -> bytes | None:
    stored = await storage.get(key)
    if stored is None:
        return None
    read = b"".join([chunk async for chunk in stored.chunks])
    assert stored.size == len(read)
    return read


@pytest.mark.parametrize("size", [0, 1, 256 * 1024, 3 * MIB + 1])
async def test_stored_object_is_read_back(tmp_path: Path, size: int) -> None:
    storage = folder(tmp_path)
    data = os.urandom(size)
    await storage.put("images/a/0.jpg", data, "image/jpeg")
    assert await content(storage, "images/a/0.jpg") == data


async def test_a_file_is_put_as_its_content(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x" * MIB)
    storage = folder(tmp_path / "storage")
    await storage.put("csv/1.csv", source, "text/csv")
    assert await content(storage, "csv/1.csv") == b"x" * MIB


async def test_copy_is_independent_object(tmp_path: Path) -> None:
    storage = folder(tmp_path)
    await storage.put("images/a/0.jpg", b"first", "image/jpeg")
    assert await storage.copy("images/a/0.jpg", "images/b/7.jpg")
    await storage.put("images/a/0.jpg", b"second", "image/jpeg")
    assert await content(storage, "images/b/7.jpg") == b"first"


@pytest.mark.slow
async def test_copy_succeeds_beyond_the_limit_of_hard_links(tmp_path: Path) -> None:
    storage = folder(tmp_path)
    await storage.put("images/a/0.jpg", b"image", "image/jpeg")
    for number in range(65_000):  # ext4's limit; on a file system with a higher one the copy is another link
        try:
            os.link(tmp_path / "images/a/0.jpg", tmp_path / f"images/a/{number}.link")
        except OSError:
            break
    assert await storage.copy("images/a/0.jpg", "images/b/7.jpg")
    assert await content(storage, "images/b/7.jpg") == b"image"


async def test_what_is_not_there_is_not_copied(tmp_path: Path) -> None:
    storage = folder(tmp_path)
    assert not await storage.copy("images/a/0.jpg", "images/b/7.jpg")
    assert await content(storage, "images/b/7.jpg") is None


async def test_what_is_not_there_is_none(tmp_path: Path) -> None:
    storage = folder(tmp_path)
    await storage.put("images/a/0.jpg", b"x", "image/jpeg")
    assert await storage.get("images/a/1.jpg") is None
    assert await storage.get("images/a") is None, "a folder is no object"


async def test_reader_sees_old_or_new_object(tmp_path: Path) -> None:
    storage = folder(tmp_path)
    versions = [bytes([letter]) * MIB for letter in b"abcd"]
    await storage.put("object", versions[0], "image/jpeg")
    seen: list[bytes] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set():
            seen.append((tmp_path / "object").read_bytes())

    watching = asyncio.create_task(asyncio.to_thread(watch))
    try:
        for _ in range(5):
            for version in versions:
                await storage.put("object", version, "image/jpeg")
    finally:
        stop.set()
        await watching
    assert seen
    assert set(seen) <= set(versions)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["object"], "nothing is left behind"


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=40))
def test_any_name_is_stored_within_the_folder_or_refused(tmp_path: Path, name: str) -> None:
    async def store() -> None:
        storage = folder(tmp_path / "root")
        try:
            await storage.put(f"images/{name}", name.encode(), "image/jpeg")
        except StorageError:
            assert await storage.get(f"images/{name}") is None
        else:
            assert await content(storage, f"images/{name}") == name.encode()

    asyncio.run(store())
    assert {path.name for path in tmp_path.iterdir()} == {"root"}


@pytest.mark.parametrize("key", ["../outside", "images/../../outside", "/etc/../../outside"])
async def test_no_key_leads_out_of_the_folder(tmp_path: Path, key: str) -> None:
    root = tmp_path / "a" / "b" / "root"
    (tmp_path / "a" / "b" / "outside").parent.mkdir(parents=True)
    (tmp_path / "a" / "b" / "outside").write_bytes(b"private")
    storage = folder(root)
    with pytest.raises(StorageError):
        await storage.put(key, b"x", "text/plain")
    assert await storage.get(key) is None
    assert (tmp_path / "a" / "b" / "outside").read_bytes() == b"private"


def test_links_lead_to_the_public_address_and_are_urls() -> None:
    storage = Storage(Path("/tmp").as_uri(), "https://shrink.example/base")
    assert storage.link("images/a b/ü?.jpg") == "https://shrink.example/base/images/a%20b/%C3%BC%3F.jpg"


async def test_storage_accepts_folder_with_odd_letters(tmp_path: Path) -> None:
    odd = tmp_path / "a b%20ü#?"
    await folder(odd).put("x", b"1", "text/plain")
    assert (odd / "x").read_bytes() == b"1"


@pytest.mark.parametrize("url", ["ftp://example.com/x", "gs://bucket/x", "/var/lib", "", "memory:///"])
def test_a_storage_of_another_kind_is_refused(url: str) -> None:
    with pytest.raises(StorageError, match="the scheme must be file or s3"):
        Storage(url, "https://shrink.example")


def test_a_bucket_is_opened_without_asking_the_network() -> None:
    assert Storage("s3://bucket/prefix", "https://shrink.example").url == "s3://bucket/prefix"


def test_folder_that_cannot_be_created_is_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match=r"file/storage can't be opened: .*Not a directory"):
        folder(tmp_path / "file" / "storage")


async def test_unwritable_folder_is_clear_error(tmp_path: Path) -> None:
    storage = folder(tmp_path / "storage")
    await storage.check()
    # Not by its permissions: they mean nothing to root, as which containers run tests.
    (tmp_path / "storage" / "images").write_bytes(b"a file where a folder must be")
    with pytest.raises(StorageError, match=r"images/a\.jpg can't be written to file://") as error:
        await storage.put("images/a.jpg", b"x", "image/jpeg")
    assert "\n" not in str(error.value)
    (tmp_path / "storage").rename(tmp_path / "elsewhere")
    (tmp_path / "storage").write_bytes(b"")
    with pytest.raises(StorageError):
        await storage.check()


def test_storage_defaults_to_data_dir(tmp_path: Path) -> None:
    assert Storage.of(Settings(data_dir=tmp_path, storage_url=None)).url == (tmp_path / "storage").as_uri()
    elsewhere = (tmp_path / "elsewhere").as_uri()
    assert Storage.of(Settings(data_dir=tmp_path, storage_url=elsewhere)).url == elsewhere


async def test_remove_deletes_only_objects_under_prefix(tmp_path: Path) -> None:
    storage = folder(tmp_path)
    for name in ("a/0.jpg", "a/1.jpg", "ab/0.jpg"):
        await storage.put(f"images/{name}", b"x", "image/jpeg")
    assert await storage.remove("images/a") == 2
    assert await storage.remove("images/a") == 0, "safe to repeat"
    assert await content(storage, "images/ab/0.jpg") == b"x"
    assert not (tmp_path / "images" / "a").exists(), "no empty folder stays"


async def test_a_folder_has_no_signed_links(tmp_path: Path) -> None:
    storage = folder(tmp_path)
    await storage.put("images/a/0.jpg", b"x", "image/jpeg")
    assert await storage.signed_link("images/a/0.jpg") is None


def test_objects_have_public_url_of_bucket() -> None:
    storage = Storage(Path("/tmp").as_uri(), "https://shrink.example", "https://cdn.example/x")
    assert storage.object_link("images/a/ü.jpg") == "https://cdn.example/x/images/a/%C3%BC.jpg"
    assert storage.link("api/download/a") == "https://shrink.example/api/download/a"


FULL_DISK = """
import asyncio, os, resource, signal, sys
from pathlib import Path
from infra.storage import Storage, StorageError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write is to fail as it does on a full disk
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

async def test():
    storage = Storage(Path(sys.argv[1]).as_uri(), "https://shrink.example")
    await storage.put("images/a/0.jpg", b"x" * 90_000, "image/jpeg")
    try:
        await storage.put("images/a/0.jpg", b"y" * 110_000, "image/jpeg")
    except StorageError as error:
        print(error, flush=True)

asyncio.run(test())
os._exit(0)  # without the interpreter's farewell, during which obstore's threads may still let go of objects
"""


def test_full_disk_keeps_old_object_and_no_part(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        cwd=Path(__file__).parents[3],
    )
    (line,) = ended.stdout.splitlines()
    assert line.startswith(f"images/a/0.jpg can't be written to {tmp_path.as_uri()}: ")
    assert "File too large" in line
    assert {path: path.read_bytes()[:1] for path in tmp_path.rglob("*") if path.is_file()} == {
        tmp_path / "images" / "a" / "0.jpg": b"x"
    }


WRITER = """
import asyncio, os, sys, threading
from pathlib import Path
from infra.storage import Storage

async def test():
    storage = Storage(Path(sys.argv[1]).as_uri(), "https://shrink.example")
    content = b"x" * 50_000_000
    writing = asyncio.create_task(storage.put("object", content, "image/jpeg"))
    partial = Path(sys.argv[1]) / ".partial"
    while not any(path.stat().st_size for path in partial.glob("*")):
        await asyncio.sleep(0)
    os.kill(os.getpid(), 9)

asyncio.run(test())
"""


@pytest.mark.slow
async def test_sweep_deletes_old_partial_files(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-c", WRITER, str(tmp_path)], timeout=120, check=False, cwd=Path(__file__).parents[3]
    )
    assert not (tmp_path / "object").exists()
    assert any(path.is_file() for path in tmp_path.rglob("*"))

    storage = folder(tmp_path)
    assert await storage.sweep(timedelta(hours=1)) == 0, "it could still be written at"
    assert await storage.sweep(timedelta(0)) == 1
    await storage.put("object", b"whole", "image/jpeg")
    assert await storage.sweep(timedelta(0)) == 0
    assert await content(storage, "object") == b"whole"


async def test_unwritable_folder_is_not_ready(tmp_path: Path) -> None:
    storage = folder(tmp_path / "storage")
    await check_storage(storage)
    (tmp_path / "storage").rename(tmp_path / "elsewhere")
    (tmp_path / "storage").write_bytes(b"a file in its place")
    with pytest.raises(NotReady) as refused:
        await check_storage(storage)
    assert str(tmp_path) in refused.value.detail
    assert str(tmp_path) not in str(refused.value)
    with pytest.raises(NotReady, match=NOT_OPEN):
        await check_storage(None)
