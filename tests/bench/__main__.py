"""``python -m tests.bench``: every benchmark, bounded in time, on loopback only."""

from tests.bench import images, replay, uploads

images.main()
replay.main()
uploads.main()
