"""Small requests have partitions that large ones leave free."""

import pytest
from faust.assignor.client_assignment import CopartitionedAssignment
from faust.assignor.copartitioned_assignor import CopartitionedAssignor
from hypothesis import given
from hypothesis import strategies as st

from streams.events.images import ImageRequested
from streams.events.lanes import partition_of_image, partitions_of_lane

PARTITIONS = st.integers(1, 1024)
KEYS = st.binary(min_size=1, max_size=80)


@given(PARTITIONS, KEYS, st.booleans())
def test_an_image_goes_to_a_partition_that_exists(partitions: int, key: bytes, bulk: bool) -> None:
    assert 0 <= partition_of_image(key, bulk=bulk, partitions=partitions) < partitions


@given(st.integers(2, 1024))
def test_lanes_are_disjoint_and_cover_all_partitions(partitions: int) -> None:
    small, large = (partitions_of_lane(partitions, bulk=bulk) for bulk in (False, True))
    assert sorted(small + large) == list(range(partitions))
    assert abs(len(small) - len(large)) <= 2


def test_images_are_spread_over_all_partitions_of_their_lane() -> None:
    for bulk in (False, True):
        keys = [b"request/%d" % index for index in range(1000)]
        used = {partition_of_image(key, bulk=bulk, partitions=8) for key in keys}
        assert used == set(partitions_of_lane(8, bulk=bulk))


@pytest.mark.parametrize(("partitions", "workers"), [(8, 2), (8, 4), (16, 2), (16, 4), (16, 8)])
def test_two_four_and_eight_workers_have_both_lanes(partitions: int, workers: int) -> None:
    newcomers = {str(number): CopartitionedAssignment(topics={"images"}) for number in range(workers)}
    assignments = CopartitionedAssignor({"images"}, newcomers, partitions, replicas=0).get_assignment()
    large = set(partitions_of_lane(partitions, bulk=True))
    for assignment in assignments.values():
        assert assignment.actives & large
        assert assignment.actives - large


@given(st.integers(2, 1024), st.integers(2, 1024), st.booleans())
def test_each_partition_keeps_its_lane_when_the_topic_grows(before: int, after: int, bulk: bool) -> None:
    smaller, larger = sorted((before, after))
    lane = partitions_of_lane(larger, bulk=bulk)
    assert tuple(number for number in lane if number < smaller) == partitions_of_lane(smaller, bulk=bulk)


def test_rerequested_image_stays_in_its_lane() -> None:
    image = ImageRequested(
        request_id="r", index=7, row=0, position=0, serial="1", product_name="Shoe", input_url="http://x/", bulk=True
    )
    again = image.model_copy(update={"run": 1})
    assert again.partition_among(8) == image.partition_among(8) == partition_of_image(b"r/7", bulk=True, partitions=8)
