"""A stored image that is larger than what the sockets' buffers take."""

from pathlib import Path

from infra.settings import Settings

IMAGE = "images/b2da3e5f-e062-435c-aaa5-a9d67346ed1e/0.jpg"
SIZE = 64 * 1024 * 1024


def store_large_image(settings: Settings) -> None:
    path = Path(settings.data_dir, "storage", IMAGE)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(SIZE)
