"""``python -m tests.bench``: every benchmark, bounded in time, on loopback only."""

from tests.bench import images, replay

images.main()
replay.main()
