"""Small requests have partitions that large ones leave free."""

from hypothesis import given
from hypothesis import strategies as st

from streams.events import ImageRequested
from streams.lanes import partition_of_image, reserved_partitions

PARTITIONS = st.integers(1, 1024)
KEYS = st.binary(min_size=1, max_size=80)


@given(PARTITIONS, KEYS, st.booleans())
def test_an_image_goes_to_a_partition_that_exists(partitions: int, key: bytes, bulk: bool) -> None:
    assert 0 <= partition_of_image(key, bulk=bulk, partitions=partitions) < partitions


@given(st.integers(2, 1024), KEYS, KEYS)
def test_small_and_large_requests_share_no_partition(partitions: int, small: bytes, large: bytes) -> None:
    reserved = reserved_partitions(partitions)
    assert partition_of_image(small, bulk=False, partitions=partitions) < reserved
    assert partition_of_image(large, bulk=True, partitions=partitions) >= reserved


def test_a_large_request_is_spread_over_all_partitions_of_its_lane() -> None:
    used = {partition_of_image(b"request/%d" % index, bulk=True, partitions=8) for index in range(1000)}
    assert used == set(range(4, 8))


def test_an_image_asked_for_again_stays_in_its_lane() -> None:
    image = ImageRequested(
        request_id="r", index=7, row=0, position=0, serial="1", product_name="Shoe", input_url="http://x/", bulk=True
    )
    again = image.model_copy(update={"attempt": 1})
    assert again.partition_among(8) == image.partition_among(8) == partition_of_image(b"r/7", bulk=True, partitions=8)
