"""``python -m tests.bench``: every benchmark, bounded in time, on loopback only."""

from tests.bench.images import main

main()
