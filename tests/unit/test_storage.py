"""Storage in a folder: whole objects or none, under any key, and a clear error where it can't be used."""

import asyncio
import os
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infra.settings import Settings
from infra.storage import Storage, StorageError
from tests.event_loop import run

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
def test_what_was_put_is_what_is_got(tmp_path: Path, size: int) -> None:
    async def test() -> None:
        storage = folder(tmp_path)
        data = os.urandom(size)
        await storage.put("images/a/0.jpg", data, "image/jpeg")
        assert await content(storage, "images/a/0.jpg") == data

    run(test())


def test_a_file_is_put_as_its_content(tmp_path: Path) -> None:
    async def test() -> None:
        source = tmp_path / "source"
        source.write_bytes(b"x" * MIB)
        storage = folder(tmp_path / "storage")
        await storage.put("csv/1.csv", source, "text/csv")
        assert await content(storage, "csv/1.csv") == b"x" * MIB

    run(test())


def test_what_is_not_there_is_none(tmp_path: Path) -> None:
    async def test() -> None:
        storage = folder(tmp_path)
        await storage.put("images/a/0.jpg", b"x", "image/jpeg")
        assert await storage.get("images/a/1.jpg") is None
        assert await storage.get("images/a") is None, "a folder is no object"

    run(test())


def test_a_reader_sees_the_old_object_or_the_new_one_never_a_part(tmp_path: Path) -> None:
    async def test() -> None:
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

    run(test())
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["object"], "nothing is left behind"


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=40))
def test_any_name_is_stored_within_the_folder_or_refused(tmp_path: Path, name: str) -> None:
    async def test() -> None:
        storage = folder(tmp_path / "root")
        try:
            await storage.put(f"images/{name}", name.encode(), "image/jpeg")
        except StorageError:
            assert await storage.get(f"images/{name}") is None
        else:
            assert await content(storage, f"images/{name}") == name.encode()

    run(test())
    assert {path.name for path in tmp_path.iterdir()} == {"root"}


@pytest.mark.parametrize("key", ["../outside", "images/../../outside", "/etc/../../outside"])
def test_no_key_leads_out_of_the_folder(tmp_path: Path, key: str) -> None:
    async def test() -> None:
        root = tmp_path / "a" / "b" / "root"
        (tmp_path / "a" / "b" / "outside").parent.mkdir(parents=True)
        (tmp_path / "a" / "b" / "outside").write_bytes(b"private")
        storage = folder(root)
        with pytest.raises(StorageError):
            await storage.put(key, b"x", "text/plain")
        assert await storage.get(key) is None
        assert (tmp_path / "a" / "b" / "outside").read_bytes() == b"private"

    run(test())


def test_links_lead_to_the_public_address_and_are_urls() -> None:
    storage = Storage(Path("/tmp").as_uri(), "https://shrink.example/base")
    assert storage.link("images/a b/ü?.jpg") == "https://shrink.example/base/images/a%20b/%C3%BC%3F.jpg"


def test_a_folder_with_odd_letters_in_its_name_is_that_folder(tmp_path: Path) -> None:
    async def test() -> None:
        odd = tmp_path / "a b%20ü#?"
        await folder(odd).put("x", b"1", "text/plain")
        assert (odd / "x").read_bytes() == b"1"

    run(test())


@pytest.mark.parametrize("url", ["ftp://example.com/x", "gs://bucket/x", "/var/lib", "", "memory:///"])
def test_a_storage_of_another_kind_is_refused(url: str) -> None:
    with pytest.raises(StorageError, match="the scheme must be file or s3"):
        Storage(url, "https://shrink.example")


def test_a_bucket_is_opened_without_asking_the_network() -> None:
    assert Storage("s3://bucket/prefix", "https://shrink.example").url == "s3://bucket/prefix"


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match=r"file/storage can't be opened: .*Not a directory"):
        folder(tmp_path / "file" / "storage")


def test_a_folder_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    async def test() -> None:
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

    run(test())


def test_the_storage_of_the_settings_is_in_the_data_dir_unless_they_say_otherwise(tmp_path: Path) -> None:
    assert Storage.of(Settings(data_dir=tmp_path, storage_url=None)).url == (tmp_path / "storage").as_uri()
    elsewhere = (tmp_path / "elsewhere").as_uri()
    assert Storage.of(Settings(data_dir=tmp_path, storage_url=elsewhere)).url == elsewhere
