"""``python -m tests.bench``: every benchmark, bounded in time, on loopback only."""

from tests.bench import images, replay, scale, uploads, webhooks

images.main()
replay.main()
uploads.main()
webhooks.main()
scale.main()
