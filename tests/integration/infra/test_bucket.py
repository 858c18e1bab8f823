"""Storage in a bucket: the same as in a folder, and a clear line for each way in which a bucket can't be used."""

import asyncio
import os
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen
from uuid import uuid4

import aiohttp
import pytest

from infra.observability.readiness import NotReady
from infra.settings import Settings
from infra.storage import CHECK_KEY, IMAGE_CACHE_CONTROL, Storage, StorageError, check_storage
from tests.support.api_server import serving_api
from tests.support.s3 import S3Server

pytestmark = pytest.mark.slow

MIB = 1024 * 1024
PUBLIC = "https://shrink.example"


@pytest.fixture
def bucket(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """A new bucket that this process's environment leads to."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    name = f"test-{uuid4().hex[:12]}"
    s3_server.client().create_bucket(Bucket=name)
    return name


def opened(bucket: str, prefix: str = "a shop/images") -> Storage:
    return Storage(f"s3://{bucket}/{prefix}", PUBLIC)


async def content(storage: Storage, key: str) -> bytes | None:
    stored = await storage.get(key)
    if stored is None:
        return None
    read = b"".join([chunk async for chunk in stored.chunks])
    assert stored.size == len(read)
    return read


@pytest.mark.parametrize("size", [0, 1, 256 * 1024, 12 * MIB + 1])
async def test_stored_object_is_read_back(bucket: str, size: int, tmp_path: Path) -> None:
    storage = opened(bucket)
    data = os.urandom(size)
    await storage.put("images/a/0.jpg", data, "image/jpeg")
    assert await content(storage, "images/a/0.jpg") == data
    source = tmp_path / "source"
    source.write_bytes(data)
    await storage.put("csv/a/0.csv", source, "text/csv")
    assert await content(storage, "csv/a/0.csv") == data


async def test_object_has_its_headers_and_key_in_the_bucket(bucket: str, s3_server: S3Server) -> None:
    await opened(bucket).put("images/a/0.jpg", b"x", "image/jpeg", cache_control=IMAGE_CACHE_CONTROL)
    assert s3_server.keys(bucket) == ["a shop/images/images/a/0.jpg"]
    head = s3_server.client().head_object(Bucket=bucket, Key="a shop/images/images/a/0.jpg")
    assert (head["ContentType"], head["CacheControl"]) == ("image/jpeg", "public, max-age=86400")


async def test_reader_sees_old_or_new_object(bucket: str) -> None:
    storage = opened(bucket)
    versions = [bytes([letter]) * MIB for letter in b"abc"]
    await storage.put("object", versions[0], "image/jpeg")
    writing = asyncio.create_task(_write_all(storage, versions * 3))
    seen = set()
    while not writing.done():
        seen.add(await content(storage, "object"))
    await writing
    assert seen
    assert seen <= set(versions)


async def _write_all(storage: Storage, versions: list[bytes]) -> None:
    for version in versions:
        await storage.put("object", version, "image/jpeg")


async def test_signed_link_downloads_only_an_existing_object(bucket: str) -> None:
    storage = opened(bucket)
    await storage.put("images/a/ü 0.jpg", b"an image", "image/jpeg")
    link = await storage.signed_link("images/a/ü 0.jpg")
    assert link is not None
    assert await asyncio.to_thread(_download, link) == (b"an image", "image/jpeg")
    assert await storage.signed_link("images/a/1.jpg") is None


def _download(url: str) -> tuple[bytes, str]:
    with urlopen(url, timeout=60) as response:
        return response.read(), response.headers["Content-Type"]


async def test_public_bucket_gives_links_that_download(bucket: str, s3_server: S3Server) -> None:
    s3_server.publish(bucket)
    storage = Storage(f"s3://{bucket}", PUBLIC, f"{s3_server.url}/{bucket}")

    await storage.put("images/a/0.jpg", b"an image", "image/jpeg")
    link = storage.object_link("images/a/0.jpg")
    assert await asyncio.to_thread(_download, link) == (b"an image", "image/jpeg")
    with pytest.raises(HTTPError, match="404"):
        await asyncio.to_thread(_download, storage.object_link("images/a/1.jpg"))
    assert storage.link("api/download/1") == f"{PUBLIC}/api/download/1", "the API's own pages stay there"


async def test_remove_deletes_only_objects_under_prefix(bucket: str, s3_server: S3Server) -> None:
    storage = opened(bucket)
    await asyncio.gather(*(storage.put(f"images/a/{n}.jpg", b"x", "image/jpeg") for n in range(30)))
    await storage.put("images/ab/0.jpg", b"x", "image/jpeg")
    assert await storage.remove("images/a") == 30
    assert await storage.remove("images/a") == 0, "safe to repeat"
    assert s3_server.keys(bucket) == ["a shop/images/images/ab/0.jpg"]


async def failure_of(storage: Storage) -> str:
    """What checking it says, which reading and removing say as well."""
    with pytest.raises(StorageError) as checked:
        await storage.check()
    for action in (storage.get("images/a/0.jpg"), storage.remove("images/a")):
        with pytest.raises(StorageError):
            await action
    message = str(checked.value)
    assert "\n" not in message
    assert len(message) < 300
    return message


async def test_missing_bucket_is_an_error_of_one_line(bucket: str) -> None:
    message = await failure_of(opened("no-such-bucket"))
    assert message.startswith(".shrinkstream-check can't be written to s3://no-such-bucket/a shop/images: NoSuchBucket")


async def test_unknown_access_keys_are_an_error_of_one_line(
    bucket: str, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, secret = s3_server.new_key()
    s3_server.ask_for_keys(ask=True)
    try:
        assert "InvalidAccessKeyId" in await failure_of(opened(bucket))
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
        assert "SignatureDoesNotMatch" in await failure_of(opened(bucket))
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
        await opened(bucket).check()
    finally:
        s3_server.ask_for_keys(ask=False)


async def test_unreachable_endpoint_is_one_line_after_bounded_retries(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")

    with pytest.raises(StorageError, match=r"PUT http://127\.0\.0\.1:9/.*: HTTP error: error sending request$"):
        await opened(bucket).check()


async def test_bucket_check_writes_once_and_notices_removal(bucket: str, s3_server: S3Server) -> None:
    client = s3_server.client()
    client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    storage = opened(bucket, "shop")

    for _ in range(3):
        await check_storage(storage)
    versions = client.list_object_versions(Bucket=bucket)["Versions"]
    assert [version["Key"] for version in versions] == [f"shop/{CHECK_KEY}"]
    for version in versions:
        client.delete_object(Bucket=bucket, Key=version["Key"], VersionId=version["VersionId"])
    client.delete_bucket(Bucket=bucket)
    with pytest.raises(NotReady) as refused:
        await check_storage(storage)
    assert "NoSuchBucket" in refused.value.detail
    assert bucket not in str(refused.value), "which is nobody's business"


async def test_redirect_to_the_bucket_is_embeddable(bucket: str, settings: Settings, request_id: str) -> None:
    changed = settings.model_copy(update={"storage_url": f"s3://{bucket}/shop", "storage_redirect": True})
    await Storage.of(changed).put(f"images/{request_id}/0.jpg", b"an image", "image/jpeg")
    async with (
        serving_api(changed) as (server, _),
        aiohttp.ClientSession() as client,
        client.get(server.make_url(f"/images/{request_id}/0.jpg"), allow_redirects=False) as answer,
    ):
        assert (answer.status, answer.headers["Cross-Origin-Resource-Policy"]) == (302, "cross-origin")
        assert await asyncio.to_thread(_download, answer.headers["Location"]) == (b"an image", "image/jpeg")
