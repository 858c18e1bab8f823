"""Two lanes on the topic of image requests, so that a small request never waits for the end of a large one.

A partition is read in order: three images behind 100,000 others would be processed last. So large requests use only
some of the partitions (bulk), and small ones only the others (express). The producer chooses the lane once and stores
it in the event (`ImageRequested.bulk`), so that a retry or the reconciler writes to the same lane. Consumers don't
know about lanes: a replay reads one topic, and the successor of a dead worker takes over both lanes.

A worker also reads evenly from its partitions (`read_ahead` in `infra.faust.app`), and its lanes share its downloads
(`FairSlots`).

Each lane has half of the partitions. The bulk lane has those whose number has an odd count of binary ones (the
Thue-Morse sequence): assigned in turn or in blocks to 2, 4, 8 … workers, each worker gets partitions of both lanes.
With another number of workers, or as many as partitions, a worker may have only one lane, and be idle while that lane
is empty.
"""

from functools import lru_cache
from zlib import crc32


def partition_of_image(key: bytes, *, bulk: bool, partitions: int) -> int:
    """The partition for an image of a large (``bulk``) or a small request; ``partitions``: their number."""
    lane = partitions_of_lane(partitions, bulk=bulk)
    return lane[crc32(key) % len(lane)]


@lru_cache(maxsize=64)
def partitions_of_lane(partitions: int, *, bulk: bool) -> tuple[int, ...]:
    """The partitions of the bulk or the express lane; a single partition belongs to both."""
    return tuple(number for number in range(partitions) if number.bit_count() % 2 == bulk) or (0,)
