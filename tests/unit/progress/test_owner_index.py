"""The requests of each owner, newest first."""

from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from streams.progress.owner_index import Cursor, RequestsByOwner
from tests.support.examples import NOON

PLACES = st.tuples(st.integers(0, 5).map(lambda seconds: NOON + timedelta(seconds=seconds)), st.sampled_from("abc"))
CHANGES = st.lists(st.tuples(st.sampled_from(["anna", ""]), st.booleans(), PLACES))


@given(CHANGES, st.none() | PLACES)
def test_index_is_ordered_without_duplicates(changes: list[tuple[str, bool, Cursor]], before: Cursor | None) -> None:
    requests, expected = RequestsByOwner(), dict[str, set[Cursor]]()
    for owner, comes, place in changes:
        (requests.add if comes else requests.discard)(owner, *place)
        of_owner = expected.setdefault(owner, set())
        (of_owner.add if comes else of_owner.discard)(place)
    for owner in ("anna", ""):
        wanted = [place for place in expected.get(owner, ()) if before is None or place < before]
        assert list(requests.newest_first(owner, before)) == sorted(wanted, reverse=True)
