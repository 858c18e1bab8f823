"""``python -m tests.bench``: every benchmark, bounded in time, on loopback only."""

from tests.bench import images, replay, webhooks

images.main()
replay.main()
webhooks.main()
