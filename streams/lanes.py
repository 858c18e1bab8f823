"""Two lanes on the topic of image requests, so that a small request never waits for the end of a large one.

A partition is read in order: three images behind 100,000 others would be done last. So some partitions are left
free by large requests, and small ones go to these only. That is the producer's choice, made once and kept in the
event (`ImageRequested.bulk`), so whoever writes the event again, a retry or the healer, keeps to the lane; readers
know nothing of it, a replay reads one topic as ever, and a worker that dies leaves both lanes to its successor.

The other half is that a worker takes evenly from its partitions (`delivery_window` in `infra.faust_app`): what
is under way from one of them never keeps the next record of another from being begun.

Half of the partitions for each, in two blocks: Faust deals partitions out in turn, so that every worker gets of both
while there are no more workers than half the partitions. With more, those that only have partitions of a lane in which
nothing waits stand idle.
"""

from zlib import crc32


def partition_of_image(key: bytes, *, bulk: bool, partitions: int) -> int:
    """The partition, of so many, for an image of a large (``bulk``) or a small request."""
    reserved = reserved_partitions(partitions)
    if bulk:
        return reserved + crc32(key) % (partitions - reserved)
    return crc32(key) % (reserved or partitions)


def reserved_partitions(partitions: int) -> int:
    """How many partitions, the first ones, are for small requests: none where there is but one."""
    return partitions // 2
