"""The system on servers that ask who it is, with its files in a bucket and not for ever."""

import asyncio
import csv
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest
from PIL import Image

from infra.devserver.cassandra import EmbeddedCassandra
from infra.devserver.kafka import EmbeddedKafka
from infra.devserver.security import Security
from infra.devserver.servers import EmbeddedServers
from tests.e2e.conftest import System, start_system, stop_system
from tests.support.certificates import write_certificates
from tests.support.console_script import shrinkstream
from tests.support.published_clients import call, completed, upload, wait_for
from tests.support.s3 import S3Server
from tests.support.shop import Shop
from tests.support.waiting import wait_until

HEADER = "S. No.,Product Name,Input Image URLs\n"
BUCKET = "shrink-images"
RETENTION_SECONDS = 15


@pytest.fixture(scope="module")
def environment(s3_server: S3Server, shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """What a process of ours needs to know of a Kafka and a Cassandra with TLS and passwords, and of a bucket."""
    folder = tmp_path_factory.mktemp("cluster")
    keystore, cafile = write_certificates(folder)
    kafka = EmbeddedKafka(folder, Security("shrink", "kafka-secret", keystore, cafile))
    cassandra = EmbeddedCassandra(folder, Security("cassandra", "cassandra", keystore, cafile))
    servers = EmbeddedServers(kafka, cassandra)
    s3_server.client().create_bucket(Bucket=BUCKET)
    with asyncio.Runner() as runner:
        runner.run(servers.start())
        try:
            yield {
                **os.environ,
                **s3_server.environment,
                "SHRINKSTREAM_KAFKA_BROKERS": kafka.address,
                "SHRINKSTREAM_KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
                "SHRINKSTREAM_KAFKA_SASL_USERNAME": "shrink",
                "SHRINKSTREAM_KAFKA_SASL_PASSWORD": "kafka-secret",
                "SHRINKSTREAM_KAFKA_SSL_CAFILE": str(cafile),
                "SHRINKSTREAM_CASSANDRA_HOSTS": cassandra.address,
                "SHRINKSTREAM_CASSANDRA_USERNAME": "cassandra",
                "SHRINKSTREAM_CASSANDRA_PASSWORD": "cassandra",
                "SHRINKSTREAM_CASSANDRA_TLS": "true",
                "SHRINKSTREAM_CASSANDRA_CAFILE": str(cafile),
                "SHRINKSTREAM_STORAGE_URL": f"s3://{BUCKET}/a-shop",
                "SHRINKSTREAM_STORAGE_REDIRECT": "true",
                "SHRINKSTREAM_RETENTION_DAYS": str(RETENTION_SECONDS / 86_400),
                "SHRINKSTREAM_PARTITIONS": "2",
                "SHRINKSTREAM_DATA_DIR": str(folder / "data"),
                "SHRINKSTREAM_FETCH_ALLOW": shop.address,
            }
        finally:
            runner.run(servers.stop())


@pytest.fixture(scope="module")
def cluster(environment: dict[str, str]) -> Iterator[System]:
    created = shrinkstream("init", environment=environment)
    assert created.returncode == 0, created.stderr
    assert "created 0006_history.cql" in created.stdout
    process, url = start_system(environment, "--port", "0")
    yield System(url, Path(environment["SHRINKSTREAM_DATA_DIR"]), process, {**environment, "SHRINKSTREAM_URL": url})
    assert stop_system(process) == 0


@pytest.mark.parametrize(
    ("variable", "value", "cause"),
    [
        ("KAFKA_SASL_PASSWORD", "wrong", "SaslAuthenticationFailed"),
        ("KAFKA_SSL_CAFILE", "", "CERTIFICATE_VERIFY_FAILED"),
        ("KAFKA_SSL_CAFILE", "/no/such/file", "the certificates for Kafka can't be used: .*No such file"),
        ("CASSANDRA_PASSWORD", "wrong", "Bad credentials"),
        ("CASSANDRA_CAFILE", "", "CERTIFICATE_VERIFY_FAILED"),
        ("CASSANDRA_CAFILE", "/no/such/file", "the certificates for Cassandra can't be used: .*No such file"),
    ],
)
def test_refused_connection_is_one_line_with_its_reason(
    environment: dict[str, str], variable: str, value: str, cause: str
) -> None:
    refused = shrinkstream("init", environment={**environment, f"SHRINKSTREAM_{variable}": value})
    assert refused.returncode == 1
    (line,) = refused.stderr.splitlines()
    assert re.search(cause, line), line


@pytest.mark.parametrize("role", [("api",), ("worker", "compress"), ("worker", "projections")])
def test_missing_bucket_is_one_line_of_each_process(cluster: System, role: tuple[str, ...]) -> None:
    failed = cluster.run(*role, SHRINKSTREAM_STORAGE_URL="s3://no-such-bucket", SHRINKSTREAM_PORT="0")
    assert failed.returncode == (69 if role[0] == "worker" else 1)
    assert "s3://no-such-bucket: NoSuchBucket" in failed.stderr.splitlines()[-1]
    assert "Traceback" not in failed.stderr


def objects_of(s3_server: S3Server, request_id: str) -> list[str]:
    return [key for key in s3_server.keys(BUCKET) if request_id in key]


def test_links_to_bucket_images_work_until_they_expire(cluster: System, shop: Shop, s3_server: S3Server) -> None:
    images = [shop.add(f"cluster-{number}.jpg") for number in range(3)]
    request_id = upload(cluster.url, f'{HEADER}1,Shoe,"{images[0]},{images[1]}"\n2,Hat,{images[2]}\n')
    assert completed(cluster.url, request_id)["succeeded"] == 3
    text = call(cluster.url, "GET", f"/api/download/{request_id}").body.decode("utf-8-sig")
    links = [link for row in csv.DictReader(io.StringIO(text)) for link in row["Output Image URLs"].split(",")]
    assert len(links) == 3
    for number, link in enumerate(links):
        assert link.startswith(cluster.url)
        with urlopen(link, timeout=60) as image:
            assert image.url.startswith(s3_server.url), "the API sends whoever asks to the bucket"
            assert image.headers["Content-Type"] == "image/jpeg"
            content = image.read()
        assert len(content) < len(shop.files[f"cluster-{number}.jpg"])
        Image.open(io.BytesIO(content)).verify()
    kept = [f"a-shop/csv/{request_id}/0.csv", *(f"a-shop/images/{request_id}/{number}.jpg" for number in range(3))]
    assert objects_of(s3_server, request_id) == kept

    expired = wait_for(cluster.url, request_id, "status", "expired")
    assert (expired["progress"], expired["succeeded"], expired["outputCsvUrl"]) == (100, 3, None)
    wait_until(lambda: not objects_of(s3_server, request_id), "removed objects")
    for path in (f"/api/download/{request_id}", f"/images/{request_id}/0.jpg"):
        gone = call(cluster.url, "GET", path)
        assert (gone.status, gone.json["type"]) == (410, "urn:shrinkstream:problem:expired")
    for command in ("cancel", "retry"):
        refused = call(cluster.url, "POST", f"/api/requests/{request_id}/{command}")
        assert (refused.status, refused.json["type"]) == (410, "urn:shrinkstream:problem:expired")
    images_then = call(cluster.url, "GET", f"/api/requests/{request_id}/images").json["items"]
    assert [(image["status"], image["outputUrl"]) for image in images_then] == [("succeeded", None)] * 3
    listed = call(cluster.url, "GET", "/api/requests?status=expired").json["items"]
    assert request_id in [status["requestId"] for status in listed]
    for arguments in ((), ("--verify",)):
        replayed = cluster.run("replay", "output", "--request", request_id, *arguments)
        assert replayed.returncode == 0, replayed.stdout + replayed.stderr
    assert not objects_of(s3_server, request_id), "a replay brought them back"
    assert cluster.run("replay", "history", "--request", request_id).returncode == 0
    assert call(cluster.url, "GET", f"/api/status/{request_id}").json["status"] == "expired"
