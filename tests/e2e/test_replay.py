"""Read models are thrown away and come back the same, while the system runs."""

import re

from aiokafka import AIOKafkaProducer
from cassandra.cluster import Cluster

from infra.cassandra.session import PROTOCOL_VERSION
from tests.e2e.conftest import System
from tests.support.published_clients import call, completed, delivered, upload
from tests.support.shop import Shop

HEADER = "S. No.,Product Name,Input Image URLs\n"


def finished_request(system: System, shop: Shop, name: str) -> str:
    """A request of 1,150 images, two of which failed, with a webhook."""
    url = shop.add(f"{name}.jpg")
    rows = "".join(f"{number},Shoe {number},{url}\n" for number in range(1148))
    rows += f'x,Hat,"{shop.url}/files/none.jpg,{shop.url}/files/none-either.jpg"\n'
    request_id = upload(system.url, HEADER + rows, webhookUrl=f"{shop.url}/webhook/{name}")
    completed(system.url, request_id)
    delivered(system.url, request_id)
    return request_id


def forge_history(address: str, keyspace: str, request_id: str) -> None:
    """Take away the second bucket, 150 images, change a row of the first and add one that nobody asked for.

    Take the request out of its owner's list, and say that another run of it is completed.
    """
    host, port = address.split(":")
    with (
        Cluster([host], port=int(port), protocol_version=PROTOCOL_VERSION) as cluster,
        cluster.connect(keyspace) as session,
    ):
        session.execute("DELETE FROM images_by_request WHERE request_id = %s AND bucket = 1", (request_id,))
        session.execute(
            "UPDATE images_by_request SET output_url = 'forged'"
            " WHERE request_id = %s AND bucket = 0 AND image_index = 3",
            (request_id,),
        )
        session.execute(
            "INSERT INTO images_by_request (request_id, bucket, image_index) VALUES (%s, 1, 1999)", (request_id,)
        )
        (row,) = session.execute("SELECT owner, created_at FROM requests WHERE request_id = %s", (request_id,))
        session.execute(
            "DELETE FROM requests_by_owner WHERE owner = %s AND day = %s AND created_at = %s AND request_id = %s",
            (row.owner, row.created_at.date(), row.created_at, request_id),
        )
        session.execute("UPDATE requests SET run = 7 WHERE request_id = %s", (request_id,))


def test_read_models_are_rebuilt_equal_without_side_effects(system: System, shop: Shop, cassandra_address: str) -> None:
    request_id = finished_request(system, shop, "replayed")
    status = call(system.url, "GET", f"/api/status/{request_id}").json
    output = call(system.url, "GET", f"/api/download/{request_id}").body
    fetched = len(shop.fetched)
    (system.data_dir / "storage" / "csv" / request_id / "0.csv").write_bytes(b"forged")
    assert "1 differences" in system.run("replay", "output", "--verify", "--request", request_id).stderr
    forge_history(cassandra_address, system.name, request_id)
    found = system.run("replay", "history", "--verify", "--request", request_id)
    assert found.returncode == 1
    assert "154 differences" in found.stderr, found.stdout + found.stderr

    for what in ("progress", "history", "output"):
        replayed = system.run("replay", what, "--request", request_id)
        assert replayed.returncode == 0, replayed.stdout + replayed.stderr
        assert re.search(r"\d+ events in [\d.]+ s", replayed.stderr)
        verified = system.run("replay", what, "--verify", "--request", request_id)
        assert verified.returncode == 0, verified.stdout + verified.stderr
    assert call(system.url, "GET", f"/api/status/{request_id}").json == status
    assert call(system.url, "GET", f"/api/download/{request_id}").body == output
    assert len(shop.received(request_id)) == 1
    assert len(shop.fetched) == fetched


def test_progress_is_rebuilt_while_a_request_runs(system: System, shop: Shop) -> None:
    url = shop.add("under-way.jpg")
    rows = "".join(f"{number},Shoe,{url}\n" for number in range(400))
    request_id = upload(system.url, HEADER + rows)
    replayed = system.run("replay", "progress")
    assert replayed.returncode == 0, replayed.stdout + replayed.stderr
    status = completed(system.url, request_id)
    assert (status["succeeded"], status["failed"]) == (400, 0)
    verified = system.run("replay", "progress", "--verify")
    assert verified.returncode == 0, verified.stdout + verified.stderr


async def test_unreadable_record_becomes_dead_letter_and_is_redelivered(
    system: System, shop: Shop, kafka_address: str
) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=kafka_address)
    await producer.start()
    try:
        record = await producer.send_and_wait(f"{system.name}.image-results", b"{rubbish", key=b"nobody")
        await producer.send_and_wait(f"{system.name}.image-results", None, key=b"nobody")
    finally:
        await producer.stop()
    request_id = upload(system.url, f"{HEADER}1,Shoe,{shop.add('after-rubbish.jpg')}\n")
    assert completed(system.url, request_id)["succeeded"] == 1
    listed = system.run("dead-letters", "list")
    (line,) = [line for line in listed.stdout.splitlines() if f"@{record.offset}  not JSON" in line]
    assert line.startswith(f"{system.name}.image-results/")
    assert "the record has no value" in listed.stdout
    retried = system.run("dead-letters", "retry", "--topic", f"{system.name}.image-results")
    assert retried.returncode == 0
    assert "records republished" in retried.stdout
