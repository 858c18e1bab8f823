"""Each check of a drill fails when something is lost, doubled or unequal."""

from collections import Counter
from collections.abc import Callable

import pytest

from tests.drill.checks import COPIES, UNDER_WAY, Found, RequestFound

IMAGES = {"one": 3, "two": 2}


def sound() -> Found:
    """All is well after two faults."""
    found = Found(faults=2, fetched=7, confirmed=Counter(dict.fromkeys(IMAGES, 1)))
    for request_id, images in IMAGES.items():
        found.requests[request_id] = RequestFound(
            images,
            input_bytes=100 * images,
            status={
                "status": "completed",
                "progress": 100,
                "total": images,
                "succeeded": images,
                "failed": 0,
                "inputBytes": 100 * images,
                "webhook": "delivered",
            },
            csv_rows=[[str(number), "P", "in", "out"] for number in range(images)],
            history=Counter(succeeded=images),
            webhook_ids=[f"msg_{request_id}"] * 2,  # the same message, sent twice
        )
    found.events = {
        "image-requests": 5,
        "image-results": 6,
        "requests": 4,
        "output-requests": 3,
        "webhooks": 5,
    }
    found.replays = {"progress": "", "history": "", "output": ""}
    return found


def set_status(name: str, value: object) -> Callable[[Found], None]:
    def change(found: Found) -> None:
        found.requests["one"].status = {**found.requests["one"].status, name: value}

    return change


def lose_csv_row(found: Found) -> None:
    del found.requests["one"].csv_rows[1]


def double_csv_row(found: Found) -> None:
    found.requests["one"].csv_rows.append(found.requests["one"].csv_rows[0])


def lose_csv(found: Found) -> None:
    found.requests["one"].csv_rows = []


def lose_output_url(found: Found) -> None:
    found.requests["one"].csv_rows[1][3] = ""


def lose_history_row(found: Found) -> None:
    found.requests["one"].history["succeeded"] -= 1


def double_history_row(found: Found) -> None:
    found.requests["one"].history["succeeded"] += 1


def fail_in_history(found: Found) -> None:
    found.requests["one"].history = Counter(succeeded=2, failed=1)


def lose_status(found: Found) -> None:
    found.requests["one"].status = {}


def lose_webhook(found: Found) -> None:
    found.requests["one"].webhook_ids = []


def double_webhook(found: Found) -> None:
    found.requests["one"].webhook_ids.append("msg_another")


def lose_confirmation(found: Found) -> None:
    del found.confirmed["one"]


def double_confirmation(found: Found) -> None:
    found.confirmed["one"] += 1


def confirm_unknown_request(found: Found) -> None:
    found.confirmed["three"] = 1


def lose_fetch(found: Found) -> None:
    found.fetched = 4


def repeat_fetches(found: Found) -> None:
    found.fetched = 5 + 2 * UNDER_WAY + 1


def lose_events(topic: str) -> Callable[[Found], None]:
    def change(found: Found) -> None:
        found.events[topic] = found.usual(topic) - 1

    return change


def copy_events(topic: str, under_way: int) -> Callable[[Found], None]:
    def change(found: Found) -> None:
        found.events[topic] = int(found.usual(topic) * COPIES) + under_way + 1

    return change


def differ(what: str) -> Callable[[Found], None]:
    def change(found: Found) -> None:
        found.replays[what] = "1 difference"

    return change


def test_sound_drill_passes() -> None:
    assert sound().wrong() == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_status("status", "processing"), "status of one"),
        (set_status("progress", 99), "status of one"),
        (set_status("total", 2), "status of one"),
        (set_status("succeeded", 2), "status of one"),
        (set_status("succeeded", 4), "status of one"),
        (set_status("failed", 1), "status of one"),
        (set_status("inputBytes", 200), "input bytes of one"),
        (set_status("inputBytes", 400), "input bytes of one"),
        (set_status("webhook", "pending"), "webhook in the status of one"),
        (lose_status, "status of one"),
        (lose_csv, "rows of the output CSV of one"),
        (lose_csv_row, "rows of the output CSV of one"),
        (double_csv_row, "rows of the output CSV of one"),
        (lose_output_url, "empty places in the output CSV of one"),
        (lose_history_row, "images in the history of one"),
        (double_history_row, "images in the history of one"),
        (fail_in_history, "images in the history of one"),
        (lose_webhook, "different webhook ids of one"),
        (double_webhook, "different webhook ids of one"),
        (lose_confirmation, "confirmed webhooks of one"),
        (double_confirmation, "confirmed webhooks of one"),
        (confirm_unknown_request, "that were not uploaded"),
        (lose_fetch, "4 fetches of 5 images"),
        (repeat_fetches, "perhaps twice"),
        (lose_events("image-requests"), "events on image-requests"),
        (lose_events("image-results"), "events on image-results"),
        (lose_events("requests"), "events on requests"),
        (lose_events("output-requests"), "events on output-requests"),
        (lose_events("webhooks"), "events on webhooks"),
        (copy_events("image-requests", 2 * UNDER_WAY), "events on image-requests"),
        (copy_events("image-results", 2 * UNDER_WAY), "events on image-results"),
        (copy_events("requests", 0), "events on requests"),
        (copy_events("output-requests", 0), "events on output-requests"),
        (copy_events("webhooks", 0), "events on webhooks"),
        (differ("progress"), "replay progress differs"),
        (differ("history"), "replay history differs"),
        (differ("output"), "replay output differs"),
    ],
)
def test_check_finds_injected_fault(change: Callable[[Found], None], message: str) -> None:
    found = sound()
    change(found)
    assert any(message in each for each in found.wrong())
