"""Two lanes on the topic of image requests, so that a small request never waits for the end of a large one.

A partition is read in order: three images behind 100,000 others would be done last. So some partitions are left
free by large requests, and small ones go to these only. That is the producer's choice, made once and kept in the
event (`ImageRequested.bulk`), so that a retry or the reconciler writes the event to the same lane; consumers don't
know of lanes, a replay reads one topic, and a worker that dies leaves both lanes to its successor.

The other half is that a worker reads evenly from its partitions (`read_ahead` in `infra.faust.app`), and that its lanes
share its downloads (`FairSlots`).

Half of the partitions are for each, those for large requests being the ones whose number has an odd count of binary
ones (the Thue-Morse sequence): dealt out in turn, or in blocks, to 2, 4, 8 … workers, each gets of both lanes. With
other numbers of workers, or as many as partitions, one may have partitions of a single lane, and stand idle while
nothing waits in that.
"""

from functools import lru_cache
from zlib import crc32


def partition_of_image(key: bytes, *, bulk: bool, partitions: int) -> int:
    """The partition, of so many, for an image of a large (``bulk``) or a small request."""
    lane = partitions_of_lane(partitions, bulk=bulk)
    return lane[crc32(key) % len(lane)]


@lru_cache(maxsize=64)
def partitions_of_lane(partitions: int, *, bulk: bool) -> tuple[int, ...]:
    """Those for large (``bulk``) or for small requests; where there is but one partition, that is for both."""
    return tuple(number for number in range(partitions) if number.bit_count() % 2 == bulk) or (0,)
