"""Pages of images are bounded in bytes, whatever the cells hold."""

from hypothesis import given
from hypothesis import strategies as st

from streams.projections.history.queries import PAGE_BYTES, ROW_BYTES, StoredImage, page_ranges

SIZES = st.lists(st.none() | st.integers(0, 65_536) | st.just(2**20), max_size=400)


@given(SIZES)
def test_pages_cover_all_rows_within_the_bound(sizes: list[int | None]) -> None:
    stored = [StoredImage(3 * place, 0, None, size) for place, size in enumerate(sizes)]
    pages = [[image for image in stored if first <= image.image_index <= last] for first, last in page_ranges(stored)]
    assert [image for page in pages for image in page] == stored
    for page in pages:
        assert len(page) == 1 or sum(ROW_BYTES + (image.cells_bytes or 0) for image in page) <= PAGE_BYTES


def test_usual_rows_are_one_page() -> None:
    stored = [StoredImage(index, 0, "images/x", 60) for index in range(1000)]
    assert len(list(page_ranges(stored))) == 1
