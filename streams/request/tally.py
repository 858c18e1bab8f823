"""The tally: a bitmap of 1,000 consecutive images of a request, and the sums over them.

A tally is one record, so that bitmap and sums can't disagree, and its size doesn't grow with the request. Settling
an image is idempotent and commutative: a success is final, a failure counts only in the highest run seen.
"""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import NamedTuple

from streams.events.images import ImageFailed, ImageProcessed

IMAGES_PER_CHUNK = 1000
"""Size of a chunk: images per tally, and per partition (``bucket``) of images in Cassandra."""

WAITING, FAILED, SUCCEEDED = 0, 1, 2  # the state of an image, in two bits
_SUCCEEDED_BITS = 0b10101010  # of the four images in a byte


def chunk_of(index: int) -> tuple[int, int]:
    """The number of an image's chunk, and the image's position in it."""
    return divmod(index, IMAGES_PER_CHUNK)


def chunk_count(total: int) -> int:
    return -(-total // IMAGES_PER_CHUNK)


def chunk_range(number: int, total: int) -> range:
    """The indexes of a chunk's images; the last chunk may have fewer."""
    return range(number * IMAGES_PER_CHUNK, min((number + 1) * IMAGES_PER_CHUNK, total))


class Tally(NamedTuple):
    """Sums over the images of a chunk, and the bitmap ``states``.

    ``run`` is the highest run seen: a failure counts only if it is of that run, because a retry requests every
    failed image again. ``updated_ms``: time of the last change, in milliseconds since 1970.
    """

    run: int
    succeeded: int
    failed: int
    input_bytes: int
    output_bytes: int
    updated_ms: int
    states: bytes

    def state(self, position: int) -> int:
        byte = position >> 2
        return (self.states[byte] >> ((position & 3) * 2)) & 3 if byte < len(self.states) else WAITING

    def is_settled(self, position: int, run: int) -> bool:
        """Whether an image has its result in a run of the request."""
        state = self.state(position)
        return state == SUCCEEDED or (state == FAILED and self.run >= run)

    def settled(self, run: int) -> int:
        """How many images have their result in a run of the request."""
        return self.succeeded + self.failed_in(run)

    def failed_in(self, run: int) -> int:
        return self.failed if self.run >= run else 0

    def settle(self, position: int, event: ImageProcessed | ImageFailed) -> "Tally":
        """The tally with an image's result; itself where the result changes nothing."""
        tally = self._in_run(event.run) if event.run > self.run else self
        run, succeeded, failed, input_bytes, output_bytes, updated_ms, states = tally
        state = tally.state(position)
        if isinstance(event, ImageProcessed):
            if state == SUCCEEDED:
                return tally
            succeeded += 1
            failed -= state == FAILED
            input_bytes += event.input_bytes
            output_bytes += event.output_bytes
            state = SUCCEEDED
        else:
            if state != WAITING or event.run < run:
                return tally
            failed += 1
            state = FAILED
        updated_ms = max(updated_ms, milliseconds(event.time))
        return Tally(run, succeeded, failed, input_bytes, output_bytes, updated_ms, _marked(states, position, state))

    def _in_run(self, run: int) -> "Tally":
        """The tally at the begin of a retry: failed images are waiting again."""
        return self._replace(run=run, failed=0, states=bytes(byte & _SUCCEEDED_BITS for byte in self.states))


EMPTY = Tally(0, 0, 0, 0, 0, 0, b"")


class Sums(NamedTuple):
    """Sums over all images of a request."""

    succeeded: int = 0
    failed: int = 0
    input_bytes: int = 0
    output_bytes: int = 0
    updated_ms: int = 0

    @property
    def settled(self) -> int:
        return self.succeeded + self.failed


def add_up(tallies: Iterable[Tally], run: int) -> Sums:
    """The sums over a request's tallies in a run."""
    succeeded = failed = input_bytes = output_bytes = updated_ms = 0
    for tally in tallies:
        succeeded += tally.succeeded
        failed += tally.failed_in(run)
        input_bytes += tally.input_bytes
        output_bytes += tally.output_bytes
        updated_ms = max(updated_ms, tally.updated_ms)
    return Sums(succeeded, failed, input_bytes, output_bytes, updated_ms)


def unsettled(tallies: Iterable[Tally], total: int, run: int) -> Iterator[int]:
    """The indexes of the images that have no result in a run; ``tallies`` of all chunks, in order."""
    for number, tally in enumerate(tallies):
        for position, index in enumerate(chunk_range(number, total)):
            if not tally.is_settled(position, run):
                yield index


def milliseconds(time: datetime) -> int:
    return int(time.timestamp() * 1000)


def from_milliseconds(value: int) -> datetime:
    return datetime.fromtimestamp(value / 1000, UTC)


def _marked(states: bytes, position: int, state: int) -> bytes:
    byte, shift = position >> 2, (position & 3) * 2
    changed = bytearray(states.ljust(byte + 1, b"\0"))
    changed[byte] = changed[byte] & ~(3 << shift) | state << shift
    return bytes(changed)
