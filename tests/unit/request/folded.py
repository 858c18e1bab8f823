"""A request as the progress app has it, but as objects: its state and its tallies."""

from collections.abc import Iterable

from streams.events.base import Event
from streams.events.images import ImageFailed, ImageProcessed
from streams.events.progress import ImagesSettled
from streams.events.requests import OutputCsvRequested
from streams.request.lifecycle import RequestState, Tombstone, evolve
from streams.request.reactions import reactions
from streams.request.tally import EMPTY, Sums, Tally, add_up, chunk_count, chunk_of


class Folded:
    """One request, after the events that were applied."""

    def __init__(self, *events: Event) -> None:
        self.entry: RequestState | Tombstone | None = None
        self._tallies: dict[int, Tally] = {}
        self.apply(*events)

    @property
    def state(self) -> RequestState:
        assert isinstance(self.entry, RequestState)
        return self.entry

    @property
    def tallies(self) -> list[Tally]:
        """Those of all chunks, in order."""
        if not isinstance(self.entry, RequestState):
            return []
        return [self._tallies.get(number, EMPTY) for number in range(chunk_count(self.entry.total))]

    def sums(self, run: int = 0) -> Sums:
        return add_up(self._tallies.values(), run)

    def apply(self, *events: Event) -> list[ImagesSettled | OutputCsvRequested]:
        """Apply the events one by one; returns their reactions."""
        return [due for event in events for due in self._apply(event)]

    def _apply(self, event: Event) -> Iterable[ImagesSettled | OutputCsvRequested]:
        tally = None
        if isinstance(event, ImageProcessed | ImageFailed):
            number, position = chunk_of(event.index)
            tally = self._tallies[number] = self._tallies.get(number, EMPTY).settle(position, event)
        else:
            self.entry = evolve(self.entry, event)
        return reactions(event, self.entry, tally, lambda: self.tallies)
