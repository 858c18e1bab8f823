"""``python -m tests.bench``: every benchmark, bounded in time, on loopback only."""

from tests.bench import images, replay, scale

images.main()
replay.main()
scale.main()
