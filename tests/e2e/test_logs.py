"""What a running system logs can be searched by a request's id, and holds nobody's secrets."""

import json
from typing import Any

from streams.events.images import ImageRequested
from tests.e2e.conftest import System
from tests.support.published_clients import completed, delivered, upload
from tests.support.shop import Shop

HEADER = "S. No.,Product Name,Input Image URLs\n"
ROLES = ("api", "compress", "progress", "projections")
SECRET = "hunter2"


def log_lines(system: System) -> list[dict[str, Any]]:
    """Every line of every role: each is JSON."""
    lines = [line for role in ROLES for line in (system.data_dir / "logs" / f"{role}.log").read_text().splitlines()]
    return [json.loads(line) for line in lines]


def test_log_lines_are_json_with_ids_and_no_secret(system: System, shop: Shop) -> None:
    good = shop.add("logged.jpg")
    csv = f'{HEADER}1,Shoe,"{good}?token={SECRET}-good,{shop.url}/files/none.jpg?token={SECRET}-missing"\n'
    request_id = upload(system.url, csv, webhookUrl=f"{shop.url}/webhook/logged?key={SECRET}")
    assert completed(system.url, request_id)["failed"] == 1
    delivered(system.url, request_id)
    lines = log_lines(system)
    assert {"event", "level", "logger", "timestamp"} <= set.intersection(*map(set, lines))
    about = {line["event"]: line for line in lines if line.get("request_id") == request_id}
    assert {"request created", "image failed", "request completed", "webhook attempted"} <= about.keys()
    assert about["image failed"]["event_id"] == ImageRequested.id_of(f"{request_id}/1", "0")
    assert SECRET not in json.dumps(lines)
    assert shop.secret not in json.dumps(lines)
